"""Sentences on convergence: where the validation ELBO never rose, or fell again."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.statistics.formatting import nats

__all__ = ["FALL", "convergence_sentences"]


FALL = 1.0
"""Nats per image."""


def convergence_sentences(analysis: Analysis) -> list[str]:
    """Returns sentences on trainings that did not help, or went on for too long."""
    trials = analysis.trials.assign(**analysis.convergence)
    sentences = []
    for setting, rows in frames.contexts(trials):
        shown = [c for c in setting if c == "latent" or trials[c].nunique(dropna=False) > 1]
        place = frames.where(pd.Series(setting), shown)
        sentences += [f"At {place}, {text}." for text in (*_never(rows), *_fallen(rows))]
    return sentences


def _arms(some: pd.DataFrame, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield those arms that some of the rows are of, in the order of all."""
    for label in frames.priors(rows):
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
