"""Sentences on convergence: a validation ELBO that never rose, or that fell again."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.statistics.formatting import nats

__all__ = ["MIN_FALL", "convergence_sentences"]


MIN_FALL = 1.0
"""The smallest fall of the validation ELBO that a sentence mentions, nats per image."""


def convergence_sentences(analysis: Analysis) -> list[str]:
    """Returns sentences on trainings that did not help, or lasted too long."""
    trials = analysis.trials.assign(**analysis.convergence)
    sentences = []
    for setting, rows in frames.group_by_setting(trials):
        shown = [c for c in setting if c == "latent" or trials[c].nunique(dropna=False) > 1]
        place = frames.setting_text(pd.Series(setting), shown)
        sentences += [f"At {place}, {text}." for text in (*_no_rise(rows), *_fall(rows))]
    return sentences


def _iterate_arms(subset: pd.DataFrame, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the arms of a subset of rows, in the order of all rows."""
    for label in frames.priors(rows):
        if len(arm := subset[subset["prior"] == label]):
            yield label, arm


def _seeds_text(rows: pd.DataFrame) -> str:
    plural = "s" if len(rows) > 1 else ""
    return f"seed{plural} {', '.join(map(str, sorted(rows['seed'])))}"


def _no_rise(rows: pd.DataFrame) -> Iterator[str]:
    """Yields the arms whose validation ELBO was best after the first epoch, as text."""
    first = rows[rows["valid/best_epoch"] == 1]
    if len(first):
        arms = [f"{label} ({_seeds_text(arm)})" for label, arm in _iterate_arms(first, rows)]
        yield (
            "the validation ELBO never rose above that of the first epoch: "
            f"{', '.join(arms)}; a smaller learning rate may help"
        )


def _fall(rows: pd.DataFrame) -> Iterator[str]:
    """Yields the arms with the weights of a last epoch that is worse than the best, as text."""
    last = rows["select"] == "last" if "select" in rows else pd.Series(False, rows.index)
    fallen = rows[last & (rows["valid/fall"] > MIN_FALL)]
    if len(fallen):
        arms = [
            f"{label} by {nats(arm['valid/fall'].mean(), '.1f')} nats ({_seeds_text(arm)})"
            for label, arm in _iterate_arms(fallen, rows)
        ]
        yield (
            "the validation ELBO of the last epoch, whose weights were kept, is below that of the "
            f"best epoch: {', '.join(arms)}; `--select best` keeps the weights of the best epoch"
        )
