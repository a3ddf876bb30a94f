"""Models side by side, prior by prior: their samples, and their latent maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from . import stats
from .look import (
    CLASSES,
    DOT,
    FAINT,
    HALO,
    LOST,
    SOFT,
    NoDataError,
    footer,
    one_arm_each,
    panels,
    styles,
    theme,
)

__all__ = ["latent_maps", "sample_sheet"]

LONG = 22
"""Characters of a title in full size."""


def _chosen(
    frame: pd.DataFrame, latent: int, kept: Mapping[str, Any]
) -> dict[str, pd.Series | None]:
    """Return one run a prior: the lowest seed that all have complete, else each prior's lowest."""
    one_arm_each(frame)
    runs = stats.settle(frame)
    runs = runs[(runs["latent"] == latent) & (runs["status"] == "complete")]
    runs = runs[runs["run_id"].isin(list(kept))].sort_values("seed")
    common = runs.groupby("seed")["prior"].nunique()
    seed = next(iter(common.index[common == runs["prior"].nunique()]), None)
    found: dict[str, pd.Series | None] = {}
    for label in stats.priors(frame[frame["latent"] == latent]):
        mine = runs[runs["prior"] == label]
        mine = mine[mine["seed"] == seed] if (mine["seed"] == seed).any() else mine
        found[label] = mine.iloc[0] if len(mine) else None
    return found


def _titled(ax: Axes, label: str, run: pd.Series | None, colour: str) -> None:
    """Title a panel with its prior and seed, or say in it that no seed is complete."""
    ax.set(xticks=[], yticks=[])
    size = min(9.0, 9.0 * LONG / len(label))  # a long label stays within its panel
    ax.set_title(label, color=colour, weight="bold", pad=4, size=size)
    if run is None:
        sns.despine(ax=ax, left=True, bottom=True)
        ax.text(0.5, 0.48, "no complete seed", transform=ax.transAxes, ha="center", color=SOFT)
        ax.plot(0.5, 0.62, "x", color=colour, transform=ax.transAxes, **LOST | {"ms": 14})
        return
    facts = f"seed {run['seed']}, test NLL {run['test/nll']:.1f}"
    ax.set_xlabel(facts, size=7, color=SOFT, loc="left", labelpad=3)


@theme()
def latent_maps(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]], *, points: int = 5000
) -> Figure:
    """Draw, for D = 2, posterior samples by class over the regions where each prior has its mass.

    A contour encloses the smallest region that holds a given share of the prior: priors of any
    shape and scale can be compared by eye, which contours at equal densities do not allow.
    """
    chosen = _chosen(frame, 2, maps)
    shown = {p: maps[r["run_id"]] for p, r in chosen.items() if r is not None}
    if not shown:
        raise NoDataError("Expected a complete run at D = 2 with its map; got none.")
    look, hues = styles(stats.priors(frame)), np.array(CLASSES)
    shares = np.array([0.99, 0.95, 0.8, 0.6, 0.4, 0.2])
    fills = sns.color_palette("blend:#f1f4f9,#93a5c4", len(shares))
    reach = max(float(np.quantile(np.abs(m["codes"]), 0.995)) for m in shown.values()) * 1.05
    note = DOT.join([
        footer(frame[frame["latent"] == 2]),
        "points: one posterior sample a test image, coloured by class",
        f"shades: smallest regions of prior mass {', '.join(f'{s:.2g}' for s in shares[::-1])}",
        f"every panel spans \N{PLUS-MINUS SIGN}{reach:.1f} in both latents",
    ])  # fmt: skip
    figure, cells = panels(len(chosen), note, size=(2.35, 2.55), across=3)
    for ax, (label, run) in zip(cells, chosen.items(), strict=True):
        _titled(ax, label, run, look[label].colour)
        ax.spines[:].set_color(FAINT)
        ax.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
        if run is None:
            continue
        data = shown[label]
        codes, classes = data["codes"][:points], data["labels"][:points]
        levels = _regions(data["log_density"], shares)
        floor = np.maximum(data["log_density"], levels[0] - 20)  # contours cannot take -inf
        grid = (data["axis_x"], data["axis_y"], floor)
        ax.contourf(*grid, levels, colors=fills, extend="max")
        ax.contour(*grid, levels, colors="white", linewidths=0.7, linestyles="solid")
        ax.scatter(
            codes[:, 0], codes[:, 1], c=hues[classes], s=2.6, lw=0, alpha=0.8, rasterized=True,
            zorder=2,
        )  # fmt: skip
        for digit in np.unique(classes):
            x, y = np.median(codes[classes == digit], axis=0)
            ax.text(
                x, y, str(digit), size=9, weight="bold", color=hues[digit], ha="center",
                va="center", clip_on=True, path_effects=HALO,
            )  # fmt: skip
    return figure


def _regions(log_density: NDArray[Any], shares: NDArray[np.float64]) -> list[float]:
    """Return the log-densities above which lie `shares` of the mass on the grid, increasing."""
    flat = np.sort(log_density[np.isfinite(log_density)].astype(np.float64))[::-1]
    mass = np.cumsum(np.exp(flat - flat[0]))
    levels = flat[np.searchsorted(mass, shares * mass[-1]).clip(max=len(flat) - 1)]
    return sorted(set(levels.tolist()))


@theme()
def sample_sheet(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], *, latent: int | None = None
) -> Figure:
    """Draw samples of each prior side by side, at `latent` or the largest size that has some."""
    some = frame[frame["run_id"].isin(list(samples))]
    if not len(some):
        raise NoDataError("Expected samples of at least one run of the frame; got none.")
    latent = int(some["latent"].max()) if latent is None else latent
    chosen = _chosen(frame, latent, samples)
    if not any(run is not None for run in chosen.values()):
        raise NoDataError(f"Expected samples of a complete run at D = {latent}; got none.")
    look = styles(stats.priors(frame))
    here = frame[frame["latent"] == latent]
    note = f"D = {latent}{DOT}{footer(here)}{DOT}pixel probabilities, first draws, none chosen"
    figure, cells = panels(len(chosen), note, size=(2.2, 2.35), across=3)
    for ax, (label, run) in zip(cells, chosen.items(), strict=True):
        _titled(ax, label, run, look[label].colour)
        if run is not None:
            ax.imshow(_mosaic(samples[run["run_id"]]), cmap="Greys", vmin=0, vmax=1)
            sns.despine(ax=ax, left=True, bottom=True)
        ax.set_aspect("equal")
    return figure


def _mosaic(images: NDArray[Any], most: int = 8) -> NDArray[Any]:
    """Return the first images (n, H, W) as one square sheet of at most `most` rows."""
    side = max(1, min(most, int(np.sqrt(len(images)))))
    padded = np.pad(images[: side * side], ((0, 0), (1, 1), (1, 1)))
    _, h, w = padded.shape
    return padded[: side * side].reshape(-1, side, h, w).swapaxes(1, 2).reshape(-1, side * w)
