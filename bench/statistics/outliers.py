"""Tells which numbers are far off: limits that leave out the absurd."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["finite", "is_far", "limit"]


TIMES = 20
"""An axis that held a number that many times as large would show the others as one."""
LEAST = 5.0
"""Nats: numbers smaller than that do not make one of 100 nats far off."""


def limit(*values: Any, least: float = LEAST) -> float:  # noqa: ANN401
    """Return the size from which a number is far off: 20 times their lower quartile.

    Three quarters may be absurd, and the rest is still seen.

    Arguments:
        values: Arrays of numbers, of any shapes; those that are not finite do not count.
        least: What the quartile is at least taken to be, in their unit.

    Example:
        >>> limit([85.0, 90.0, 1e12, float("nan")])
        1700.0
    """
    sizes = np.abs(finite(*values))
    if not len(sizes):
        return float("inf")
    return TIMES * max(float(np.quantile(sizes, 0.25, method="lower")), least)


def finite(*values: Any) -> NDArray[np.float64]:  # noqa: ANN401
    """Returns the finite numbers among values of any shapes, (n,)."""
    flat = np.concatenate([np.ravel(np.asarray(each, np.float64)) for each in values])
    return flat[np.isfinite(flat)]


def is_far(values: Any, most: float) -> NDArray[np.bool_]:  # noqa: ANN401
    """Return which numbers lie beyond `most` in size; one that is missing does not."""
    return np.abs(np.asarray(values, np.float64)) > most
