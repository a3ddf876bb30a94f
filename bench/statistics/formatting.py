"""Formats of numbers in reports and figures, however large they are."""

from __future__ import annotations

__all__ = ["PLUS_MINUS", "decimals", "nats", "percent", "thousands"]


PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MAX_PLAIN_NATS = 1e5
"""Nats from which a number is written as a power of ten: no model that works reaches it."""


def decimals(value: float) -> int:
    """Returns the number of decimals of a difference in nats.

    Example:
        >>> decimals(-6.3), decimals(0.65), decimals(0.021)
        (1, 2, 3)
    """
    return 1 if abs(value) >= 1 else 2 if abs(value) >= 0.1 else 3


def nats(value: float, pattern: str = ".2f") -> str:
    """Returns nats as text: by the pattern, or as a power of ten if they are absurdly large.

    Example:
        >>> nats(-68.404), nats(1.5, "+.1f"), nats(597867202631331214939064893440.0, "+.2f")
        ('-68.40', '+1.5', '+6.0e+29')
    """
    if abs(value) < MAX_PLAIN_NATS:
        return format(value, pattern)
    return format(value, f"{'+' if pattern.startswith('+') else ''}.1e")


def percent(value: float) -> str:
    """Returns a share such as 0.005 as a percentage, 0.5%, with three significant digits."""
    return f"{100 * value:.3g}%"


def thousands(value: float) -> str:
    """Returns a number as a short text such as 500, 5k or 20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
