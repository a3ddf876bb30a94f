"""Say whether training helped, by the validation ELBO: one that never rose, or that fell again.

With v(e) the validation ELBO after epoch e, in nats per image, and e* the first epoch at which it
is largest,

    never rose:  e* = 1 of several epochs
    fall:        v(e*) - v(last)      what the weights of the last epoch lose on those of the best

A fall is told where the last epoch's weights are kept, and from one nat on: the validation ELBO is
of one sample an image, and wavers by a tenth of a nat on the bundled digits.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["follow"]


COLUMNS = ["valid/best_epoch", "valid/fall"]


def follow(frame: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return what the validation ELBO did, a row for each row of the frame.

    Arguments:
        frame: One row a trial, validated.
        curves: `run_id, epoch, metric, value`, as `bench.results.read` reads them back.

    Returns:
        `valid/best_epoch`, from 1, and `valid/fall`, nats; both NaN for a trial that is not
        complete, had no validation images, or has one epoch alone.
    """
    found = frame.reindex(columns=COLUMNS).astype(float)  # a table that was written tells it
    if not len(curves):
        return found
    valid = curves[curves["metric"] == "valid/elbo"].sort_values("epoch")
    each = dict(iter(valid.groupby("run_id")))
    for index in frame.index[frame["status"] == "complete"]:
        mine = each.get(frame.loc[index, "run_id"])
        if mine is None or len(mine) < 2:
            continue
        values, epochs = mine["value"].to_numpy(), mine["epoch"].to_numpy()
        top = int(np.argmax(values))
        found.loc[index, COLUMNS] = epochs[top], values[top] - values[-1]
    return found
