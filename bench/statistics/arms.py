"""Summary of one arm: means of its metrics over seeds, lost seeds, timings, caveat.

An arm is a prior at one setting. Its label is the prior's short spec, followed by " post-hoc"
where the prior was fitted to a frozen encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.statistics.intervals import over_seeds
from bench.statistics.metrics import METRICS
from flowvae.errors import InputError
from flowvae.specs.registry import Spec
from flowvae.trial import registries

__all__ = [
    "EXCLUDED_TIMINGS",
    "POST_HOC",
    "THROUGHPUT",
    "UNSCORED_STATUSES",
    "add_intervals",
    "prior_caveat",
    "prior_spec",
    "summarise_arm",
    "timed_alone",
    "timing_devices",
]


UNSCORED_STATUSES = ("diverged", "failed", "missing")
"""The statuses of trials without a score."""
POST_HOC = " post-hoc"
THROUGHPUT = "time/images_per_second"
EXCLUDED_TIMINGS = {
    "shared": "timed on a shared device",
    "resumed": "timed in parts, with several numbers of threads",
}
"""Reasons to leave a timing out of the means of speeds, by the column `timing`."""


def prior_spec(label: str) -> Spec:
    """Returns the name and the options of an arm's prior.

    Example:
        >>> prior_spec("nsf[bins=16] post-hoc")
        Spec(name='nsf', options=(('bins', '16'),))
    """
    try:
        return Spec.parse(label.removesuffix(POST_HOC))
    except InputError:  # a label that no registry made
        return Spec(label)


def prior_caveat(label: str) -> str:
    """Returns the caveat that the tables print beside an arm's prior.

    It is empty for a prior that cannot be imported here, so that old results can be read.
    """
    try:
        return registries()["prior"][prior_spec(label).name].caveat
    except InputError:
        return ""


def timed_alone(runs: pd.DataFrame) -> pd.Series:
    """Returns which runs were timed alone on their device, in one part, or do not say."""
    return ~runs.get("timing", pd.Series("", runs.index)).isin(EXCLUDED_TIMINGS)


def timing_devices(runs: pd.DataFrame) -> pd.Series:
    """Returns the device that each run was timed on; older versions could time a run again."""
    return runs["timing_device"] if "timing_device" in runs else runs["device"]


def summarise_arm(rows: pd.DataFrame) -> dict[str, Any]:
    """Returns the columns that describe one arm: counts, and the means of metrics over seeds.

    Each metric declares the seeds it is averaged over. Its interval, such as `nll_low` to
    `nll_high`, is over seeds on the fixed test set. `timed` counts the seeds that were timed
    alone; where there are none, `timing` holds the reason, of `EXCLUDED_TIMINGS`.
    """
    rows = rows.sort_values("seed", kind="stable")  # or the last bit depends on the order
    complete = rows[rows["status"] == "complete"]
    timed = complete[timed_alone(complete)]
    counts = {status: int((rows["status"] == status).sum()) for status in UNSCORED_STATUSES}
    marks = [f"{n} of {len(rows)} seeds {status}" for status, n in counts.items() if n]
    timing = "" if complete.empty else "alone"
    if timed.empty and timing:
        timing = _join_distinct(complete["timing"])
    return {
        "seeds": len(complete),
        **counts,
        "mark": ", ".join(marks),
        **_means(complete, "complete"),
        **_means(timed, "timed"),
        "timing": timing,
        "timed": len(timed),
        "timing_device": _join_distinct(timing_devices(timed)) if "device" in timed else "",
        **_means(rows, "all"),
        "device": _join_distinct(rows.get("device", ())),
        **({"source": _join_distinct(rows["source"])} if "source" in rows else {}),
        "caveat": prior_caveat(str(rows["prior"].iloc[0])),
    }


def _means(trials: pd.DataFrame, seeds: str) -> dict[str, float]:
    """Returns the means, and intervals, of the metrics that are averaged over these seeds."""
    means: dict[str, float] = {}
    for metric in METRICS.values():
        if metric.seeds != seeds:
            continue
        values, column = metric.of_trials(trials), metric.summary_column
        if metric.interval:
            interval = over_seeds(values.to_numpy())
            means |= {column: interval.mean}
            means |= {f"{column}_low": interval.low, f"{column}_high": interval.high}
        else:
            means[column] = float(values.mean())
    return means


def add_intervals(
    table: pd.DataFrame, frame: pd.DataFrame, columns: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Returns a table of arms with the ends of intervals over seeds, `rate_low` and `rate_high`.

    Arguments:
        table: One row per arm; arms differ in prior and latent size only.
        frame: The trials of these arms.
        columns: From the name of a number to the columns of `frame` whose sum it is.
    """
    complete = frame[frame["status"] == "complete"]
    out = table.copy()
    for name, parts in columns.items():
        values = complete.reindex(columns=list(parts)).sum(axis=1, skipna=False)
        intervals = {
            arm: over_seeds(seeds.dropna().to_numpy())
            for arm, seeds in values.groupby([complete["prior"], complete["latent"]])
            if seeds.notna().any()
        }
        rows = [intervals.get(arm) for arm in zip(table["prior"], table["latent"], strict=True)]
        out[f"{name}_low"] = [row.low if row else np.nan for row in rows]
        out[f"{name}_high"] = [row.high if row else np.nan for row in rows]
    return out


def _join_distinct(texts: Iterable[object]) -> str:
    return "; ".join(dict.fromkeys(map(str, texts)))
