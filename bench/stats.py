"""Say whether a prior helps, by how much, and whether it could be the seeds.

The unit of comparison is the difference of two priors on the same image at the same seed,

    d[s, i] = NLL of the prior - NLL of the reference       nats per image, negative = better

Seeds and images are crossed random effects without replication:

    d[s, i] = mean + seed[s] + image[i] + rest[s, i]
    Var(mean of d) = V_seed / S + V_image / N + V_rest / (S N)

`crossed` estimates it and gives a t interval; `summary` does so for every arm of a frame of trials
(one row a trial, as `bench.tracking` reads it back), and `sentences` says what was found in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from flowvae.trial import Trial

__all__ = [
    "Interval",
    "axes",
    "contexts",
    "crossed",
    "holm",
    "over_seeds",
    "pairs",
    "priors",
    "reference",
    "seeds_needed",
    "sentences",
    "settle",
    "summary",
]

ALPHA = 0.05
LOST = ("diverged", "failed", "missing")  # a trial without a score, and why
MOST_SEEDS = 1000  # beyond this "how many seeds would it take" has no use as a number
ONE_OF = (
    "dataset",
    "binarise",
    "data_hash",
    "nll_samples",
)  # numbers across these never share a table
PARAMETERS = frozenset(field.name for field in fields(Trial)) | {"binarise", "valid"}


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided 95 % interval over seeds, in nats per image.

    `p` tests mean = 0 with the same pivot. `note` is "" for four seeds or more, "indicative" for
    three; with fewer, `low`, `high`, `p` and `df` are NaN and the note says why.
    """

    mean: float
    low: float
    high: float
    p: float
    df: float
    seeds: int
    images: int
    note: str


def _interval(mean: float, variance: float, df: float, seeds: int, images: int) -> Interval:
    """Return the t interval of a mean whose estimated variance has `df` degrees of freedom."""
    if seeds < 3:
        nan, count = float("nan"), {0: "no seeds", 1: "1 seed"}.get(seeds, f"{seeds} seeds")
        note = f"{count}: too few seeds for an interval over seeds"
        return Interval(mean, nan, nan, nan, nan, seeds, images, note)
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf(1 - ALPHA / 2, df)) * error
    # Equal in every seed and image: nothing to test when zero, no doubt left when not.
    p = 2 * float(stats.t.sf(abs(mean) / error, df)) if error > 0 else float(mean == 0)
    note = "indicative" if seeds == 3 else ""
    return Interval(mean, mean - half, mean + half, p, df, seeds, images, note)


def _mean_squares(d: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean squares (seed, image, rest) of `d` (S, N), floored at that of the rest.

    Flooring a mean square at the rest's is truncating its variance component at zero.
    """
    (s, n), by_seed, by_image = d.shape, d.mean(1), d.mean(0)
    seed = n * float(np.var(by_seed, ddof=1))
    if n == 1:  # images and rest cannot be told apart from seeds: the one-sample t interval
        return seed, 0.0, 0.0
    image = s * float(np.var(by_image, ddof=1))
    residual = d - by_seed[:, None] - by_image + d.mean()
    rest = float(np.sum(residual**2)) / ((s - 1) * (n - 1))
    return max(seed, rest), max(image, rest), rest


def crossed(d: ArrayLike) -> Interval:
    """Return mean and interval of differences with seeds and images as crossed random effects.

    Method of moments, MS the mean squares of the two-way analysis of variance:

        Var(mean) = (MS_seed + MS_image - MS_rest) / (S N)
        df        = (MS_seed + MS_image - MS_rest)^2
                    / (MS_seed^2 / (S-1) + MS_image^2 / (N-1) + MS_rest^2 / ((S-1) (N-1)))

    A negative component is truncated at zero by flooring MS_seed and MS_image at MS_rest, in the
    variance *and* in the degrees of freedom. With raw mean squares in the latter, a chance MS_seed
    near zero would pass for a precisely known one, with df near S N, just where the variance is
    underestimated. The price is an interval too wide where seeds truly add nothing.

    Simulated coverage of the 95 % interval (4,000 replicates, 100 images): 5 seeds 0.943 to 0.956
    where seeds or images dominate, 0.98 where N V_seed = V_rest, 0.996 where neither adds any;
    3 seeds as low as 0.93 where seed and image variances compete, hence "indicative".

    References:
        An Approximate Distribution of Estimates of Variance Components (Satterthwaite, 1946)
        https://doi.org/10.2307/3002019
        Variance Components (Searle, Casella and McCulloch, 1992), chapter 4

    Arguments:
        d: Differences, (S, N): S seeds, N images; nats per image.

    Raises:
        ValueError: If `d` has not two dimensions or holds a value that is not finite.
    """
    d = np.asarray(d, dtype=np.float64)
    if d.ndim != 2:
        raise ValueError(f"Expected differences of shape (seeds, images); got {d.shape}")
    if not np.isfinite(d).all():
        raise ValueError(
            f"Expected finite differences; got {int((~np.isfinite(d)).sum())} that are not. "
            "Leave the diverged seed out, and say so."
        )
    s, n = d.shape
    mean = float(d.mean()) if d.size else float("nan")
    if s < 2 or n < 1:
        return _interval(mean, float("nan"), float("nan"), s if n else 0, n)
    seed, image, rest = _mean_squares(d)
    total = seed + image - rest
    spread = (seed**2 + (image**2 * (s - 1) + rest**2) / max(n - 1, 1)) / (s - 1)
    df = total**2 / spread if spread > 0 else float(s - 1)
    return _interval(mean, total / (s * n), df, s, n)


def over_seeds(values: ArrayLike, *, images: int = 0) -> Interval:
    """Return mean and t interval of one number a seed, on a test set taken as given.

    The interval for the *level* of the NLL: the images are the benchmark, only seeds are random.

    Arguments:
        values: One value a seed, (S,); nats per image.
        images: Number of images behind each value, kept as a record.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"Expected values of shape (seeds,); got {values.shape}")
    each = crossed(values[:, None])
    return Interval(**{**vars(each), "images": images})


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return Holm's adjusted p-values, (m,); NaN is passed through and not counted.

    References:
        A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979)
        https://www.jstor.org/stable/4615733

    Example:
        >>> holm([0.01, 0.04, 0.03, 0.005]).round(3).tolist()
        [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # argsort puts NaN last
    steps = np.arange(len(order), 0, -1)
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1)
    return adjusted


