"""Failures of arms: lost seeds, collapse, and samples outside the splines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from bench.statistics import frames
from bench.statistics.outliers import is_far, limit

__all__ = ["CAUSE_SEPARATOR", "LOST_STATUSES", "MAX_CAUSES", "MIN_ACTIVE_SHARE", "find_failures"]


MIN_ACTIVE_SHARE = 0.5
"""The share of active dimensions below which a prior counts as collapsed."""
MAX_COLLAPSED_RATE = 0.1
"""The rate, nats, below which z carries almost no information about its image."""
BASE_DIVERGED = ", which it starts from, diverged"
"""The end of the reason of a post-hoc prior whose jointly trained model diverged."""
MAX_CAUSES = 3
"""The largest number of causes that a sentence names per arm."""
MAX_CAUSE_CHARACTERS = 90
"""The length to which the text of a cause is cut."""
LOST_STATUSES = ("diverged", "failed")
"""The statuses of a lost seed; a missing seed has not been tried."""
CAUSE_SEPARATOR = " | "
FAILURE_COLUMNS = [
    *("prior", "seeds", "tried", "diverged", "failed", "missing"),
    *("lost_share", "lost_low", "lost_high", "reasons", "outside_posterior", "outside_prior"),
    *("active_units", "active_units_relative", "active_share", "rate", "bad_share"),
    *("collapsed", "far", "log_z_error", "caveat"),
]


def find_failures(frame: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per arm: shares and counts of failures, and the causes of lost seeds.

    Arguments:
        frame: One row per trial, validated.
        summary: The `comparison.summary` of it.
    """
    lost = summary["diverged"] + summary["failed"]
    tried = summary["seeds"] + lost
    ends = [_wilson(k, n) for k, n in zip(lost, tried, strict=True)]
    low, high = np.array(ends).T
    by, _ = frames.setting_columns(summary)
    arms = list(iterate_arms(frame))
    most = limit(*(arm["test/nll"][arm["status"] == "complete"] for arm in arms))
    return summary.assign(
        tried=tried,
        lost_share=lost / tried.where(tried > 0),
        lost_low=low,
        lost_high=high,
        reasons=[_reasons(arm) for arm in arms],
        collapsed=[
            seeds_text(arm, "test/rate", lambda rate: rate < MAX_COLLAPSED_RATE) for arm in arms
        ],
        far=[seeds_text(arm, "test/nll", lambda nll: is_far(nll, most)) for arm in arms],
        active_share=summary["active_units_relative"] / summary["latent"],
    )[[*by, *FAILURE_COLUMNS]]


def iterate_arms(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yields the trials of each arm, in the order of `comparison.summary`."""
    for _, rows in frames.group_by_setting(frame):
        for label in frames.priors(frame):
            if len(arm := rows[rows["prior"] == label]):
                yield arm


def _wilson(lost: int, tried: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share, which also holds for few seeds and for none lost.

    References:
        Probable Inference, the Law of Succession, and Statistical Inference (Wilson, 1927),
        https://doi.org/10.1080/01621459.1927.10502953
    """
    if not tried:
        return float("nan"), float("nan")
    interval = scipy.stats.binomtest(int(lost), int(tried)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _reasons(arm: pd.DataFrame) -> str:
    """Returns the causes of an arm's lost seeds, once each, with their epochs and seeds."""
    causes: dict[str, dict[str, list[str]]] = {}
    for _, row in arm[arm["status"].isin(LOST_STATUSES)].iterrows():
        reason = str(row.get("reason") or "").strip()
        reason = reason.splitlines()[0] if reason and reason != "nan" else f"{row['status']}"
        epoch, colon, cause = reason.partition(": ")
        if not (colon and epoch.startswith("epoch ")):
            epoch, cause = "", reason
        if cause.endswith(BASE_DIVERGED):  # the name before it contains the seed
            cause = f"the model{BASE_DIVERGED}"
        epochs = causes.setdefault(cause[:MAX_CAUSE_CHARACTERS], {})
        epochs.setdefault(epoch, []).append(str(row["seed"]))
    texts = []
    for cause, epochs in causes.items():
        places = [_place_text(epoch, epochs[epoch]) for epoch in sorted(epochs, key=_epoch_number)]
        texts.append(", ".join([cause, *places]))
    return CAUSE_SEPARATOR.join(texts)


def _epoch_number(epoch: str) -> int:
    """Returns the number in a text such as `epoch 3`; 0 for an empty one."""
    return int(epoch.removeprefix("epoch ") or 0)


def _place_text(epoch: str, seeds: list[str]) -> str:
    """Returns an epoch and its seeds as text, such as `in epoch 3 at seeds 1, 3`."""
    place = f"at seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    return f"in {epoch} {place}" if epoch else place


def seeds_text(arm: pd.DataFrame, column: str, chosen: Callable[[pd.Series], Any]) -> str:
    """Returns the complete seeds of an arm with a chosen value, as `seeds 0 (0.02), 1 (0.03)`."""
    if column not in arm:
        return ""
    done = arm[arm["status"] == "complete"]
    rows = done[chosen(done[column])]
    texts = [f"{n} ({v:.2g})" for n, v in zip(rows["seed"], rows[column], strict=True)]
    return f"seed{'s' if len(texts) > 1 else ''} {', '.join(texts)}" if texts else ""
