"""Models side by side, prior by prior: their samples, and their latent maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from . import stats
from .clipping import limit
from .levels import UNSCORED
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
from .wording import nats

__all__ = ["latent_maps", "sample_sheet"]

SHEETS = ((9, 3, 2.3), (16, 4, 1.9), (1000, 5, 1.65))
"""Up to so many panels, how many stand side by side, and the inches of each."""
NAMED = 12
"""The most classes that are named in a map."""


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


def _sheet(count: int, note: str) -> tuple[Figure, list[Axes], float]:
    """Return a figure of `count` square panels, the panels, and the inches of each."""
    across, size = next((across, size) for most, across, size in SHEETS if count <= most)
    figure, cells = panels(count, note, size=(size, size + 0.15), across=across)
    return figure, cells, size


def _titled(
    ax: Axes, label: str, run: pd.Series | None, arm: pd.DataFrame, colour: str, width: float
) -> None:
    """Title a panel of `width` inches with its prior and seed, or say why there is none.

    Arguments:
        ax: The panel.
        label: The prior.
        run: The run that is shown, if any.
        arm: All runs of the prior at this latent size.
        colour: The prior's.
        width: The panel's, inches.
    """
    ax.set(xticks=[], yticks=[])
    name, bracket, options = label.partition("[")
    long = len(label) > 9.5 * width
    # a long label has lines for its options, and stays within its panel
    lines = [name, *_broken(bracket + options, int(9.5 * width))] if long else [label]
    title, size = "\n".join(lines), min(9.0, 85 * width / max(map(len, lines)))
    ax.set_title(title, color=colour, weight="bold", pad=4, size=size)
    if run is None:
        sns.despine(ax=ax, left=True, bottom=True)
        lost = arm["status"].value_counts()
        told = [f"{lost[s]} of {len(arm)} {s}" for s in UNSCORED if s in lost]
        words = "\n".join(["no complete seed", *told] if len(told) else ["no pictures kept"])
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top"}
        ax.text(0.5, 0.52, words, color=SOFT, linespacing=1.5, gid="absent", **place)
        if "diverged" in lost:
            ax.plot(0.5, 0.64, "x", color=colour, transform=ax.transAxes, **LOST | {"ms": 14})
        return
    facts = f"seed {run['seed']}, test NLL {nats(run['test/nll'], '.1f')}"
    ax.set_xlabel(facts, size=7, color=SOFT, loc="left", labelpad=3)


def _broken(options: str, most: int) -> list[str]:
    """Return options in lines of at most so many characters, broken after commas."""
    lines = [""]
    for part in options.replace(",", ",\n").splitlines():
        if len(lines[-1]) + len(part) <= most:
            lines[-1] += part
        else:
            lines.append(part)
    return [line for line in lines if line]


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
    here = stats.settle(frame[frame["latent"] == 2])
    shares = np.array([0.99, 0.95, 0.8, 0.6, 0.4, 0.2])
    fills = sns.color_palette("blend:#f1f4f9,#93a5c4", len(shares))
    each = {label: _reach(m["codes"]) for label, m in shown.items()}
    most = limit(list(each.values()), least=1)
    reach = 1.05 * max((r for r in each.values() if r <= most < np.inf), default=3.0)
    out = [label for label, r in each.items() if r > reach]
    classes = {int(c) for m in shown.values() for c in np.unique(m["labels"])}
    told = f"{', coloured by class' if len(classes) > 1 else ''}"
    told += f" ({len(hues)} colours in turn)" if len(classes) > len(hues) else ""
    note = DOT.join([
        footer(here),
        f"points: one posterior sample a test image{told}",
        f"shades: smallest regions of prior mass {', '.join(f'{s:.2g}' for s in shares[::-1])}",
        f"every panel spans \N{PLUS-MINUS SIGN}{reach:.1f} in both latents",
        *([f"points further out, or no numbers: {', '.join(out)}"] if out else []),
    ])  # fmt: skip
    figure, cells, width = _sheet(len(chosen), note)
    for ax, (label, run) in zip(cells, chosen.items(), strict=True):
        _titled(ax, label, run, here[here["prior"] == label], look[label].colour, width)
        ax.spines[:].set_color(FAINT)
        ax.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
        if run is None:
            continue
        data = shown[label]
        known = np.isfinite(data["codes"][:points]).all(axis=1)
        codes, labels = data["codes"][:points][known], data["labels"][:points][known].astype(int)
        _shade(ax, data, shares, fills)
        ax.scatter(
            codes[:, 0], codes[:, 1], c=hues[labels % len(hues)], s=2.6, lw=0, alpha=0.8,
            rasterized=True, zorder=2,
        )  # fmt: skip
        for digit in sorted(classes) if 1 < len(classes) <= NAMED else ():
            if not (labels == digit).any():
                continue
            x, y = np.median(codes[labels == digit], axis=0)
            ax.text(
                x, y, str(digit), size=9, weight="bold", color=hues[digit % len(hues)],
                ha="center", va="center", clip_on=True, path_effects=HALO,
            )  # fmt: skip
    return figure


def _reach(codes: NDArray[Any]) -> float:
    """Return how far from zero nearly all codes, (N, 2), lie; infinity where none is a number."""
    sizes = np.abs(codes[np.isfinite(codes)])
    return float(np.quantile(sizes, 0.995)) if len(sizes) else float("inf")


def _shade(
    ax: Axes,
    data: Mapping[str, NDArray[Any]],
    shares: NDArray[np.float64],
    fills: Sequence[Any],
) -> None:
    """Shade where a prior has its mass, if the grid shows it."""
    levels = _regions(data["log_density"], shares)
    if len(levels) < 2:  # all mass in one point of the grid, or no density that is a number
        return
    # contours cannot take what is not finite
    floor = np.nan_to_num(data["log_density"], nan=-np.inf).clip(levels[0] - 20, levels[-1] + 20)
    grid = (data["axis_x"], data["axis_y"], floor)
    ax.contourf(*grid, levels, colors=fills, extend="max")
    ax.contour(*grid, levels, colors="white", linewidths=0.7, linestyles="solid")


def _regions(log_density: NDArray[Any], shares: NDArray[np.float64]) -> list[float]:
    """Return the log-densities above which lie `shares` of the mass on the grid, increasing."""
    flat = np.sort(log_density[np.isfinite(log_density)].astype(np.float64))[::-1]
    if not len(flat):
        return []
    mass = np.cumsum(np.exp(flat - flat[0]))
    levels = flat[np.searchsorted(mass, shares * mass[-1]).clip(max=len(flat) - 1)]
    return sorted(set(levels.tolist()))


@theme()
def sample_sheet(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], *, latent: int | None = None
) -> Figure:
    """Draw samples of each prior side by side.

    They are those at `latent`, or at the largest size that has some.
    """
    frame = stats.settle(frame)
    some = frame[frame["run_id"].isin(list(samples)) & (frame["status"] == "complete")]
    if not len(some):
        raise NoDataError("Expected samples of a complete run of the frame; got none.")
    latent = int(some["latent"].max()) if latent is None else latent
    chosen = _chosen(frame, latent, samples)
    if not any(run is not None for run in chosen.values()):
        raise NoDataError(f"Expected samples of a complete run at D = {latent}; got none.")
    look = styles(stats.priors(frame))
    here = frame[frame["latent"] == latent]
    note = f"D = {latent}{DOT}{footer(here)}{DOT}pixel probabilities, first draws, none chosen"
    figure, cells, width = _sheet(len(chosen), note)
    for ax, (label, run) in zip(cells, chosen.items(), strict=True):
        _titled(ax, label, run, here[here["prior"] == label], look[label].colour, width)
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
