"""Axis limits that leave out absurd values, which are marked at the edge.

A model may end with an NLL of 1e12 nats, or a likelihood of 1e-30 000 for one bad posterior
sample, without any number being infinite or NaN. An axis that reached so far would flatten all
other values. It is cut instead, and the value is written at its edge, as `1e+12 ->`, in the
colour of the arm.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from bench.figures.style import HALO, with_minus
from bench.statistics.outliers import finite, is_far

__all__ = ["BEYOND_AXIS", "beyond_note", "cut_y_axis", "limits_within", "mark_beyond"]


LEFT, RIGHT = "\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"
BEYOND_AXIS = "arrows: values beyond the axis"


def beyond_note(values: Any, bound: float) -> str:  # noqa: ANN401
    """Returns the note of a footer where a value is larger than `bound` in size, else ''."""
    return BEYOND_AXIS if is_far(values, bound).any() else ""


def limits_within(*values: Any, bound: float, pad: float = 0.12) -> tuple[float, float]:  # noqa: ANN401
    """Returns the limits of an axis that shows all values up to `bound` in size."""
    near = finite(*values)
    near = near[~is_far(near, bound)]
    if not len(near):
        return 0.0, 1.0
    low, high = float(near.min()), float(near.max())
    room = pad * (high - low) or 0.05 * max(abs(low), 1.0)
    return low - room, high + room


def cut_y_axis(ax: Axes, values: Any, *more: Any, bound: float) -> None:  # noqa: ANN401
    """Cuts the y axis if one of the values is larger than `bound` in size.

    Arguments:
        ax: The axes.
        values: The values that are drawn.
        more: Other numbers that the axis must show, such as ends of intervals.
        bound: The size from which a value is absurd; see `bench.statistics.outliers.limit`.
    """
    if is_far(values, bound).any():
        ax.set_ylim(*limits_within(values, *more, bound=bound))


def mark_beyond(
    ax: Axes,
    place: float,
    value: float,
    colour: str,
    *,
    upright: bool = True,
    inside: float = 0.0,
) -> None:
    """Writes a value that lies beyond the axes at their edge, with an arrow that points outwards.

    Arguments:
        ax: The axes.
        place: The position along the other axis, in data.
        value: The value.
        colour: The colour of the arm.
        upright: Whether the value belongs to the y axis; else it belongs to the x axis.
        inside: The distance of the text from the edge, as a share of the axes.
    """
    positive = value > 0
    text = f"{value:.3g} {RIGHT}" if positive else with_minus(f"{LEFT} {value:.3g}")
    edge = 0.985 - inside if positive else 0.015 + inside
    if upright:
        x, y, side = place, edge, "top" if positive else "bottom"
    else:
        x, y, side = edge, place, "center"
    ax.text(
        x, y, text, size=6.8, color=colour, path_effects=HALO, gid="beyond", zorder=6,
        rotation=90 if upright else 0, va=side,
        ha="center" if upright else ("right" if positive else "left"),
        transform=ax.get_xaxis_transform() if upright else ax.get_yaxis_transform(),
    )  # fmt: skip
