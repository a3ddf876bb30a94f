"""Figure of latent maps: posterior samples over the mass of the prior, at D = 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bench.figures.label_placement import push_apart
from bench.figures.sheets import choose_models_with, fill_panel, make_sheet, seed_of
from bench.figures.style import (
    CLASS_COLOURS,
    GREY,
    HALO,
    LIGHT_GREY,
    footer,
    join_facts,
    styles,
    theme,
    with_minus,
)
from bench.statistics.analysis import Analysis
from bench.statistics.outliers import limit

__all__ = ["latent_maps", "map_table"]


MAX_POINTS = 5000
"""The largest number of points in a map."""
MAX_NAMED_CLASSES = 12
"""The largest number of classes that are named in a map."""
MAX_REACH_RATIO = 2.5
"""The largest ratio between the reaches of two maps that are drawn at one scale."""
MASS_SHARES = np.array([0.99, 0.95, 0.8, 0.6, 0.4, 0.2])
SHADES, OUTLINE = "blend:#f2f3f6,#a7b1c4", "#7f899c"
"""The tints of a prior's mass, outermost first, and its outline."""


@theme()
def latent_maps(analysis: Analysis, *, points: int = MAX_POINTS) -> Figure:
    """Draws, for D = 2, posterior samples by class over the regions where each prior has its mass.

    A contour encloses the smallest region with a given share of the prior's mass. So priors of
    different shapes and scales can be compared by eye, unlike with contours of equal density.
    """
    chosen, shown = choose_models_with("codes", analysis)
    look, colours = styles(analysis.priors), np.array(CLASS_COLOURS)
    trials = analysis.trials[analysis.trials["latent"] == 2]
    reach, outside = _panel_reaches(shown)
    one_scale = len(set(reach.values())) == 1
    classes = sorted({int(c) for m in shown.values() for c in np.unique(m["labels"])})
    by_class = ", coloured by class" * (len(classes) > 1)
    by_class += f" ({len(colours)} colours in turn)" * (len(classes) > len(colours))
    note = join_facts(
        footer(trials),
        f"points: one posterior sample a test image{by_class}",
        "shades: smallest regions of prior mass "
        + ", ".join(f"{share:.2g}" for share in MASS_SHARES[::-1]),
        f"every panel spans \N{PLUS-MINUS SIGN}{max(reach.values()):.1f} in both latents"
        if one_scale
        else "each panel has its own scale, written in it",
        f"points outside the panel, or not finite: {', '.join(outside)}" if outside else "",
    )
    sheet = make_sheet(list(chosen), note)
    for k, (label, run) in enumerate(chosen.items()):
        ax = fill_panel(sheet, k, run, trials[trials["prior"] == label], look[label].colour)
        ax.spines[:].set_color(LIGHT_GREY)
        ax.set_aspect("equal")
        if run is None:
            continue
        far, data = reach[label], shown[label]
        ax.set(xlim=(-far, far), ylim=(-far, far))
        finite = np.isfinite(data["codes"][:points]).all(axis=1)
        codes = data["codes"][:points][finite]
        labels = data["labels"][:points][finite].astype(int)
        _shade_mass(ax, data)
        # many points are small, so that the shades remain visible between them
        size = sheet.width * np.clip(60 / np.sqrt(max(len(codes), 1)), 0.5, 1.5)
        ax.scatter(
            codes[:, 0], codes[:, 1], c=colours[labels % len(colours)], s=size, lw=0, alpha=0.75,
            rasterized=True, zorder=2,
        )  # fmt: skip
        if 1 < len(classes) <= MAX_NAMED_CLASSES:
            letter = float(np.clip(4.8 * sheet.width, 6.2, 8.5))
            named = [c for c in classes if (labels == c).any()]
            medians = [np.median(codes[labels == c], axis=0) for c in named]
            gap = 2 * far * 0.115 / sheet.width
            places = push_apart(np.reshape(medians, (-1, 2)), gap=gap, reach=0.93 * far)
            for c, (x, y) in zip(named, places, strict=True):
                ax.text(
                    x, y, str(c), size=letter, weight="bold", color=colours[c % len(colours)],
                    ha="center", va="center", clip_on=True, path_effects=HALO, zorder=4,
                )  # fmt: skip
        if not one_scale or label == next(iter(shown)):
            _write_scale(ax, far)
    return sheet.figure