def seeds_needed(d: ArrayLike, *, alpha: float = ALPHA) -> float:
    """Return how many seeds would resolve the observed mean of `d` (S, N), all else as observed.

    The smallest number of seeds, above those there are, whose t interval at the estimated variance
    components and on the same N images leaves zero out. An approximation: it takes the observed
    difference for the true one, at which so many seeds succeed about half of the time, and
    components from few seeds are rough. `inf` beyond 1,000 seeds, NaN with fewer than 3 to go by.
    """
    d = np.asarray(d, dtype=np.float64)
    s, n = d.shape
    if s < 3 or n < 1:
        return float("nan")
    seed, image, rest = _mean_squares(d)
    v_image = (image - rest) / s
    more = np.arange(s + 1, MOST_SEEDS + 1, dtype=np.float64)
    image_then = rest + more * v_image  # the mean square to expect from so many seeds
    total = seed + image_then - rest
    spread = (seed**2 + (image_then**2 * (more - 1) + rest**2) / max(n - 1, 1)) / (more - 1)
    df = np.divide(total**2, spread, out=more - 1, where=spread > 0)
    half = stats.t.ppf(1 - alpha / 2, df) * np.sqrt(total / (more * n))
    enough = np.flatnonzero(half < abs(d.mean()))
    return float(more[enough[0]]) if len(enough) else float("inf")


def priors(frame: pd.DataFrame) -> list[str]:
    """Return the priors in the order in which the user typed them."""
    return [str(label) for label in dict.fromkeys(frame["prior"])]


def reference(frame: pd.DataFrame) -> str:
    """Return the prior that the others are compared to: "gauss" where present, else the first."""
    labels = priors(frame)
    if not labels:
        raise ValueError("Expected at least one trial; got an empty frame. Run some trials first.")
    return "gauss" if "gauss" in labels else labels[0]


def axes(frame: pd.DataFrame) -> list[str]:
    """Return the columns besides seed and prior that were crossed: what a pair has in common.

    Always net and latent; another parameter where one prior ran with several of its values at one
    net and latent. A parameter that only differs from prior to prior (a learning rate tuned for
    each) belongs to the prior and is no axis, or no pair would be left.
    """
    asked = PARAMETERS - {"net", "latent", "prior", "seed"}
    others = [c for c in frame.columns if c in asked]
    counts = frame.groupby(["net", "latent", "prior"])[others].nunique(dropna=False)
    return ["net", "latent", *(c for c in others if counts[c].max() > 1)]


