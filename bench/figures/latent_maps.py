"""Latent maps: posterior, prior and their difference at D = 2."""

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

from bench.figures.label_placement import apart
from bench.figures.sheets import NAMED, POINTS, fill_sheet, make_sheet, seed_of, shown_models
from bench.figures.style import (
    CLASSES,
    FAINT,
    HALO,
    SOFT,
    footer,
    styles,
    theme,
)
from bench.statistics import frames
from bench.statistics.captions import DOT
from bench.statistics.outliers import limit

__all__ = ["latent_maps", "map_table"]


SAME = 2.5
"""How many times as far as another a map may reach for both to have one scale."""
SHADES, EDGE = "blend:#f2f3f6,#a7b1c4", "#7f899c"
"""The tints of a prior's mass, outermost first, and its outline."""


@theme()
def latent_maps(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]], *, points: int = POINTS
) -> Figure:
    """Draw, for D = 2, posterior samples by class over the regions where each prior has its mass.

    A contour encloses the smallest region that holds a given share of the prior: priors of any
    shape and scale can be compared by eye, which contours at equal densities do not allow.
    """
    chosen, shown = shown_models(frame, maps, "codes")
    look, hues = styles(frames.priors(frame)), np.array(CLASSES)
    here = frames.validate(frame[frame["latent"] == 2])
    shares = np.array([0.99, 0.95, 0.8, 0.6, 0.4, 0.2])
    reach, out = _spans(shown)
    alike = len(set(reach.values())) == 1
    classes = {int(c) for m in shown.values() for c in np.unique(m["labels"])}
    told = f"{', coloured by class' if len(classes) > 1 else ''}"
    told += f" ({len(hues)} colours in turn)" if len(classes) > len(hues) else ""
    note = DOT.join([
        footer(here),
        f"points: one posterior sample a test image{told}",
        f"shades: smallest regions of prior mass {', '.join(f'{s:.2g}' for s in shares[::-1])}",
        f"every panel spans \N{PLUS-MINUS SIGN}{max(reach.values()):.1f} in both latents"
        if alike
        else "panels have spans of their own: see the numbers in each",
        *([f"points further out, or no numbers: {', '.join(out)}"] if out else []),
    ])  # fmt: skip
    sheet = make_sheet(list(chosen), note)
    for k, (label, run) in enumerate(chosen.items()):
        ax = fill_sheet(sheet, k, run, here[here["prior"] == label], look[label].colour)
        ax.spines[:].set_color(FAINT)
        ax.set_aspect("equal")
        if run is None:
            continue
        far = reach[label]
        ax.set(xlim=(-far, far), ylim=(-far, far))
        data = shown[label]
        known = np.isfinite(data["codes"][:points]).all(axis=1)
        codes, labels = data["codes"][:points][known], data["labels"][:points][known].astype(int)
        _shade(ax, data, shares)
        # the more there are, the smaller: what lies below is to be seen between them
        size = sheet.width * np.clip(60 / np.sqrt(max(len(codes), 1)), 0.5, 1.5)
        ax.scatter(
            codes[:, 0], codes[:, 1], c=hues[labels % len(hues)], s=size, lw=0, alpha=0.75,
            rasterized=True, zorder=2,
        )  # fmt: skip
        letter = float(np.clip(4.8 * sheet.width, 6.2, 8.5))
        named = [c for c in sorted(classes) if (labels == c).any()]
        if 1 < len(classes) <= NAMED:
            medians = [np.median(codes[labels == c], axis=0) for c in named]
            places = np.reshape(medians, (-1, 2))
            places = apart(places, gap=2 * far * 0.115 / sheet.width, most=0.93 * far)
            for c, (x, y) in zip(named, places, strict=True):
                ax.text(
                    x, y, str(c), size=letter, weight="bold", color=hues[c % len(hues)],
                    ha="center", va="center", clip_on=True, path_effects=HALO, zorder=4,
                )  # fmt: skip
        if not alike or label == next(iter(shown)):
            _scale(ax, far)
    return sheet.figure


