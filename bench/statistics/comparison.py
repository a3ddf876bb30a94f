"""Paired comparisons of priors: differences in NLL, their intervals and verdicts.

The unit of comparison is the difference of two priors on the same image at the same seed,

    d[s, i] = NLL of the prior - NLL of the reference       nats per image, negative = better

with the intervals of `bench.statistics.intervals`. Where the NLLs of single images are not known,
the difference of the means over images takes the place of one image (see `mean_loglik`). `summary`
compares every arm of a frame of trials (one row per trial, as `bench.results.read` returns it) to
the reference, and `pairs` compares each arm to each other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.statistics.arms import summarise_arm
from bench.statistics.frames import (
    COMPARABLE_COLUMNS,
    axes,
    group_by_setting,
    priors,
    reference,
)
from bench.statistics.intervals import (
    ALPHA,
    components,
    crossed,
    half_width_limit,
    holm,
    moments,
    seeds_for,
    seeds_needed,
)

__all__ = [
    "ESTIMATOR_COLUMNS",
    "OVER_BOTH",
    "OVER_SEEDS",
    "RESOLUTION",
    "differences",
    "mean_loglik",
    "pairs",
    "sampled_over",
    "scores",
    "summary",
]


RESOLUTION = 0.1
"""The half-width, nats, for which needed seeds are counted by default."""
ESTIMATOR_COLUMNS = ("bias_difference", "monte_carlo_se")
"""What the estimator of the NLL adds to a difference; see `summary`."""
OVER_BOTH, OVER_SEEDS = "seeds and images", "seeds"
"""The samples that the interval of a difference can be over."""


class ArmScores(NamedTuple):
    """Per-image NLL of one arm's complete seeds: nll (S, N), nats."""

    seeds: list[int]
    nll: NDArray[np.float64]


def scores(arm: pd.DataFrame, loglik: Mapping[str, NDArray[Any]]) -> ArmScores:
    """Returns the scores of the complete trials of an arm, by seed."""
    done = arm[arm["status"] == "complete"]
    run_of = dict(zip(done["seed"], done["run_id"], strict=True))
    seeds = sorted(seed for seed, run in run_of.items() if run in loglik)
    values = [loglik[run_of[seed]] for seed in seeds]
    if len({len(row) for row in values}) > 1:
        raise ValueError("Expected the same test images in all runs; got different numbers.")
    return ArmScores(seeds, -np.asarray(values, dtype=np.float64))


def differences(a: ArmScores, b: ArmScores) -> NDArray[np.float64]:
    """Returns NLL of `a` minus NLL of `b` on their common seeds, (S, N) nats per image."""
    seeds = set(a.seeds) & set(b.seeds)
    if not seeds:
        return np.empty((0, 0))
    minuend, subtrahend = (
        side.nll if len(seeds) == len(side.seeds) else side.nll[[s in seeds for s in side.seeds]]
        for side in (a, b)
    )
    if minuend.shape != subtrahend.shape:
        raise ValueError("Expected the same test images in all runs; got different numbers.")
    return minuend - subtrahend