def settle(frame: pd.DataFrame) -> pd.DataFrame:
    """Check the frame; count a complete trial whose test NLL is no finite number as diverged.

    Raises:
        ValueError: If datasets, binarisations or numbers of importance samples differ, or if two
            rows are one trial.
    """
    reference(frame)  # raises where there is no trial
    for column in ONE_OF:
        found = frame[column].dropna().unique()  # a missing trial may have none
        if len(found) > 1:
            values = ", ".join(map(str, found))
            raise ValueError(
                f"Expected one {column}; got {values}. These numbers cannot be compared: "
                f"pass the rows of one {column} at a time."
            )
    same = [*axes(frame), "prior", "seed"]
    if (twice := frame.duplicated(same)).any():
        row = frame.loc[twice, same].iloc[0].to_dict()
        raise ValueError(f"Expected one row a trial; got two with {row}. Keep one of them.")
    # MLflow returns infinity as 1.8e308
    nll = frame["test/nll"] if "test/nll" in frame else pd.Series(np.nan, frame.index)
    broken = (frame["status"] == "complete") & ~(nll.abs() < 1e300)
    return frame.assign(status=frame["status"].mask(broken, "diverged"), **{"test/nll": nll})


def contexts(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each setting of the axes, sorted, with its rows: one family of priors."""
    by = axes(frame)
    for key, rows in frame.groupby(by, dropna=False):
        yield dict(zip(by, key, strict=True)), rows


def _differences(
    a: pd.DataFrame, b: pd.DataFrame, loglik: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Return NLL of `a` minus NLL of `b` on their common complete seeds, (S, N) nats per image."""
    found = []
    for rows in (a, b):
        rows = rows[(rows["status"] == "complete") & rows["run_id"].isin(list(loglik))]
        found.append({s: loglik[r] for s, r in zip(rows["seed"], rows["run_id"], strict=True)})
    ours, theirs = found
    seeds = sorted(ours.keys() & theirs.keys())
    if len({len(side[s]) for side in found for s in seeds}) > 1:
        raise ValueError("Expected the same test images in all runs; got different numbers.")
    if not seeds:
        return np.empty((0, 0))
    return np.stack([np.subtract(theirs[s], ours[s], dtype=np.float64) for s in seeds])


def _verdict(difference: float, p_holm: float) -> str:
    if np.isnan(p_holm):
        return "too few seeds"
    if p_holm >= ALPHA:
        return "not resolved"
    return "better" if difference < 0 else "worse"


def _compared(each: Sequence[NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Return the columns of a comparison for each array of differences of one Holm family."""
    found = [crossed(d) for d in each]
    p = np.array([i.p for i in found])
    rows = []
    for d, i, p_holm in zip(each, found, holm(p), strict=True):
        verdict = _verdict(i.mean, p_holm)
        # Holm divides alpha by the number of hypotheses that are no easier than this one
        alpha = ALPHA / max(int((p >= i.p).sum()), 1)
        needed = seeds_needed(d, alpha=alpha) if verdict == "not resolved" else float("nan")
        rows.append(
            {"difference": i.mean, "low": i.low, "high": i.high, "p": i.p, "p_holm": p_holm}
            | {"df": i.df, "pairs": i.seeds, "images": i.images, "note": i.note}
            | {"verdict": verdict, "seeds_needed": needed}
        )
    return rows


def _level(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the columns that describe one arm by itself."""
    done = rows[rows["status"] == "complete"]
    counts = {status: int((rows["status"] == status).sum()) for status in LOST}
    marks = [f"{n} of {len(rows)} seeds {status}" for status, n in counts.items() if n]
    nll = over_seeds(done["test/nll"].to_numpy())

    def mean(name: str) -> float:
        return float(done[name].mean()) if name in done else float("nan")

    return {
        "seeds": len(done),
        **counts,
        "mark": ", ".join(marks),
        **{"nll": nll.mean, "nll_low": nll.low, "nll_high": nll.high},
        **{"elbo": mean("test/elbo"), "train_elbo": mean("train/elbo")},
        **{"rate": mean("test/rate"), "distortion": mean("test/distortion")},
        "images_per_second": mean("time/images_per_second"),
        "prior_parameters": mean("model/prior_parameters"),
        "parameters": mean("model/parameters"),
        "device": "; ".join(dict.fromkeys(str(d) for d in rows.get("device", ()))),
    }


def summary(frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    """Return one row an arm: its level, and its paired difference in NLL to the reference.

    An arm is a prior at one setting of `axes`. `nll_low`, `nll_high` are over seeds on the fixed
    test set; `low` and `high` are `crossed`. The Holm family of `p_holm` is the priors compared to
    the reference within one setting, usually one latent size: each is its own question.

    `verdict` is "reference", "better", "worse" (`p_holm` below 0.05), "not resolved", or "too few
    seeds" (under three pairs). `seeds_needed` is for a not resolved one, at the level that Holm
    tests it at. `mark` counts diverged and failed seeds; their pairs are out. `rank`, by
    NLL within a setting, is missing for an arm with a diverged seed: its survivors are not all.

    Arguments:
        frame: One row a trial.
        loglik: From run id to per-image test log-likelihoods, (N,) nats, images in one order.

    Raises:
        ValueError: If the rows cannot be compared (see `settle`) or the numbers of images differ.
    """
    frame = settle(frame)
    first, table = reference(frame), []
    for setting, rows in contexts(frame):
        arms = {label: rows[rows["prior"] == label] for label in priors(frame)}
        arms = {label: arm for label, arm in arms.items() if len(arm)}
        base = arms.get(first, rows.iloc[:0])
        compared = [label for label in arms if label != first]
        each = [_differences(arms[label], base, loglik) for label in compared]
        told = dict(zip(compared, _compared(each), strict=True))
        for label, arm in arms.items():
            paired = told.get(label, {"pairs": 0, "note": "", "verdict": "reference"})
            table.append(setting | {"prior": label} | _level(arm) | paired)
    numbers = ["difference", "low", "high", "p", "p_holm", "df", "images", "seeds_needed"]
    out = pd.DataFrame(table)
    out = out.reindex(columns=list(dict.fromkeys([*out.columns, *numbers])))
    sound = out["nll"].where(out["diverged"] == 0)
    out["rank"] = sound.groupby([out[c] for c in axes(frame)], dropna=False).rank()
    return out.assign(reference=first, **{c: frame[c].iloc[0] for c in ONE_OF})


def pairs(frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    """Return every pair of priors within every setting, Holm-adjusted over the pairs of a setting.

    Columns as in `summary`, with `prior` and `against`: the matrix, in long form, each pair once.
    """
    frame, table = settle(frame), []
    for setting, rows in contexts(frame):
        arms = [(label, rows[rows["prior"] == label]) for label in priors(rows)]
        each = [(b, a) for k, a in enumerate(arms) for b in arms[k + 1 :]]
        told = _compared([_differences(mine, other, loglik) for (_, mine), (_, other) in each])
        for ((label, _), (against, _)), row in zip(each, told, strict=True):
            table.append(setting | {"prior": label, "against": against} | row)
    return pd.DataFrame(table)


def _p(value: float) -> str:
    return "Holm p < 0.001" if value < 0.001 else f"Holm p = {value:.3f}"


def sentences(summary: pd.DataFrame) -> list[str]:
    """Return what `summary` found in words, one sentence an arm that is not the reference.

    The reference gets a sentence where it stands alone or has lost a seed.
    """
    columns = list(summary.columns)
    by = columns[: columns.index("prior")]
    told = [c for c in by if c == "latent" or summary[c].nunique(dropna=False) > 1]
    company = summary.groupby(by, dropna=False)["prior"].transform("count")
    return [
        _sentence(row, told, alone=bool(count == 1))
        for (_, row), count in zip(summary.iterrows(), company, strict=True)
        if row["verdict"] != "reference" or count == 1 or row["mark"]
    ]


def _sentence(row: pd.Series, told: Sequence[str], *, alone: bool) -> str:
    where = ", ".join(f"D = {row[c]}" if c == "latent" else f"{c} = {row[c]}" for c in told)
    prior, against = row["prior"], row["reference"]
    d, low, high = row["difference"], row["low"], row["high"]
    n = f"{row['pairs']} seeds"
    hint = f"; {row['note']}" if row["note"] == "indicative" else ""
    mark = f"; {row['mark']}" if row["mark"] else ""
    if row["verdict"] == "reference" or alone:
        role = ", the reference," if row["verdict"] == "reference" and not alone else ""
        if not row["seeds"]:
            return f"At {where}, {prior}{role} has no complete seed{mark}."
        span = f" [{row['nll_low']:.1f}, {row['nll_high']:.1f}]" if row["seeds"] >= 3 else ""
        some = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
        value = f"{row['nll']:.1f} nats{span} ({some}){mark}"
        return f"At {where}, {prior}{role} has a test NLL of {value}."
    if row["verdict"] == "too few seeds":
        got = f": {d:+.1f} nats, {row['note']}" if row["pairs"] else ": no complete pair"
        return f"At {where}, {prior} against {against}{got}{mark}."
    if row["verdict"] == "not resolved":
        more = row["seeds_needed"]
        many = f"more than {MOST_SEEDS}" if np.isinf(more) else f"about {more:.0f}"
        return (
            f"At {where}, {prior} against {against} is not resolved: {d:+.1f} nats "
            f"[{low:+.1f}, {high:+.1f}] ({n}, {_p(row['p_holm'])}{hint}); "
            f"{many} seeds would resolve it{mark}."
        )
    verb, (low, high) = ("lowers", (-high, -low)) if d < 0 else ("raises", (low, high))
    return (
        f"At {where}, {prior} {verb} the test NLL by {abs(d):.1f} nats [{low:.1f}, {high:.1f}] "
        f"against {against} ({n}, {_p(row['p_holm'])}{hint}){mark}."
    )
