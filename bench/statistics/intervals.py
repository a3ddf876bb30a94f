"""Intervals of a mean over seeds and images, both random samples, and seeds for a narrower one.

A table of paired differences d (S, N), S seeds by N images, nats per image, is modelled with
crossed random effects without replication:

    d[s, i] = mean + seed[s] + image[i] + rest[s, i]
    Var(mean of d) = V_seed / S + V_image / N + V_rest / (S N)

`crossed` returns the interval of the mean, `components` the standard deviations of its parts,
`seeds_for` and `seeds_needed` the number of seeds for a narrower one. All of them use `moments`:
the size of a table and three mean squares hold all that it says about its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

__all__ = [
    "ALPHA",
    "MAX_SEEDS",
    "Components",
    "Interval",
    "Moments",
    "components",
    "crossed",
    "half_width",
    "half_width_limit",
    "holm",
    "moments",
    "over_seeds",
    "seeds_for",
    "seeds_needed",
]


ALPHA = 0.05
MAX_SEEDS = 1000
"""The largest number of seeds that is searched; a larger one would not help a reader."""


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided 95 % interval over seeds, in nats per image.

    `p` tests mean = 0 with the same pivot. `note` is "" for four seeds or more, "indicative" for
    three; with fewer, `low`, `high`, `p` and `df` are NaN and the note gives the reason.
    """

    mean: float
    low: float
    high: float
    p: float
    df: float
    seeds: int
    images: int
    note: str


class Moments(NamedTuple):
    """Mean and mean squares of a table (S, N), or of many tables of one shape (...).

    Arguments:
        mean: The mean difference, nats per image.
        seed: The mean square between seeds, no less than that of the rest; nats^2.
        image: The mean square between images, no less than that of the rest; nats^2.
        rest: The mean square of the residuals; nats^2.
        seeds: S.
        images: N.
    """

    mean: Any
    seed: Any
    image: Any
    rest: Any
    seeds: int
    images: int


class Components(NamedTuple):
    """Standard deviations of the three random effects, nats."""

    seed: float
    image: float
    rest: float


def moments(d: ArrayLike) -> Moments:
    """Returns the mean and the mean squares of `d` (..., S, N).

    Flooring the mean squares of seeds and images at that of the rest is truncating their variance
    components at zero. With one image the three cannot be distinguished and all counts as that of
    seeds; with one seed, or without images, the mean squares are NaN.

    Raises:
        ValueError: If `d` has fewer than two dimensions or holds a value that is not finite.
    """
    d = np.asarray(d, dtype=np.float64)
    if d.ndim < 2:
        raise ValueError(f"Expected differences of shape (seeds, images); got {d.shape}")
    if not np.isfinite(d).all():
        raise ValueError(
            f"Expected finite differences; got {int((~np.isfinite(d)).sum())} that are not. "
            "Leave out the diverged seed, and say so in the report."
        )
    *many, s, n = d.shape
    nan = np.full(many, np.nan)[()]
    if s < 2 or n < 1:
        return Moments(d.mean((-2, -1)) if s and n else nan, nan, nan, nan, s if n else 0, n)
    by_seed = d.mean(-1)
    mean, seed = by_seed.mean(-1), n * by_seed.var(-1, ddof=1)
    if n == 1:
        return Moments(mean, seed, 0 * seed, 0 * seed, s, n)
    within = d - by_seed[..., None]
    by_image = within.mean(-2)
    images = s * np.einsum("...i,...i->...", by_image, by_image)
    every = np.einsum("...si,...si->...", within, within)
    rest = np.maximum(every - images, 0) / ((s - 1) * (n - 1))
    return Moments(mean, np.maximum(seed, rest), np.maximum(images / (n - 1), rest), rest, s, n)


def _moments(d: ArrayLike | Moments) -> Moments:
    return d if isinstance(d, Moments) else moments(d)


