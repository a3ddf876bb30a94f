"""How numbers are written: as many digits as they deserve, however large they are."""

from __future__ import annotations

__all__ = ["nats"]

LARGE = 1e5
"""Nats from which a number has its power of ten and no decimals: no model that works has it."""


def nats(value: float, pattern: str = ".2f") -> str:
    """Write a number of nats by its pattern, and an absurd one as briefly as it can be.

    Example:
        >>> nats(-68.404), nats(1.5, "+.1f"), nats(597867202631331214939064893440.0, "+.2f")
        ('-68.40', '+1.5', '+6.0e+29')
    """
    if abs(value) < LARGE:
        return format(value, pattern)
    return format(value, f"{'+' if pattern.startswith('+') else ''}.1e")
