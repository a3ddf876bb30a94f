"""The argument parser of all commands, their exit statuses, and errors in one line."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from bench.system.allocator import keep_freed_memory
from bench.system.signals import handle_signals
from flowvae.errors import InputError, nearest
from flowvae.specs.registry import split
from flowvae.specs.values import read

__all__ = [
    "EXIT_COMPLETE",
    "EXIT_INTERRUPTED",
    "EXIT_UNFINISHED",
    "EXIT_USAGE",
    "Parser",
    "read_flag",
    "read_list_flag",
    "run_command",
]


EXIT_COMPLETE, EXIT_UNFINISHED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser that raises an InputError for bad arguments."""

    def error(self, message: str) -> NoReturn:
        """Raises an InputError."""
        raise InputError(f"{message} (--help lists the flags)")

    def hint(self, argv: Sequence[str], word: str, known: Callable[[str], bool]) -> str:
        """Returns how to type a list, if `word` follows the value of a flag that takes one.

        Arguments:
            argv: The arguments.
            word: The unexpected word.
            known: Whether a word may stand without a flag, and so is not part of a list.
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
            known: Whether a word may stand without a flag.
        """
        arguments, rest = self.parse_known_args(argv)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = nearest(rest[0].partition("=")[0], flags)
            hint = f": did you mean {near}?" if near else self.hint(argv, rest[0], known)
            self.error(f"unknown argument '{rest[0]}'{hint}")
        for name, value in vars(arguments).items():
            if value == [] and name in self._flags():  # Python 3.11 parses --flag=-- so
                self.error(f"argument --{name.replace('_', '-')}: expected a value")
        return arguments


def read_flag(name: str, text: str, kind: object, unit: str = "") -> Any:  # noqa: ANN401
    """Reads a flag's value.

    Arguments:
        name: The flag, without its dashes.
        text: What was typed.
        kind: Its type, see `flowvae.specs.values.read`.
        unit: Its unit.

    Raises:
        InputError: It is not of that type.
    """
    try:
        return read(text, kind)
    except ValueError as expected:
        in_unit = f" ({unit})" if unit else ""
        raise InputError(f"bad --{name} '{text}': expected {expected}{in_unit}") from None


def read_list_flag(name: str, text: str, kind: object) -> list[Any]:
    """Returns the values of a flag's comma-separated list, each once.

    Arguments:
        name: The flag, without its dashes.
        text: The typed text.
        kind: The type of a value, as `flowvae.specs.values.read` takes it.

    Raises:
        InputError: A value is not of that type, or the list is empty.
    """
    try:
        values = [read(part, kind) for part in split(text)]
    except ValueError as expected:
        raise InputError(
            f"bad --{name} '{text}': expected {expected}, or a list of them"
        ) from None
    if not values:
        raise InputError(f"--{name} '{text}' is empty: expected at least one value")
    return list(dict.fromkeys(values))


def run_command(
    body: Callable[[Sequence[str]], int], argv: Sequence[str] | None, *, resumes: bool = True
) -> int:
    """Runs a command; returns its exit status, or that of an error or interrupt.

    Arguments:
        body: The command, from arguments to exit status.
        argv: The arguments; None for those of the process. `--debug` shows tracebacks.
        resumes: Whether the same command, given again, resumes where it was interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    keep_freed_memory()
    with handle_signals():
        try:
            return body(argv)
        except InputError as error:
            if "--debug" in argv:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USAGE
        except KeyboardInterrupt as interrupt:
            by = f" by {interrupt}" if str(interrupt) else ""
            outlook = "resumes" if resumes else "starts again from the beginning"
            print(f"interrupted{by}: the same command {outlook}", file=sys.stderr)
            return EXIT_INTERRUPTED