def _estimator_part(arm: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Returns what the estimator adds to the difference of two arms on their common seeds.

    The Monte Carlo errors of two priors count as independent: common noise makes the standard
    error of their difference smaller.
    """
    metrics = ["test/nll_bias", "test/nll_se"]
    both = [
        rows[rows["status"] == "complete"].set_index("seed").reindex(columns=metrics)
        for rows in (arm, other)
    ]
    seeds = both[0].index.intersection(both[1].index)
    if not len(seeds):
        return dict.fromkeys(ESTIMATOR_COLUMNS, float("nan"))
    (bias, se), (other_bias, other_se) = (rows.loc[seeds].to_numpy(np.float64).T for rows in both)
    parts = (bias - other_bias).mean(), np.sqrt((se**2 + other_se**2).sum()) / len(seeds)
    return dict(zip(ESTIMATOR_COLUMNS, map(float, parts), strict=True))


def _verdict(difference: float, p_holm: float) -> str:
    if np.isnan(p_holm):
        return "too few seeds"
    if p_holm >= ALPHA:
        return "not resolved"
    return "better" if difference < 0 else "worse"


def _compare(family: Iterable[NDArray[np.float64]], resolution: float) -> list[dict[str, Any]]:
    """Returns the columns of a comparison for each array of differences of one Holm family."""
    tables = [moments(d) for d in family]
    results = [crossed(m) for m in tables]
    p = np.array([i.p for i in results])
    rows = []
    for m, i, p_holm in zip(tables, results, holm(p), strict=True):
        verdict = _verdict(i.mean, p_holm)
        # Holm divides alpha by the number of hypotheses that are no easier than this one
        alpha = ALPHA / max(int((p >= i.p).sum()), 1)
        needed = seeds_needed(m, alpha=alpha) if verdict == "not resolved" else float("nan")
        spread = {f"sd_{name}": sd for name, sd in components(m)._asdict().items()}
        rows.append(
            {"difference": i.mean, "low": i.low, "high": i.high, "p": i.p, "p_holm": p_holm}
            | {"df": i.df, "pairs": i.seeds, "images": i.images, "note": i.note}
            | {"covers": OVER_BOTH if i.images > 1 else OVER_SEEDS if i.images else ""}
            | {"verdict": verdict, "seeds_needed": needed, **spread, "resolution": resolution}
            | {"seeds_for_resolution": seeds_for(m, resolution)}
            | {"half_width_limit": half_width_limit(m)}
        )
    return rows


def summary(
    frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]], *, resolution: float = RESOLUTION
) -> pd.DataFrame:
    """Returns one row per arm: its means, and its paired difference in NLL to the reference.

    An arm is a prior at one setting of `axes`, see `summarise_arm`. `low` and `high` are
    `crossed`; `covers` holds the samples that they are over, seeds and images or seeds alone.
    The Holm family of `p_holm` is the priors compared to the reference within one setting,
    usually one latent size.

    `verdict` is "reference", "better", "worse" (`p_holm` below 0.05), "not resolved", or "too few
    seeds" (under three pairs). `seeds_needed` is given where the verdict is "not resolved", at the
    level of the Holm test. `mark` counts diverged and failed seeds; their pairs are excluded.
    `rank`, by NLL within a setting, is missing for an arm with a diverged seed.

    `sd_seed`, `sd_image`, `sd_rest` (nats) are the difference's `components`. From them,
    `seeds_for_resolution` is the number of seeds whose 95 % interval, not adjusted, has a
    half-width below `resolution`; `inf` where it is above 1,000, or where `half_width_limit`, the
    half-width from the images alone, is not below `resolution`.

    `bias_difference` is the difference of the NLLs' estimated biases, which is in no interval;
    `monte_carlo_se` is the difference's Monte Carlo standard error, which is part of the variance
    that every interval is made of. Both are nats, from the metrics `nll_bias` and `nll_se`.

    Arguments:
        frame: One row per trial, validated.
        loglik: From run id to per-image test log-likelihoods, (N,) nats, images in one order.
        resolution: The wanted half-width, nats.

    Raises:
        ValueError: The numbers of images differ.
    """
    first, table = reference(frame), []
    for setting, rows in group_by_setting(frame):
        arms = {label: rows[rows["prior"] == label] for label in priors(frame)}
        arms = {label: arm for label, arm in arms.items() if len(arm)}
        base = scores(arms.get(first, rows.iloc[:0]), loglik)
        compared = [label for label in arms if label != first]
        family = (differences(scores(arms[label], loglik), base) for label in compared)
        comparisons = {
            label: row | _estimator_part(arms[label], arms.get(first, rows.iloc[:0]))
            for label, row in zip(compared, _compare(family, resolution), strict=True)
        }
        for label, arm in arms.items():
            paired = comparisons.get(label, {"pairs": 0, "note": "", "verdict": "reference"})
            table.append(setting | {"prior": label} | summarise_arm(arm) | paired)
    numbers = ["difference", "low", "high", "p", "p_holm", "df", "images", "seeds_needed"]
    numbers += ["sd_seed", "sd_image", "sd_rest", "seeds_for_resolution", "half_width_limit"]
    numbers += [*ESTIMATOR_COLUMNS, "covers"]
    out = pd.DataFrame(table).assign(resolution=resolution)
    out = out.reindex(columns=list(dict.fromkeys([*out.columns, *numbers])))
    sound = out["nll"].where(out["diverged"] == 0)
    out["rank"] = sound.groupby([out[c] for c in axes(frame)], dropna=False).rank()
    shared = {c: frame[c].iloc[0] for c in COMPARABLE_COLUMNS if c in frame}
    if (
        "data_hash" in shared and frame["data_hash"].nunique() > 1
    ):  # see `frames.conflicting_columns`
        shared["data_hash"] = ", ".join(frame["data_hash"].dropna().unique())
    return out.assign(reference=first, **shared)


def pairs(
    frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]], *, resolution: float = RESOLUTION
) -> pd.DataFrame:
    """Returns every pair of priors of each setting, Holm-adjusted over the pairs of a setting.

    Columns are those of `summary`, with `prior` and `against`; each pair occurs once. `diverged`
    counts the seeds at which at least one of the two diverged.
    """
    table = []
    for setting, rows in group_by_setting(frame):
        arms = [rows[rows["prior"] == label] for label in priors(rows)]
        lost = [set(arm["seed"][arm["status"] == "diverged"]) for arm in arms]
        nlls = [scores(arm, loglik) for arm in arms]
        labels = priors(rows)
        indices = [(b, a) for a in range(len(arms)) for b in range(a + 1, len(arms))]
        family = (differences(nlls[b], nlls[a]) for b, a in indices)
        for (b, a), row in zip(indices, _compare(family, resolution), strict=True):
            both = {"prior": labels[b], "against": labels[a]}
            part = _estimator_part(arms[b], arms[a])
            table.append(setting | both | row | part | {"diverged": len(lost[a] | lost[b])})
    return pd.DataFrame(table)


def mean_loglik(frame: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """Returns the mean log-likelihood of each complete trial, (1,) nats, by run.

    It stands for one image where per-image scores are not known; intervals are then over seeds.
    """
    done = frame[frame["status"] == "complete"]
    nlls = zip(done["run_id"], done["test/nll"], strict=True)
    return {run: -np.array([nll]) for run, nll in nlls}


def sampled_over(table: pd.DataFrame) -> str:
    """Returns the samples that the intervals of a table are over; nothing without a pair."""
    return next((words for words in (OVER_SEEDS, OVER_BOTH) if words in set(table["covers"])), "")
