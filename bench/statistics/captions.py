"""Captions that figures and reports share: the estimator, and excluded timings."""

from __future__ import annotations

import pandas as pd

from bench.statistics.arms import EXCLUDED_TIMINGS, timed_alone
from flowvae.estimator import ESTIMATORS

__all__ = [
    "CROSS",
    "DOT",
    "FEW_SEEDS",
    "TEST_IMAGES",
    "counted_by_arm",
    "estimator_settings",
    "untimed",
]


DOT, CROSS = " \N{MIDDLE DOT} ", "\N{MULTIPLICATION SIGN}"
FEW_SEEDS = "fewer than three seeds: no interval over seeds"
TEST_IMAGES = "test images"
"""The key of the test images in a mapping of samples by run."""


def estimator_settings(row: pd.Series) -> str:
    """Returns the estimator of the NLL and K, then precision and images if not the usual."""
    facts = [ESTIMATORS[row["nll_estimator"]].describe(row["nll_samples"])]
    if row["nll_precision"] != "float32":
        facts.append(str(row["nll_precision"]))
    if row.get("nll_images", "all") != "all":
        facts.append(f"the first {row['nll_images']} test images")
    return ", ".join(facts)


def counted_by_arm(trials: pd.DataFrame) -> str:
    """Returns the number of trials of each arm, such as `maf at D = 2 (1), 16 (3)`."""
    parts = []
    for prior, latents in trials.groupby("prior", sort=False)["latent"]:
        counts = latents.value_counts(sort=False).sort_index()
        parts.append(f"{prior} at D = " + ", ".join(f"{d} ({n})" for d, n in counts.items()))
    return "; ".join(parts)


def untimed(trials: pd.DataFrame) -> str:
    """Returns the excluded timings with the reasons, and how to measure them; or nothing."""
    done = trials[trials["status"] == "complete"]
    if timed_alone(done).all():
        return ""
    facts = []
    for timing, rows in done[~timed_alone(done)].groupby("timing", sort=False):
        which = "all" if len(rows) == len(done) > 1 else counted_by_arm(rows)
        facts.append(f"{EXCLUDED_TIMINGS[str(timing)]} and left out: {which}")
    return DOT.join([*facts, "`--executor serial` measures speeds, one job at a time"])
