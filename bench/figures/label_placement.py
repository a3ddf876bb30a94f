"""Where words stand beside what they name, so that none lies on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bench.figures.style import HALO, Style

__all__ = ["apart", "beside", "direct_labels", "dodge"]


SIZE = 6.5
"""Points of a label beside a point."""
PLACES = [
    (np.array([dx, dy]), far)
    for far in (0, 1, 2, 3)
    for dx, dy in ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1))
]
"""Where a label may stand beside its point, the nearest first."""


def dodge(latents: Sequence[int], count: int) -> NDArray[np.float64]:
    """Return `count` factors that set priors apart at one latent size, (count,)."""
    gap = min(np.diff(np.log2(sorted(latents))), default=1.0)
    return 2 ** (np.linspace(-1, 1, count) * min(0.05 * (count - 1), 0.22) * min(gap, 1))


def _spread(wanted: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Return positions at least `gap` apart, in the order of `wanted` and as near as is simple."""
    order = np.argsort(wanted)
    steps = np.arange(len(wanted)) * gap
    placed = np.maximum.accumulate(wanted[order] - steps) + steps
    out = np.empty_like(placed)
    out[order] = placed - (placed - wanted[order]).mean()
    return out


def direct_labels(
    ax: Axes, ends: Mapping[str, tuple[float, float]], look: Mapping[str, Style]
) -> None:
    """Write each prior's name at the right of the axes, tied to the end of its line."""
    height = ax.get_figure(root=True).get_size_inches()[1] * 0.72  # type: ignore[union-attr]
    low, high = ax.get_ylim()
    heights = np.minimum([y for _, y in ends.values()], low + 0.975 * (high - low))
    spread = _spread((heights - low) / (high - low), 0.145 / height)
    spread -= min(0, spread.min(initial=0))  # none below the axes
    for (label, (x, _)), y, at in zip(ends.items(), heights, spread, strict=True):
        line = {"arrowstyle": "-", "lw": 0.5, "alpha": 0.6, "color": look[label].colour}
        line |= {"shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)}
        ax.annotate(
            label, (x, float(y)), (1.04, float(at)), textcoords="axes fraction", size=8,
            color=look[label].colour, va="center", arrowprops=line,
        )  # fmt: skip


def beside(ax: Axes, points: NDArray[Any], names: Sequence[str], colours: Sequence[str]) -> None:
    """Write names beside points, each where there is room: on no point, and on no other name.

    Only a figure that is laid out says where its points are: call it after
    `figure.draw_without_rendering()`.

    Arguments:
        ax: The axes.
        points: All points of the axes, in data, (n, 2).
        names: The name of each; none where it is empty.
        colours: The colour of each.
    """
    dots = ax.transData.transform(points)
    scale = ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    boxes = [_box(dot, (0, 0), (7 * scale, 7 * scale)) for dot in dots]
    edge = np.array(ax.bbox.extents)
    for point, text, colour, dot in zip(points, names, colours, dots, strict=True):
        if not text:
            continue
        size = (0.56 * SIZE * len(text) * scale, 1.15 * SIZE * scale)
        shifts = [_shift(side, far, size, scale) for side, far in PLACES]
        spots = [_box(dot, shift, size) for shift in shifts]
        best = int(
            np.argmin([_cost(spot, boxes, edge) + 1e-3 * k for k, spot in enumerate(spots)])
        )
        boxes.append(spots[best])
        far = PLACES[best][1] > 0
        ax.annotate(
            text, tuple(point), tuple(shifts[best] / scale), textcoords="offset points",
            size=SIZE, color=colour, ha="center", va="center", path_effects=HALO, zorder=5,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour} if far else None,
        ).set_in_layout(False)  # fmt: skip


def _shift(
    side: NDArray[Any], far: int, size: tuple[float, float], scale: float
) -> NDArray[np.float64]:
    """Return from a point to the middle of its label, pixels."""
    gap = (5 + 9 * far) * scale
    return side * (np.array(size) / 2 + gap * np.array([0.9, 0.75]))


def _box(
    dot: NDArray[Any], shift: Sequence[float] | NDArray[Any], size: tuple[float, float]
) -> NDArray[np.float64]:
    """Return left, bottom, right, top, pixels."""
    middle, half = dot + np.asarray(shift), np.array(size) / 2
    return np.concatenate([middle - half, middle + half])


def _cost(box: NDArray[Any], others: Sequence[NDArray[Any]], edge: NDArray[Any]) -> float:
    """Return how much of a label would lie on others or outside the axes."""
    each = np.array(others)
    width = np.minimum(box[2], each[:, 2]) - np.maximum(box[0], each[:, 0])
    height = np.minimum(box[3], each[:, 3]) - np.maximum(box[1], each[:, 1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    over = (np.clip(width, 0, None) * np.clip(height, 0, None)).sum() / area
    out = np.clip(edge[:2] - box[:2], 0, None).sum() + np.clip(box[2:] - edge[2:], 0, None).sum()
    return float(over + 10 * (out > 0))


def apart(
    places: NDArray[np.float64], gap: float, most: float, rounds: int = 100
) -> NDArray[np.float64]:
    """Return places, (n, 2), that were pushed `gap` apart where there is room within `most`."""
    places = places.astype(np.float64).clip(-most, most)
    turn = np.arange(len(places))[:, None] * 2.4  # where two are one, some direction to part in
    places += 1e-6 * gap * np.hstack([np.cos(turn), np.sin(turn)])
    for _ in range(rounds):
        away = places[:, None] - places[None]
        far = np.linalg.norm(away, axis=-1)
        near = (far < gap) & (far > 0)
        if not near.any():
            break
        push = np.where(near, (gap - far) / np.where(far > 0, far, 1), 0)
        places = (places + 0.3 * (push[..., None] * away).sum(axis=1)).clip(-most, most)
    return places