def _spans(
    shown: Mapping[str, Mapping[str, NDArray[Any]]],
) -> tuple[dict[str, float], list[str]]:
    """Return how far each panel reaches, and the priors with points further out.

    All reach as far as the farthest, unless the nearest would be but a dot then.
    """
    each = {label: _reach(arrays["codes"]) for label, arrays in shown.items()}
    most = limit(list(each.values()), least=1)
    near = [r for r in each.values() if r <= most < np.inf] or [3.0]
    far = 1.05 * max(near)
    out = [label for label, r in each.items() if r > far]
    if max(near) <= SAME * min(near):
        return dict.fromkeys(each, far), out
    return {label: far if label in out else 1.05 * r for label, r in each.items()}, out


def _scale(ax: Axes, reach: float) -> None:
    """Write numbers along the inner edges of a panel: they hold for all."""
    ticks = np.asarray(MaxNLocator(4, symmetric=True).tick_values(-reach, reach))
    ticks = ticks[np.abs(ticks) < 0.9 * reach]
    words = [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks]
    ax.set_axisbelow(False)  # else the shades hide them
    ax.set_xticks(ticks, words, path_effects=HALO)
    ax.set_yticks(ticks, words, path_effects=HALO, ha="left")
    ax.tick_params(direction="in", size=2.5, labelsize=6, color=SOFT, labelcolor=SOFT)
    ax.tick_params(axis="x", pad=-10)
    ax.tick_params(axis="y", pad=-4)


def map_table(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]], *, points: int = POINTS
) -> pd.DataFrame:
    """Return the points that `latent_maps` draws: prior, seed, image, x, y, label.

    The density below them is in each run's artifact `pictures/latent_map.npz`.
    """
    chosen, shown = shown_models(frame, maps, "codes")
    tables = []
    for label, data in shown.items():
        x, y = np.asarray(data["codes"][:points], np.float64).round(4).T
        rows = {"prior": label, "seed": seed_of(chosen[label]), "image": np.arange(len(x))}
        tables.append(pd.DataFrame(rows | {"x": x, "y": y, "label": data["labels"][:points]}))
    return pd.concat(tables, ignore_index=True)


def _reach(codes: NDArray[Any]) -> float:
    """Return how far from zero nearly all codes, (N, 2), lie; infinity where none is a number."""
    sizes = np.abs(codes[np.isfinite(codes)])
    return float(np.quantile(sizes, 0.995)) if len(sizes) else float("inf")


def _shade(ax: Axes, data: Mapping[str, NDArray[Any]], shares: NDArray[np.float64]) -> None:
    """Shade where a prior has its mass, if the grid shows it."""
    levels = _regions(data["log_density"], shares)
    if len(levels) < 2:  # all mass in one point of the grid, or no density that is a number
        return
    # contours cannot take what is not finite
    floor = np.nan_to_num(data["log_density"], nan=-np.inf).clip(levels[0] - 20, levels[-1] + 20)
    grid = (data["axis_x"], data["axis_y"], floor)
    ax.contourf(*grid, levels, colors=sns.color_palette(SHADES, len(levels)), extend="max")
    ax.contour(*grid, levels, colors="white", linewidths=0.5, linestyles="solid")
    # and the outermost over the points, however many
    ax.contour(*grid, levels[:1], colors=EDGE, linewidths=0.6, linestyles="solid", zorder=3)


def _regions(log_density: NDArray[Any], shares: NDArray[np.float64]) -> list[float]:
    """Return the log-densities above which lie `shares` of the mass on the grid, increasing."""
    flat = np.sort(log_density[np.isfinite(log_density)].astype(np.float64))[::-1]
    if not len(flat):
        return []
    mass = np.cumsum(np.exp(flat - flat[0]))
    levels = flat[np.searchsorted(mass, shares * mass[-1]).clip(max=len(flat) - 1)]
    return sorted(set(levels.tolist()))
