"""Best epoch of the validation ELBO, and its fall after that epoch.

With v(e) the validation ELBO after epoch e, in nats per image, and e* the first epoch at which it
is largest,

    never rose:  e* = 1 of several epochs
    fall:        v(e*) - v(last)      the loss of the last epoch's weights against the best ones

A report mentions a fall of more than one nat where the weights of the last epoch are kept: the
validation ELBO uses one sample per image, and varies by a tenth of a nat on the bundled digits.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["validation_course"]


CONVERGENCE_COLUMNS = ["valid/best_epoch", "valid/fall"]


def validation_course(frame: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Returns the best epoch and the fall of the validation ELBO, one row per trial.

    Arguments:
        frame: One row per trial, validated.
        curves: `run_id, epoch, metric, value`, as `bench.results.read` returns them; without
            rows, the columns that a `trials.csv` already holds are returned.

    Returns:
        `valid/best_epoch`, from 1, and `valid/fall`, nats; both NaN for a trial that is not
        complete, had no validation images, or has only one epoch.
    """
    course = frame.reindex(columns=CONVERGENCE_COLUMNS).astype(float)
    if not len(curves):
        return course
    valid = curves[curves["metric"] == "valid/elbo"].sort_values("epoch")
    curve_of = dict(iter(valid.groupby("run_id")))
    for index in frame.index[frame["status"] == "complete"]:
        curve = curve_of.get(frame.loc[index, "run_id"])
        if curve is None or len(curve) < 2:
            continue
        values, epochs = curve["value"].to_numpy(), curve["epoch"].to_numpy()
        best = int(np.argmax(values))
        course.loc[index, CONVERGENCE_COLUMNS] = epochs[best], values[best] - values[-1]
    return course
