"""Counts what failed: divergence, collapse, samples outside the splines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from bench.statistics import frames
from bench.statistics.outliers import is_far, limit

__all__ = ["APART", "CAUSES", "MIN_ACTIVE_SHARE", "TRIED", "find_failures"]


MIN_ACTIVE_SHARE = 0.5
"""The share of active dimensions below which a prior counts as collapsed."""
EMPTY = 0.1
"""The rate, nats, below which z tells next to nothing of its image."""
BASE = ", which it starts from, diverged"
"""Ends the reason of a prior that was fitted to a model that diverged."""
CAUSES = 3
"""The most causes of an arm's losses that are said."""
LONG = 90
"""Characters of a reason that are kept."""
TRIED = ("diverged", "failed")  # a lost seed; a missing one has not been tried
APART = " | "
KEPT = [
    *("prior", "seeds", "tried", "diverged", "failed", "missing"),
    *("lost_share", "lost_low", "lost_high", "reasons", "outside_posterior", "outside_prior"),
    *("active_units", "active_units_relative", "active_share", "rate", "bad_share"),
    *("collapsed", "far", "log_z_error", "caveat"),
]


def find_failures(frame: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Returns one row an arm: what went wrong, in numbers, and why seeds were lost.

    Arguments:
        frame: One row a trial, validated.
        summary: `comparison.summary` of it.
    """
    lost, tried = summary["diverged"] + summary["failed"], summary["seeds"]
    tried = tried + lost  # a missing one has not been tried yet
    ends = [_wilson(k, n) for k, n in zip(lost, tried, strict=True)]
    low, high = np.array(ends).T
    by, _ = frames.setting_columns(summary)
    each = list(arm_counts(frame))
    most = limit(*(arm["test/nll"][arm["status"] == "complete"] for arm in each))
    return summary.assign(
        tried=tried,
        lost_share=lost / tried.where(tried > 0),
        lost_low=low,
        lost_high=high,
        reasons=[_reasons(arm) for arm in each],
        collapsed=[seeds_text(arm, "test/rate", lambda rate: rate < EMPTY) for arm in each],
        far=[seeds_text(arm, "test/nll", lambda nll: is_far(nll, most)) for arm in each],
        active_share=summary["active_units_relative"] / summary["latent"],
    )[[*by, *KEPT]]


def arm_counts(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the trials of each arm, in the order of `stats.summary`."""
    for _, rows in frames.contexts(frame):
        for label in frames.priors(frame):
            if len(arm := rows[rows["prior"] == label]):
                yield arm


def _wilson(lost: int, tried: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share: it is sound for few seeds and for none lost.

    References:
        Probable Inference, the Law of Succession, and Statistical Inference (Wilson, 1927),
        https://doi.org/10.1080/01621459.1927.10502953
    """
    if not tried:
        return float("nan"), float("nan")
    found = scipy.stats.binomtest(int(lost), int(tried)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _reasons(arm: pd.DataFrame) -> str:
    """Return why an arm's seeds were lost, each cause once, with its epochs and their seeds."""
    each: dict[str, dict[str, list[str]]] = {}
    for _, row in arm[arm["status"].isin(TRIED)].iterrows():
        said = str(row.get("reason") or "").strip()
        known = said.splitlines()[0] if said and said != "nan" else f"{row['status']}"
        epoch, colon, cause = known.partition(": ")
        if not (colon and epoch.startswith("epoch ")):
            epoch, cause = "", known
        if cause.endswith(BASE):  # the name before it has the seed in it
            cause = f"the model{BASE}"
        each.setdefault(cause[:LONG], {}).setdefault(epoch, []).append(str(row["seed"]))
    found = []
    for cause, when in each.items():
        places = [_when(epoch, seeds) for epoch, seeds in sorted(when.items(), key=_at)]
        found.append(", ".join([cause, *places]))
    return APART.join(found)


def _at(when: tuple[str, list[str]]) -> int:
    """Return the number of an epoch in words, 0 without one."""
    return int(when[0].removeprefix("epoch ") or 0)


def _when(epoch: str, seeds: list[str]) -> str:
    """Return an epoch with its seeds in words."""
    some = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    return f"in {epoch} at {some}" if epoch else f"at {some}"


def seeds_text(arm: pd.DataFrame, column: str, chosen: Callable[[pd.Series], Any]) -> str:
    """Return the complete seeds of an arm whose number is chosen, each with it."""
    if column not in arm:
        return ""
    done = arm[arm["status"] == "complete"]
    some = done[chosen(done[column])]
    each = [f"{n} ({v:.2g})" for n, v in zip(some["seed"], some[column], strict=True)]
    return f"seed{'s' if len(each) > 1 else ''} {', '.join(each)}" if each else ""
