"""Limits beyond which numbers are far off all others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["finite", "is_far", "limit"]


FAR_FACTOR = 20
"""On an axis that held a number this many times as large, the others would look like one."""
MIN_QUARTILE = 5.0
"""The least lower quartile, nats: with smaller numbers, 100 nats are not yet far off."""


def limit(*values: Any, least: float = MIN_QUARTILE) -> float:  # noqa: ANN401
    """Returns the size above which a number is far off: 20 times the lower quartile of sizes.

    Three quarters of the numbers may be absurd, and the others still fit below the limit.

    Arguments:
        values: Arrays of numbers, of any shapes; those that are not finite are ignored.
        least: The least value of the quartile, in their unit.

    Example:
        >>> limit([85.0, 90.0, 1e12, float("nan")])
        1700.0
    """
    sizes = np.abs(finite(*values))
    if not len(sizes):
        return float("inf")
    return FAR_FACTOR * max(float(np.quantile(sizes, 0.25, method="lower")), least)


def finite(*values: Any) -> NDArray[np.float64]:  # noqa: ANN401
    """Returns the finite numbers among values of any shapes, (n,)."""
    flat = np.concatenate([np.ravel(np.asarray(value, np.float64)) for value in values])
    return flat[np.isfinite(flat)]


def is_far(values: Any, most: float) -> NDArray[np.bool_]:  # noqa: ANN401
    """Returns which numbers are larger than `most` in size; a missing one is not."""
    return np.abs(np.asarray(values, np.float64)) > most
