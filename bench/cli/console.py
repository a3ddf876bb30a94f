"""The console, and numbers, lists and durations in words."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


__all__ = ["duration", "join_words", "make_console", "print_labelled", "quantity"]


def print_labelled(console: Console, label: str, text: str) -> None:
    """Prints a line that begins with a bold label."""
    from rich.text import Text

    console.print(Text.assemble((f"{label:<11}", "bold"), text), soft_wrap=True)


def quantity(number: int, noun: str) -> str:
    """Returns a number of things in words, such as `1 trial`, `2 trials`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def join_words(values: Iterable[object]) -> str:
    """Returns the values as a comma-separated list."""
    return ", ".join(map(str, values))


def duration(seconds: float) -> str:
    """Returns a duration with two digits or three, in s, min or h.

    Example:
        >>> duration(0.4), duration(50), duration(200), duration(9000)
        ('1 s', '50 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


LOG_WIDTH = 170
"""Characters per line if the output is not a terminal."""


def make_console() -> Console:
    """Returns the console, which is wide if the output is not a terminal.

    Where the reader of the output ends, as in `| head`, it raises KeyboardInterrupt.
    """
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            with suppress(SystemExit):
                super().on_broken_pipe()  # what is written from now on is discarded
            raise KeyboardInterrupt("the end of the program that reads the output")

    console = PipedConsole(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console
