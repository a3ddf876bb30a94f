"""Say whether training helped, by the validation ELBO: one that never rose, or that fell again.

With v(e) the validation ELBO after epoch e, in nats per image, and e* the first epoch at which it
is largest,

    never rose:  e* = 1 of several epochs
    fall:        v(e*) - v(last)      what the weights of the last epoch lose on those of the best

A fall is told where the last epoch's weights are kept, and from one nat on: the validation ELBO is
of one sample an image, and wavers by a tenth of a nat on the bundled digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from . import stats
from .wording import nats

__all__ = ["FALL", "follow", "sentences"]

FALL = 1.0
"""Nats per image."""
COLUMNS = ["valid/best_epoch", "valid/fall"]


def follow(frame: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return what the validation ELBO did, a row for each row of the frame.

    Arguments:
        frame: One row a trial.
        curves: `run_id, epoch, metric, value`, as `bench.results` reads them back.

    Returns:
        `valid/best_epoch`, from 1, and `valid/fall`, nats; both NaN for a trial that is not
        complete, had no validation images, or has one epoch alone.
    """
    found = frame.reindex(columns=COLUMNS).astype(float)  # a table that was written tells it
    if not len(curves):
        return found
    valid = curves[curves["metric"] == "valid/elbo"].sort_values("epoch")
    each = dict(iter(valid.groupby("run_id")))
    for index in frame.index[stats.settle(frame)["status"] == "complete"]:
        mine = each.get(frame.loc[index, "run_id"])
        if mine is None or len(mine) < 2:
            continue
        values, epochs = mine["value"].to_numpy(), mine["epoch"].to_numpy()
        top = int(np.argmax(values))
        found.loc[index, COLUMNS] = epochs[top], values[top] - values[-1]
    return found


def sentences(frame: pd.DataFrame, curves: pd.DataFrame) -> list[str]:
    """Return what the validation ELBO did in words, where it is worth some.

    Arguments:
        frame: One row a trial.
        curves: See `follow`.
    """
    told = frame.assign(**follow(frame, curves))
    said = []
    for setting, rows in stats.contexts(told):
        names = [c for c in setting if c == "latent" or told[c].nunique(dropna=False) > 1]
        place = stats.where(pd.Series(setting), names)
        said += [f"At {place}, {text}." for text in (*_never(rows), *_fallen(rows))]
    return said


def _arms(some: pd.DataFrame, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield those arms that some of the rows are of, in the order of all."""
    for label in stats.priors(rows):
        if len(arm := some[some["prior"] == label]):
            yield label, arm


def _seeds(rows: pd.DataFrame) -> str:
    many = "s" if len(rows) > 1 else ""
    return f"seed{many} {', '.join(map(str, sorted(rows['seed'])))}"


def _never(rows: pd.DataFrame) -> Iterator[str]:
    """Yield which arms' validation ELBO was never better than after the first epoch."""
    first = rows[rows["valid/best_epoch"] == 1]
    if len(first):
        each = [f"{label} ({_seeds(arm)})" for label, arm in _arms(first, rows)]
        yield (
            "the validation ELBO never rose above that of the first epoch: "
            f"{', '.join(each)}; a smaller learning rate may help"
        )


def _fallen(rows: pd.DataFrame) -> Iterator[str]:
    """Yield which arms kept the last weights though earlier ones were better."""
    kept = rows["select"] == "last" if "select" in rows else pd.Series(False, rows.index)
    far = rows[kept & (rows["valid/fall"] > FALL)]
    if len(far):
        each = [
            f"{label} {nats(arm['valid/fall'].mean(), '.1f')} nats ({_seeds(arm)})"
            for label, arm in _arms(far, rows)
        ]
        yield (
            "the last epoch's validation ELBO, whose weights are kept, lies below the best "
            f"epoch's: {', '.join(each)}; `--select best` keeps those"
        )
