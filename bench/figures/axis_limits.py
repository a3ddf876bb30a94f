"""Keep a number that is finite but absurd from flattening all others: cut the axis, mark the rest.

A model may end with an NLL of 1e12 nats, or a likelihood of 1e-30 000 in one bad draw of its
posterior, without anything that is not finite. An axis that held it would show nothing else. It
ends before what is far off instead, at a text `1e+12 ->` in the arm's colour.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from bench.figures.style import HALO
from bench.statistics.outliers import _finite, is_far

__all__ = ["BEYOND", "beyond", "span"]


LEFT, RIGHT, MINUS = "\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}", "\N{MINUS SIGN}"
BEYOND = "arrows: beyond the axis, with its value"


def span(*values: Any, most: float, pad: float = 0.12) -> tuple[float, float]:  # noqa: ANN401
    """Return the limits of an axis that holds all numbers but those beyond `most`."""
    near = _finite(*values)
    near = near[~is_far(near, most)]
    if not len(near):
        return 0.0, 1.0
    low, high = float(near.min()), float(near.max())
    room = pad * (high - low) or 0.05 * max(abs(low), 1.0)
    return low - room, high + room


def beyond(
    ax: Axes, at: float, value: float, colour: str, *, upright: bool = True, inside: float = 0.0
) -> None:
    """Write a number that lies beyond the axes at that edge, with an arrow that points there.

    Arguments:
        ax: The axes.
        at: Its place along the other axis, in data.
        value: The number.
        colour: The arm's.
        upright: Whether the number belongs on the y axis; else it does on the x axis.
        inside: How far inside the edge it is written, as a share of the axes.
    """
    up = value > 0
    text = f"{value:.3g} {RIGHT}" if up else f"{LEFT} {value:.3g}".replace("-", MINUS)
    edge = 0.985 - inside if up else 0.015 + inside
    place, side = ((at, edge), "top" if up else "bottom") if upright else ((edge, at), "center")
    ax.text(
        *place, text, size=6.8, color=colour, path_effects=HALO, gid="beyond", zorder=6,
        rotation=90 if upright else 0, va=side,
        ha="center" if upright else ("right" if up else "left"),
        transform=ax.get_xaxis_transform() if upright else ax.get_yaxis_transform(),
    )  # fmt: skip
