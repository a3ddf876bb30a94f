"""What all commands share: exit statuses, an error as one line, the console."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from bench.system.allocator import keep_freed
from bench.system.signals import handled
from flowvae.errors import InputError, nearest
from flowvae.specs.values import read

if TYPE_CHECKING:
    pass

__all__ = [
    "EXIT_COMPLETE",
    "EXIT_INTERRUPTED",
    "EXIT_UNFINISHED",
    "EXIT_USAGE",
    "Parser",
    "read_flag",
    "run_command",
]


EXIT_COMPLETE, EXIT_UNFINISHED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are input errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises an InputError."""
        raise InputError(f"{message} (--help lists the flags)")

    def parted(self, argv: Sequence[str], word: str, known: Callable[[str], bool]) -> str:
        """Says how a list is typed, where a word without a flag follows the value of one.

        Arguments:
            argv: The arguments.
            word: The word, as it stands last in them.
            known: Tells whether a word is one that stands without a flag, and so in no list.
        """
        before = list(argv)
        while before and before[-1] != word:
            before.pop()
        first = next((k for k in reversed(range(len(before))) if before[k][:1] == "-"), None)
        if first is None:
            return ""
        name, sign, value = before[first].partition("=")
        values = [value] * bool(sign) + before[first + 1 :]
        values = values[:1] + [value for value in values[1:] if not known(value)]
        action = self._option_string_actions.get(name)
        if len(values) < 2 or not (action and str(action.metavar).endswith("LIST")):
            return ""
        listed = ",".join(part.strip(",") for part in values)
        return f": lists are comma-separated, without spaces, such as {name} {listed}"

    def _flags(self) -> set[str]:
        return {action.dest for action in self._actions if action.option_strings}

    def parse(
        self, argv: Sequence[str], known: Callable[[str], bool] = lambda _: False
    ) -> argparse.Namespace:
        """Parses all of `argv`; suggests the nearest flag for one that is not known.

        Arguments:
            argv: The arguments.
            known: Tells whether a word is one that stands without a flag.
        """
        arguments, rest = self.parse_known_args(argv)
        if rest:
            flags = [read_flag for action in self._actions for read_flag in action.option_strings]
            near = nearest(rest[0].partition("=")[0], flags)
            hint = f": did you mean {near}?" if near else self.parted(argv, rest[0], known)
            self.error(f"unknown argument '{rest[0]}'{hint}")
        for name, value in vars(arguments).items():
            if value == [] and name in self._flags():  # what Python 3.11 makes of --flag=--
                self.error(f"argument --{name.replace('_', '-')}: expected a value")
        return arguments


def read_flag(name: str, text: str, kind: object, unit: str = "") -> Any:  # noqa: ANN401
    """Reads a flag's value.

    Arguments:
        name: The flag, without its dashes.
        text: What was typed.
        kind: Its type, as `flowvae.specs.values.read` takes it.
        unit: What it is measured in.

    Raises:
        InputError: It is not of that type.
    """
    try:
        return read(text, kind)
    except ValueError as expected:
        told = f"{expected} ({unit})" if unit else f"{expected}"
        raise InputError(f"bad --{name} '{text}': expected {told}") from None


def run_command(
    body: Callable[[Sequence[str]], int], argv: Sequence[str] | None, *, resumes: bool = True
) -> int:
    """Runs a command; returns its exit status, or that of the error or interrupt it ended by.

    Arguments:
        body: The command, from arguments to exit status.
        argv: The arguments; those of the process where None. `--debug` shows tracebacks.
        resumes: Whether the same command, given again, goes on where it was interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    keep_freed()
    with handled():
        try:
            return body(argv)
        except InputError as error:
            if "--debug" in argv:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USAGE
        except KeyboardInterrupt as interrupt:
            by = f" by {interrupt}" if str(interrupt) else ""
            told = (
                "the same command goes on where it was"
                if resumes
                else "the same command begins anew"
            )
            print(f"interrupted{by}: {told}", file=sys.stderr)
            return EXIT_INTERRUPTED