def _panel_reaches(
    shown: Mapping[str, Mapping[str, NDArray[Any]]],
) -> tuple[dict[str, float], list[str]]:
    """Returns how far from zero each panel reaches, and the priors with points further out.

    All panels reach equally far, unless the points of one would then be too small to see.
    """
    reaches = {label: _reach(arrays["codes"]) for label, arrays in shown.items()}
    bound = limit(list(reaches.values()), least=1)
    near = [reach for reach in reaches.values() if reach <= bound < np.inf] or [3.0]
    far = 1.05 * max(near)
    outside = [label for label, reach in reaches.items() if reach > far]
    if max(near) <= MAX_REACH_RATIO * min(near):
        return dict.fromkeys(reaches, far), outside
    return {
        label: far if label in outside else 1.05 * reach for label, reach in reaches.items()
    }, outside


def _write_scale(ax: Axes, reach: float) -> None:
    """Writes the scale along the inner edges of a panel."""
    ticks = np.asarray(MaxNLocator(4, symmetric=True).tick_values(-reach, reach))
    ticks = ticks[np.abs(ticks) < 0.9 * reach]
    words = [with_minus(f"{tick:g}") for tick in ticks]
    ax.set_axisbelow(False)  # else the shades would hide the ticks
    ax.set_xticks(ticks, words, path_effects=HALO)
    ax.set_yticks(ticks, words, path_effects=HALO, ha="left")
    ax.tick_params(direction="in", size=2.5, labelsize=6, color=GREY, labelcolor=GREY)
    ax.tick_params(axis="x", pad=-10)
    ax.tick_params(axis="y", pad=-4)


def map_table(analysis: Analysis, *, points: int = MAX_POINTS) -> pd.DataFrame:
    """Returns the points of `latent_maps`: prior, seed, image, x, y, label.

    The densities are in each run's artifact `pictures/latent_map.npz`.
    """
    chosen, shown = choose_models_with("codes", analysis)
    tables = []
    for label, data in shown.items():
        x, y = np.asarray(data["codes"][:points], np.float64).round(4).T
        rows = {"prior": label, "seed": seed_of(chosen[label]), "image": np.arange(len(x))}
        tables.append(pd.DataFrame(rows | {"x": x, "y": y, "label": data["labels"][:points]}))
    return pd.concat(tables, ignore_index=True)


def _reach(codes: NDArray[Any]) -> float:
    """Returns the size that 99.5 % of codes, (N, 2), do not exceed; infinity if none is finite."""
    sizes = np.abs(codes[np.isfinite(codes)])
    return float(np.quantile(sizes, 0.995)) if len(sizes) else float("inf")


def _shade_mass(ax: Axes, data: Mapping[str, NDArray[Any]]) -> None:
    """Shades the regions of a prior's mass, if the grid resolves them."""
    levels = _mass_levels(data["log_density"], MASS_SHARES)
    if len(levels) < 2:  # all mass in one point of the grid, or no finite density
        return
    # contours need finite numbers
    floor = np.nan_to_num(data["log_density"], nan=-np.inf).clip(levels[0] - 20, levels[-1] + 20)
    grid = (data["axis_x"], data["axis_y"], floor)
    ax.contourf(*grid, levels, colors=sns.color_palette(SHADES, len(levels)), extend="max")
    ax.contour(*grid, levels, colors="white", linewidths=0.5, linestyles="solid")
    # the outermost contour lies above the points
    ax.contour(*grid, levels[:1], colors=OUTLINE, linewidths=0.6, linestyles="solid", zorder=3)


def _mass_levels(log_density: NDArray[Any], shares: NDArray[np.float64]) -> list[float]:
    """Returns the log-densities above which lie `shares` of the mass on the grid, increasing."""
    flat = np.sort(log_density[np.isfinite(log_density)].astype(np.float64))[::-1]
    if not len(flat):
        return []
    mass = np.cumsum(np.exp(flat - flat[0]))
    levels = flat[np.searchsorted(mass, shares * mass[-1]).clip(max=len(flat) - 1)]
    return sorted(set(levels.tolist()))
