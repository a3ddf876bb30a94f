"""Placement of labels beside points and lines so that none covers another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bench.figures.style import HALO, Style

__all__ = ["latent_shifts", "name_line_ends", "name_points", "push_apart"]


LABEL_POINTS = 6.5
"""Font size of a label beside a point."""
LABEL_PLACES = [
    (np.array([dx, dy]), distance)
    for distance in (0, 1, 2, 3)
    for dx, dy in ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1))
]
"""Directions and distances of a label from its point, the nearest first."""


def latent_shifts(latents: Sequence[int], count: int) -> NDArray[np.float64]:
    """Returns `count` factors that separate the priors at one latent size, (count,)."""
    gap = min(np.diff(np.log2(sorted(latents))), default=1.0)
    return 2 ** (np.linspace(-1, 1, count) * min(0.05 * (count - 1), 0.22) * min(gap, 1))


def _spread(wanted: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Returns positions in the order of `wanted`, at least `gap` apart and near to it."""
    order = np.argsort(wanted)
    steps = np.arange(len(wanted)) * gap
    placed = np.maximum.accumulate(wanted[order] - steps) + steps
    spread = np.empty_like(placed)
    spread[order] = placed - (placed - wanted[order]).mean()
    return spread


def name_line_ends(
    ax: Axes, ends: Mapping[str, tuple[float, float]], look: Mapping[str, Style]
) -> None:
    """Writes each prior's name at the right of the axes, tied to the end of its line."""
    height = ax.get_figure(root=True).get_size_inches()[1] * 0.72  # type: ignore[union-attr]
    low, high = ax.get_ylim()
    heights = np.minimum([y for _, y in ends.values()], low + 0.975 * (high - low))
    spread = _spread((heights - low) / (high - low), 0.145 / height)
    spread -= min(0, spread.min(initial=0))  # no name below the axes
    for (label, (x, _)), y, place in zip(ends.items(), heights, spread, strict=True):
        line = {"arrowstyle": "-", "lw": 0.5, "alpha": 0.6, "color": look[label].colour}
        line |= {"shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)}
        ax.annotate(
            label, (x, float(y)), (1.04, float(place)), textcoords="axes fraction", size=8,
            color=look[label].colour, va="center", arrowprops=line,
        )  # fmt: skip


def name_points(
    ax: Axes, points: NDArray[Any], names: Sequence[str], colours: Sequence[str]
) -> None:
    """Writes names beside points, away from other points and names where there is room.

    Points have their final positions only after the layout: call `figure.draw_without_rendering()`
    first.

    Arguments:
        ax: The axes.
        points: All points of the axes, in data, (n, 2).
        names: The name of each point; an empty one is not written.
        colours: The colour of each name.
    """
    dots = ax.transData.transform(points)
    scale = ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    boxes = [_box(dot, (0, 0), (7 * scale, 7 * scale)) for dot in dots]
    edge = np.array(ax.bbox.extents)
    for point, name, colour, dot in zip(points, names, colours, dots, strict=True):
        if not name:
            continue
        size = (0.56 * LABEL_POINTS * len(name) * scale, 1.15 * LABEL_POINTS * scale)
        shifts = [_shift(side, distance, size, scale) for side, distance in LABEL_PLACES]
        places = [_box(dot, shift, size) for shift in shifts]
        costs = [_cost(place, boxes, edge) + 1e-3 * k for k, place in enumerate(places)]
        best = int(np.argmin(costs))
        boxes.append(places[best])
        distant = LABEL_PLACES[best][1] > 0
        ax.annotate(
            name, tuple(point), tuple(shifts[best] / scale), textcoords="offset points",
            size=LABEL_POINTS, color=colour, ha="center", va="center", path_effects=HALO,
            zorder=5,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour} if distant else None,
        ).set_in_layout(False)  # fmt: skip


def _shift(
    side: NDArray[Any], distance: int, size: tuple[float, float], scale: float
) -> NDArray[np.float64]:
    """Returns the vector from a point to the middle of its label, pixels."""
    gap = (5 + 9 * distance) * scale
    return side * (np.array(size) / 2 + gap * np.array([0.9, 0.75]))


def _box(
    dot: NDArray[Any], shift: Sequence[float] | NDArray[Any], size: tuple[float, float]
) -> NDArray[np.float64]:
    """Returns left, bottom, right, top of a label, pixels."""
    middle, half = dot + np.asarray(shift), np.array(size) / 2
    return np.concatenate([middle - half, middle + half])


def _cost(box: NDArray[Any], others: Sequence[NDArray[Any]], edge: NDArray[Any]) -> float:
    """Returns the share of a label that covers others, and 10 if it leaves the axes."""
    boxes = np.array(others)
    width = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    height = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    overlap = (np.clip(width, 0, None) * np.clip(height, 0, None)).sum() / area
    outside = np.clip(edge[:2] - box[:2], 0, None).sum()
    outside += np.clip(box[2:] - edge[2:], 0, None).sum()
    return float(overlap + 10 * (outside > 0))


def push_apart(
    places: NDArray[np.float64], gap: float, reach: float, rounds: int = 100
) -> NDArray[np.float64]:
    """Returns places, (n, 2), pushed `gap` apart where there is room within `reach` of zero."""
    places = places.astype(np.float64).clip(-reach, reach)
    turn = np.arange(len(places))[:, None] * 2.4  # a direction of its own for equal places
    places += 1e-6 * gap * np.hstack([np.cos(turn), np.sin(turn)])
    for _ in range(rounds):
        away = places[:, None] - places[None]
        distance = np.linalg.norm(away, axis=-1)
        near = (distance < gap) & (distance > 0)
        if not near.any():
            break
        push = np.where(near, (gap - distance) / np.where(distance > 0, distance, 1), 0)
        places = (places + 0.3 * (push[..., None] * away).sum(axis=1)).clip(-reach, reach)
    return places
