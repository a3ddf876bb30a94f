"""Figures of samples and of decoded manifolds, prior by prior, and their tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.figures.sheets import (
    choose_models,
    choose_models_with,
    fill_panel,
    make_sheet,
    seed_of,
    write_below,
)
from bench.figures.style import (
    NoDataError,
    footer,
    join_facts,
    styles,
    theme,
)
from bench.statistics.analysis import Analysis
from bench.statistics.captions import TEST_IMAGES

__all__ = ["manifold_table", "prior_manifold", "sample_sheet", "sample_table"]


MAX_SIDE = 8
"""The largest number of images in a row of a panel, and of rows."""
GUTTER_COLOUR = (226, 229, 235)
"""The colour between images, 0 to 255."""


def _choose_sampled_models(
    analysis: Analysis, latent: int | None
) -> tuple[int, dict[str, pd.Series | None]]:
    """Returns a latent size with samples, by default the largest, and one run for each prior."""
    samples, runs = analysis.samples, analysis.complete
    sampled = runs[runs["run_id"].isin(list(samples))]
    if not len(sampled):
        raise NoDataError("Expected samples of a complete run; got none.")
    latent = int(sampled["latent"].max()) if latent is None else latent
    chosen = choose_models(analysis, latent, samples)
    if not any(run is not None for run in chosen.values()):
        raise NoDataError(f"Expected samples of a complete run at D = {latent}; got none.")
    return latent, chosen


@theme()
def sample_sheet(analysis: Analysis, *, latent: int | None = None) -> Figure:
    """Draws samples of each prior side by side, after test images where there are some.

    The latent size is `latent`, or the largest that has samples.
    """
    latent, chosen = _choose_sampled_models(analysis, latent)
    samples = analysis.samples
    look, test_images = styles(analysis.priors), samples.get(TEST_IMAGES)
    trials = analysis.trials[analysis.trials["latent"] == latent]
    facts = (f"D = {latent}", footer(trials), "pixel probabilities, the first draws, unselected")
    before = [TEST_IMAGES] if test_images is not None else []
    sheet = make_sheet([*before, *chosen], join_facts(*facts))
    if test_images is not None:
        first, square = sheet.cells[0], _square(test_images)
        _show_images(first, square)
        first.set_title(TEST_IMAGES, weight="bold", pad=4, size=sheet.points)
        write_below(first, f"the first {len(square) ** 2}")
    for k, (label, run) in enumerate(chosen.items(), len(before)):
        ax = fill_panel(sheet, k, run, trials[trials["prior"] == label], look[label].colour)
        if run is not None:
            _show_images(ax, _square(samples[run["run_id"]]))
        ax.set_aspect("equal")
    return sheet.figure


def sample_table(analysis: Analysis, *, latent: int | None = None) -> pd.DataFrame:
    """Returns the images of `sample_sheet`: prior, seed, image, and pixels `p0`, `p1`, ...

    Pixels are probabilities in percent, row by row; test images have no seed.
    """
    (_, chosen), samples = _choose_sampled_models(analysis, latent), analysis.samples
    test = {TEST_IMAGES: (pd.NA, samples[TEST_IMAGES])} if TEST_IMAGES in samples else {}
    drawn = {p: (seed_of(r), samples[r["run_id"]]) for p, r in chosen.items() if r is not None}
    tables = []
    for label, (seed, images) in (test | drawn).items():
        flat = _square(images).reshape(-1, images[0].size)
        rows = {"prior": label, "seed": seed, "image": np.arange(len(flat))}
        tables.append(pd.concat([pd.DataFrame(rows), _pixels(flat)], axis=1))
    return pd.concat(tables, ignore_index=True).astype({"seed": "Int64"})


@theme()
def prior_manifold(analysis: Analysis) -> Figure:
    """Draws, for D = 2, decoded points that divide each prior into regions of equal mass.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), figure 4
        https://arxiv.org/abs/1312.6114
    """
    chosen, shown = choose_models_with("manifold", analysis)
    look = styles(analysis.priors)
    trials = analysis.trials[analysis.trials["latent"] == 2]
    side = len(next(iter(shown.values()))["manifold"])
    note = join_facts(
        footer(trials),
        f"pixel probabilities at {side} by {side} points of equal prior mass",
        "to the right: quantiles of the first latent; upwards: of the second, given the first",
    )
    sheet = make_sheet(list(chosen), note)
    for k, (label, run) in enumerate(chosen.items()):
        ax = fill_panel(sheet, k, run, trials[trials["prior"] == label], look[label].colour)
        if run is not None:
            _show_images(ax, shown[label]["manifold"][::-1] / 255, gutter=0)
        ax.set_aspect("equal")
    return sheet.figure


def manifold_table(analysis: Analysis) -> pd.DataFrame:
    """Returns the images of `prior_manifold`: prior, seed, quantiles u and v, x, y, pixels."""
    chosen, shown = choose_models_with("manifold", analysis)
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
    """Returns a column for each pixel: its probability in whole percent."""
    percent = (100 * np.nan_to_num(flat)).round().astype(int)
    return pd.DataFrame(percent, columns=[f"p{k}" for k in range(flat.shape[1])])


def _square(images: NDArray[Any]) -> NDArray[Any]:
    """Returns the first of images (n, H, W) as a square, (s, s, H, W), s at most `MAX_SIDE`."""
    side = max(1, min(MAX_SIDE, int(np.sqrt(len(images)))))
    return images[: side * side].reshape(side, -1, *images.shape[1:])


def _show_images(ax: Axes, images: NDArray[Any], gutter: float = 0.07) -> None:
    """Shows rows of images, without axes around them."""
    ax.imshow(_mosaic(images, gutter), interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _mosaic(images: NDArray[Any], gutter: float) -> NDArray[np.uint8]:
    """Returns rows of images (r, c, H, W) in [0, 1] as one image, black on white, (h, w, 3).

    Pixels are magnified so that they stay sharp when the image is scaled. Gutters have a width of
    `gutter` images.
    """
    rows, columns, height, width = images.shape
    factor = max(2, -(-96 // max(height, width)))
    big = images.repeat(factor, axis=2).repeat(factor, axis=3)
    gap = round(gutter * factor * max(height, width))
    grey = (255 * (1 - np.nan_to_num(big).clip(0, 1))).astype(np.uint8)
    h, w = factor * height + gap, factor * width + gap
    page = np.empty((rows, h, columns, w, 3), np.uint8)
    page[:] = GUTTER_COLOUR
    page[:, gap:, :, gap:] = grey.swapaxes(1, 2)[..., None]
    whole = np.empty((rows * h + gap, columns * w + gap, 3), np.uint8)
    whole[:] = GUTTER_COLOUR
    whole[: rows * h, : columns * w] = page.reshape(rows * h, columns * w, 3)
    return whole
