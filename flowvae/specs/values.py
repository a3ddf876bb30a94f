"""Values that a person types: their types, their bounds, and how to read and write them.

An annotation says it all: `Count` is a whole number of at least one, `Literal["last", "best"]` one
of two words, `Positive | None` a number above zero or `none`. Builders' options, a trial's fields
and the flags of the command line share this one reading.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

__all__ = ["AtLeast", "Count", "Natural", "Positive", "Real", "Value", "Widths", "read", "write"]


MAX_INTEGER = 2**63 - 1
"""The largest whole number: torch's and NumPy's integers end there."""
Value = bool | int | float | str | tuple[int, ...] | None


@dataclass(frozen=True)
class AtLeast:
    """The least value that an option takes; `strict` leaves out the bound itself."""

    bound: float
    strict: bool = False

    def __str__(self) -> str:
        if math.isinf(self.bound):
            return "finite"
        return f"{'above' if self.strict else 'at least'} {self.bound:g}"

    def admits(self, value: float) -> bool:
        """Returns whether `value` is finite and within the bound."""
        within = value > self.bound if self.strict else value >= self.bound
        return within and (isinstance(value, int) or math.isfinite(value))


Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
Positive = Annotated[float, AtLeast(0, strict=True)]
Real = Annotated[float, AtLeast(-math.inf)]
Widths = Annotated[tuple[int, ...], AtLeast(1)]


def write(value: Value) -> str:
    """Writes a value as a person would type it: `true`, `256x256`, `0.001`, `none`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    try:
        return str(value)
    except ValueError:  # a whole number of more digits than Python writes
        return f"{value:#x}"


def read(text: str, annotation: Any) -> Any:  # noqa: ANN401
    """Reads a typed value as `annotation` says.

    Arguments:
        text: What was typed.
        annotation: One of the types above, `bool`, `str`, a `Literal`, or any of them `| None`.

    Raises:
        ValueError: The text is not such a value; the message says what was expected.

    Example:
        >>> read("256x256", Widths)
        (256, 256)
        >>> read("0", Count)
        Traceback (most recent call last):
        ValueError: a whole number, at least 1
    """
    limit: AtLeast | None = None
    if typing.get_origin(annotation) is Annotated:
        annotation, limit = typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):  # X | None
        if text == "none":
            return None
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
        return read(text, annotation)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text
    if annotation is str:
        return text
    if annotation is bool:
        if text not in ("true", "false"):
            raise ValueError("true or false")
        return text == "true"
    is_widths = typing.get_origin(annotation) is tuple
    noun = {int: "a whole number", float: "a number"}.get(annotation, "whole numbers as 256x256")
    expected = f"{noun}, {limit}" if limit else noun
    try:
        if "_" in text:  # Python reads 1_0 as 10
            raise ValueError
        number = int if is_widths else annotation
        values = tuple(number(part) for part in (text.split("x") if is_widths else [text]))
    except ValueError:
        raise ValueError(expected) from None
    if limit and not all(limit.admits(value) for value in values):
        raise ValueError(expected)
    if any(isinstance(value, int) and abs(value) > MAX_INTEGER for value in values):
        raise ValueError(f"{expected}, and at most {MAX_INTEGER}")
    return values if is_widths else values[0]
