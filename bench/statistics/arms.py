"""What one arm is by itself: how good, at what cost, and what a reader must know of it.

An arm is a prior at one setting. Its label is the prior's short spec, with " post-hoc" after it
where the prior was fitted to a frozen encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from bench.statistics.intervals import over_seeds
from flowvae.errors import InputError
from flowvae.specs.registry import Spec
from flowvae.trial import registries

__all__ = [
    "EXCLUDED_TIMINGS",
    "POST_HOC",
    "SPEEDS",
    "THROUGHPUT",
    "UNSCORED_STATUSES",
    "add_intervals",
    "prior_caveat",
    "prior_spec",
    "share_bad_samples",
    "share_outside",
    "summarise_arm",
    "timed_alone",
    "timing_devices",
]


UNSCORED_STATUSES = ("diverged", "failed", "missing")  # a trial without a score, and why
POST_HOC = " post-hoc"
# means over seeds of what is measured on the test images
MEANS = (
    *("rate", "distortion", "ess", "khat_high", "elbo_gap", "log_images"),
    *("marginal_kl", "marginal_kl_out", "index_code", "index_code_out", "saturated"),
    *("active_units", "active_units_relative", "log_z_error"),
)
THROUGHPUT = "time/images_per_second"
SPEEDS = ("images_per_second", "samples_per_second", "train_seconds")
SIZES = ("prior_parameters", "parameters")
EXCLUDED_TIMINGS = {
    "shared": "timed on a shared device",
    "resumed": "timed in parts, with several numbers of threads",
}
"""Timings that are in no mean of speeds, and why, by what `timing` tells."""


def prior_spec(label: str) -> Spec:
    """Return the name and the options of an arm's prior.

    Example:
        >>> prior_spec("nsf[bins=16] post-hoc")
        Spec(name='nsf', options=(('bins', '16'),))
    """
    try:
        return Spec.parse(label.removesuffix(POST_HOC))
    except InputError:  # a label that no registry made
        return Spec(label)


def prior_caveat(label: str) -> str:
    """Return what a reader of an arm's numbers must know of its prior.

    Nothing is known of a prior that cannot be imported here: old results are read all the same.
    """
    try:
        return registries()["prior"][prior_spec(label).name].caveat
    except InputError:
        return ""


def share_outside(
    runs: pd.DataFrame, of: Literal["posterior", "prior"] = "posterior"
) -> pd.Series:
    """Return the share of samples outside the box at each run's worst spline; NaN without one.

    Samples are counted coordinate by coordinate, as `flowvae.evaluation.spline_boxes` does.
    """
    layers = [c for c in runs if str(c).startswith(f"test/outside_{of}_l")]
    return runs[layers].max(axis=1).astype(float)


def share_bad_samples(runs: pd.DataFrame) -> pd.Series:
    """Return the share of each run's prior samples that are not finite."""
    from flowvae.evaluation.elbo_surgery import PRIOR_SAMPLES  # imports torch

    def column(name: str) -> pd.Series:
        return runs.get(f"test/{name}", pd.Series(float("nan"), runs.index))

    return column("bad_samples") / column("prior_samples").fillna(PRIOR_SAMPLES)


def timed_alone(runs: pd.DataFrame) -> pd.Series:
    """Tell which runs were timed whole and alone on the device; runs that do not say were."""
    return ~runs.get("timing", pd.Series("", runs.index)).isin(EXCLUDED_TIMINGS)


def timing_devices(runs: pd.DataFrame) -> pd.Series:
    """Return the device that each run was timed on: another one, if it was timed once more."""
    return runs["timing_device"] if "timing_device" in runs else runs["device"]


def summarise_arm(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the columns that describe one arm, means over its complete seeds, by seed.

    `nll_low`, `nll_high` are over seeds on the fixed test set. Speeds are over the `timed` seeds,
    those of `alone`: `timing` tells of `EXCLUDED_TIMINGS` what befell all, where there are none.
    """
    rows = rows.sort_values("seed", kind="stable")  # or the last bit depends on the order
    done = rows[rows["status"] == "complete"]
    timed = done[timed_alone(done)]
    counts = {status: int((rows["status"] == status).sum()) for status in UNSCORED_STATUSES}
    marks = [f"{n} of {len(rows)} seeds {status}" for status, n in counts.items() if n]
    nll = over_seeds(done["test/nll"].to_numpy())

    def mean(name: str, of: pd.DataFrame = done) -> float:
        return float(of[name].mean()) if name in of else float("nan")

    return {
        "seeds": len(done),
        **counts,
        "mark": ", ".join(marks),
        **{"nll": nll.mean, "nll_low": nll.low, "nll_high": nll.high},
        **{"elbo": mean("test/elbo"), "train_elbo": mean("train/elbo")},
        **{name: mean(f"test/{name}") for name in MEANS},
        "bad_share": float(share_bad_samples(done).mean()),
        "outside_posterior": float(share_outside(done).mean()),
        "outside_prior": float(share_outside(done, "prior").mean()),
        **{name: mean(f"time/{name}", timed) for name in SPEEDS},
        "timing": "" if done.empty else _joined(done["timing"]) if timed.empty else "alone",
        "timed": len(timed),
        "timing_device": _joined(timing_devices(timed)) if "device" in timed else "",
        # known of a diverged model too
        **{name: mean(f"model/{name}", rows) for name in SIZES},
        "device": _joined(rows.get("device", ())),
        **({"source": _joined(rows["source"])} if "source" in rows else {}),
        "caveat": prior_caveat(str(rows["prior"].iloc[0])),
    }


def add_intervals(
    table: pd.DataFrame, frame: pd.DataFrame, columns: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return a table of arms with the ends of intervals over seeds, `rate_low` and `rate_high`.

    Arguments:
        table: One row an arm, at one setting but for prior and latent size.
        frame: The trials behind it.
        columns: The name of a number, and the columns of `frame` that it is the sum of.
    """
    done = frame[frame["status"] == "complete"]
    out = table.copy()
    for name, parts in columns.items():
        values = done.reindex(columns=list(parts)).sum(axis=1, skipna=False)
        known = {
            arm: over_seeds(seeds.dropna().to_numpy())
            for arm, seeds in values.groupby([done["prior"], done["latent"]])
            if seeds.notna().any()
        }
        found = [known.get(arm) for arm in zip(table["prior"], table["latent"], strict=True)]
        out[f"{name}_low"] = [one.low if one else np.nan for one in found]
        out[f"{name}_high"] = [one.high if one else np.nan for one in found]
    return out


def _joined(devices: Iterable[object]) -> str:
    return "; ".join(dict.fromkeys(map(str, devices)))