def _pivot(m: Moments, seeds: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Returns the variance and degrees of freedom of the mean, as expected from so many seeds.

    From S' seeds at the estimated components the mean square of images is expected to be
    V_rest + S' V_image; the others do not depend on S'. At S' = S these are the estimates.
    """
    n = m.images
    image = m.rest + seeds * (m.image - m.rest) / m.seeds
    total = m.seed + image - m.rest
    spread = (m.seed**2 + (image**2 * (seeds - 1) + m.rest**2) / max(n - 1, 1)) / (seeds - 1)
    # without any spread the table is a constant: seeds are all that there is to count
    df = np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1), seeds - 1)
    return total / (seeds * n), df


def half_width(
    d: ArrayLike | Moments, seeds: ArrayLike | None = None, *, alpha: float = ALPHA
) -> NDArray[np.float64]:
    """Returns half the width, nats, that the interval of `crossed` should have with these seeds.

    Arguments:
        d: Differences, (..., S, N), nats per image, or their moments.
        seeds: Numbers of seeds, at least 2; those of `d` where None.
        alpha: One minus the confidence.
    """
    m = _moments(d)
    variance, df = _pivot(m, m.seeds if seeds is None else np.asarray(seeds, dtype=np.float64))
    return stdtrit(df, 1 - alpha / 2) * np.sqrt(variance)


def half_width_limit(d: ArrayLike | Moments, *, alpha: float = ALPHA) -> float:
    """Returns the half-width, nats, that more seeds approach: t(N - 1) sqrt(V_image / N).

    It is the share of the images in the interval: only more test images reduce it. NaN below 3
    seeds.
    """
    m = _moments(d)
    if m.seeds < 3 or m.images < 1:
        return float("nan")
    v_image = (m.image - m.rest) / m.seeds
    return float(stdtrit(max(m.images - 1, 1), 1 - alpha / 2) * np.sqrt(v_image / m.images))


def components(d: ArrayLike | Moments) -> Components:
    """Returns the standard deviations of seed, image and rest in `d` (S, N), nats.

    Method of moments, truncated at zero. NaN with fewer than 3 seeds; with one image, which cannot
    be distinguished from the residuals, all variance counts as that of the seeds.
    """
    m = _moments(d)
    if m.seeds < 3 or m.images < 1:
        return Components(*[float("nan")] * 3)
    squares = (m.seed - m.rest) / m.images, (m.image - m.rest) / m.seeds, m.rest
    return Components(*(float(np.sqrt(v)) for v in squares))


def crossed(d: ArrayLike | Moments) -> Interval:
    """Returns mean and interval of differences with seeds and images as crossed random effects.

    Method of moments, MS the mean squares of the two-way analysis of variance:

        Var(mean) = (MS_seed + MS_image - MS_rest) / (S N)
        df        = (MS_seed + MS_image - MS_rest)^2
                    / (MS_seed^2 / (S-1) + MS_image^2 / (N-1) + MS_rest^2 / ((S-1) (N-1)))

    A negative component is truncated at zero by flooring MS_seed and MS_image at MS_rest, in the
    variance *and* in the degrees of freedom. With raw mean squares in the latter, a chance MS_seed
    near zero would pass for a precisely known one, with df near S N, just where the variance is
    underestimated. The price is an interval too wide where seeds truly add nothing.

    Its coverage is measured in `results/coverage`.

    References:
        An Approximate Distribution of Estimates of Variance Components (Satterthwaite, 1946)
        https://doi.org/10.2307/3002019
        Variance Components (Searle, Casella and McCulloch, 1992), chapter 4

    Arguments:
        d: Differences, (S, N): S seeds, N images; nats per image; or their moments.

    Raises:
        ValueError: If `d` has not two dimensions or holds a value that is not finite.
    """
    m = _moments(d)
    if np.ndim(m.mean):
        raise ValueError("Expected differences of shape (seeds, images); got many such tables")
    mean, seeds, images = float(m.mean), m.seeds, m.images
    if seeds < 3:
        nan, count = float("nan"), {0: "no seeds", 1: "1 seed"}.get(seeds, f"{seeds} seeds")
        note = f"{count}: too few seeds for an interval over seeds"
        return Interval(mean, nan, nan, nan, nan, seeds, images, note)
    variance, df = _pivot(m, seeds)
    half, error = float(half_width(m)), float(np.sqrt(variance))
    # Equal in every seed and image: p is 1 if zero, else 0.
    p = 2 * float(stdtr(df, -abs(mean) / error)) if error > 0 else float(mean == 0)
    note = "indicative" if seeds == 3 else ""
    return Interval(mean, mean - half, mean + half, p, float(df), seeds, images, note)


def over_seeds(values: ArrayLike, *, images: int = 0) -> Interval:
    """Returns mean and t interval of one number per seed, on a fixed test set.

    This is the interval for the *level* of the NLL: the images are fixed, only seeds are random.

    Arguments:
        values: One value per seed, (S,); nats per image.
        images: Number of images behind each value; only recorded in the result.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"Expected values of shape (seeds,); got {values.shape}")
    interval = crossed(values[:, None])
    return Interval(**{**vars(interval), "images": images})


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Returns Holm's adjusted p-values, (m,); NaN stays NaN and is not counted.

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


def _min_seeds(m: Moments, width: float, above: int, alpha: float) -> float:
    """Returns the least number of seeds greater than `above` whose half-width is below `width`."""
    if m.seeds < 3 or m.images < 1:
        return float("nan")
    more = np.arange(above + 1, MAX_SEEDS + 1, dtype=np.float64)
    enough = np.flatnonzero(half_width(m, more, alpha=alpha) < width)
    return float(more[enough[0]]) if len(enough) else float("inf")


def seeds_for(d: ArrayLike | Moments, width: float, *, alpha: float = ALPHA) -> float:
    """Returns the number of seeds for a half-width below `width`, all else as observed.

    The smallest number, from 3, whose t interval at the estimated components and on the same N
    images is narrow enough. `inf` beyond 1,000 seeds, and where `half_width_limit` is wider. NaN
    with fewer than 3 seeds. Components from few seeds are rough.

    Arguments:
        d: Differences, (S, N), nats per image, or their moments.
        width: The wanted half-width, nats.
        alpha: One minus the confidence.
    """
    return _min_seeds(_moments(d), width, 2, alpha)


def seeds_needed(d: ArrayLike | Moments, *, alpha: float = ALPHA) -> float:
    """Returns the number of seeds that would resolve the mean of `d` (S, N), all else as observed.

    The smallest number of seeds, above those there are, whose t interval at the estimated variance
    components and on the same N images excludes zero. An approximation: it takes the observed
    difference for the true one, where this number succeeds about half of the time, and components
    from few seeds are rough. `inf` beyond 1,000 seeds, NaN with fewer than 3 seeds.
    """
    m = _moments(d)
    return _min_seeds(m, abs(float(m.mean)), m.seeds, alpha)
