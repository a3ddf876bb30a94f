"""Models side by side, prior by prior: samples, latent maps, manifolds, and the tables of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.figures.sheets import chosen_models, fact, fill_sheet, make_sheet, seed_of, shown_models
from bench.figures.style import (
    NoDataError,
    footer,
    styles,
    theme,
)
from bench.statistics import frames
from bench.statistics.captions import DOT, TEST_IMAGES

__all__ = ["manifold_table", "prior_manifold", "sample_sheet", "sample_table"]


SIDE = 8
"""The most images in a row of a sheet, and rows of them."""
GUTTER = (226, 229, 235)
"""The colour between images, 0 to 255."""


def _sampled(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], latent: int | None
) -> tuple[int, dict[str, pd.Series | None]]:
    """Return a latent size with samples, the largest where none is given, and a run a prior."""
    frame = frames.validate(frame)
    some = frame[frame["run_id"].isin(list(samples)) & (frame["status"] == "complete")]
    if not len(some):
        raise NoDataError("Expected samples of a complete run of the frame; got none.")
    latent = int(some["latent"].max()) if latent is None else latent
    chosen = chosen_models(frame, latent, samples)
    if not any(run is not None for run in chosen.values()):
        raise NoDataError(f"Expected samples of a complete run at D = {latent}; got none.")
    return latent, chosen


@theme()
def sample_sheet(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], *, latent: int | None = None
) -> Figure:
    """Draw samples of each prior side by side, after test images where there are some.

    They are those at `latent`, or at the largest size that has some.
    """
    latent, chosen = _sampled(frame, samples, latent)
    look, real = styles(frames.priors(frame)), samples.get(TEST_IMAGES)
    frame = frames.validate(frame)
    here = frame[frame["latent"] == latent]
    note = f"D = {latent}{DOT}{footer(here)}{DOT}pixel probabilities, first draws, none chosen"
    before = [TEST_IMAGES] if real is not None else []
    sheet = make_sheet([*before, *chosen], note)
    if real is not None:
        first = sheet.cells[0]
        _show(first, _square(real))
        first.set_title(TEST_IMAGES, weight="bold", pad=4, size=sheet.size)
        fact(first, f"the first {_square(real).shape[0] ** 2}")
    for k, (label, run) in enumerate(chosen.items(), len(before)):
        ax = fill_sheet(sheet, k, run, here[here["prior"] == label], look[label].colour)
        if run is not None:
            _show(ax, _square(samples[run["run_id"]]))
        ax.set_aspect("equal")
    return sheet.figure


def sample_table(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], *, latent: int | None = None
) -> pd.DataFrame:
    """Return what `sample_sheet` draws: prior, seed, image, and pixels `p0` on.

    Pixels are probabilities in percent, row by row; test images have no seed.
    """
    _, chosen = _sampled(frame, samples, latent)
    real = {TEST_IMAGES: (pd.NA, samples[TEST_IMAGES])} if TEST_IMAGES in samples else {}
    drawn = {p: (seed_of(r), samples[r["run_id"]]) for p, r in chosen.items() if r is not None}
    tables = []
    for label, (seed, images) in (real | drawn).items():
        flat = _square(images).reshape(-1, images[0].size)
        rows = {"prior": label, "seed": seed, "image": np.arange(len(flat))}
        tables.append(pd.concat([pd.DataFrame(rows), _pixels(flat)], axis=1))
    return pd.concat(tables, ignore_index=True).astype({"seed": "Int64"})


@theme()
def prior_manifold(frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]]) -> Figure:
    """Draw, for D = 2, what the decoder makes of points that part each prior into equal masses.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), figure 4
        https://arxiv.org/abs/1312.6114
    """
    chosen, shown = shown_models(frame, maps, "manifold")
    look, here = styles(frames.priors(frame)), frames.validate(frame[frame["latent"] == 2])
    side = len(next(iter(shown.values()))["manifold"])
    note = DOT.join([
        footer(here),
        f"pixel probabilities at {side} by {side} points of equal prior mass",
        "to the right: quantiles of the first latent; upwards: of the second, given the first",
    ])  # fmt: skip
    sheet = make_sheet(list(chosen), note)
    for k, (label, run) in enumerate(chosen.items()):
        ax = fill_sheet(sheet, k, run, here[here["prior"] == label], look[label].colour)
        if run is not None:
            _show(ax, shown[label]["manifold"][::-1] / 255, gutter=0)
        ax.set_aspect("equal")
    return sheet.figure


def manifold_table(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]]
) -> pd.DataFrame:
    """Return what `prior_manifold` draws: prior, seed, quantiles u and v, x and y, pixels."""
    chosen, shown = shown_models(frame, maps, "manifold")
    tables = []
    for label, data in shown.items():
        side = len(data["manifold"])
        v, u = ((np.indices((side, side)) + 0.5) / side).round(4).reshape(2, -1)
        x, y = data["places"].reshape(-1, 2).astype(np.float64).round(4).T
        rows = {"prior": label, "seed": seed_of(chosen[label]), "u": u, "v": v, "x": x, "y": y}
        pixels = _pixels(data["manifold"].reshape(side * side, -1) / 255)
        tables.append(pd.concat([pd.DataFrame(rows), pixels], axis=1))
    return pd.concat(tables, ignore_index=True)


def _pixels(flat: NDArray[Any]) -> pd.DataFrame:
    """Return a column a pixel, its probability in percent: a print tells no more apart."""
    percent = (100 * np.nan_to_num(flat)).round().astype(int)
    return pd.DataFrame(percent, columns=[f"p{k}" for k in range(flat.shape[1])])


def _square(images: NDArray[Any]) -> NDArray[Any]:
    """Return the first images (n, H, W) in rows of a square of at most `SIDE`, (s, s, H, W)."""
    side = max(1, min(SIDE, int(np.sqrt(len(images)))))
    return images[: side * side].reshape(side, -1, *images.shape[1:])


def _show(ax: Axes, images: NDArray[Any], gutter: float = 0.07) -> None:
    """Show rows of images, and nothing of the axes around them."""
    ax.imshow(_mosaic(images, gutter), interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _mosaic(images: NDArray[Any], gutter: float) -> NDArray[np.uint8]:
    """Return rows of images (r, c, H, W) in [0, 1] as one, black on white, (h, w, 3).

    Pixels are magnified to squares that stay sharp when the sheet is scaled to its place, with
    gutters of that share of an image.
    """
    rows, columns, height, width = images.shape
    factor = max(2, -(-96 // max(height, width)))
    big = images.repeat(factor, axis=2).repeat(factor, axis=3)
    gap = round(gutter * factor * max(height, width))
    grey = (255 * (1 - np.nan_to_num(big).clip(0, 1))).astype(np.uint8)
    h, w = factor * height + gap, factor * width + gap
    page = np.empty((rows, h, columns, w, 3), np.uint8)
    page[:] = GUTTER
    page[:, gap:, :, gap:] = grey.swapaxes(1, 2)[..., None]
    whole = np.empty((rows * h + gap, columns * w + gap, 3), np.uint8)
    whole[:] = GUTTER
    whole[: rows * h, : columns * w] = page.reshape(rows * h, columns * w, 3)
    return whole
