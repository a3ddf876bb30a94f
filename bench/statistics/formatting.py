"""How numbers are written: as many digits as they deserve, however large they are."""

from __future__ import annotations

__all__ = ["decimals", "nats", "percent", "thousands"]


LARGE = 1e5
"""Nats from which a number has its power of ten and no decimals: no model that works has it."""


def decimals(value: float) -> int:
    """Return how many decimals a difference deserves, nats.

    Example:
        >>> decimals(-6.3), decimals(0.65), decimals(0.021)
        (1, 2, 3)
    """
    return 1 if abs(value) >= 1 else 2 if abs(value) >= 0.1 else 3


def nats(value: float, pattern: str = ".2f") -> str:
    """Write a number of nats by its pattern, and an absurd one as briefly as it can be.

    Example:
        >>> nats(-68.404), nats(1.5, "+.1f"), nats(597867202631331214939064893440.0, "+.2f")
        ('-68.40', '+1.5', '+6.0e+29')
    """
    if abs(value) < LARGE:
        return format(value, pattern)
    return format(value, f"{'+' if pattern.startswith('+') else ''}.1e")


pass


def percent(value: float) -> str:
    """Write a share such as 0.005 as 0.5%: as many digits as it takes to tell ticks apart."""
    return f"{100 * value:.3g}%"


def thousands(value: float) -> str:
    """Write a tick such as 500, 5k or 20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
