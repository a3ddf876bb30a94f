"""The exception for all errors of a user, and the wording of its messages.

A caller of the library catches `InputError`; the command line prints it as one line. Any other
exception is a bug.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["USER_CODE_ERRORS", "InputError", "nearest", "out_of_memory", "unknown"]


MAX_CHARACTERS = 1200
"""Characters of a message; of a longer one, which quotes a long input, the middle is left out.

So is that of a word of more than 300 characters, so that what follows it can be read.
"""


USER_CODE_ERRORS = (Exception, SystemExit)
"""What a user's own prior, net or data set may raise: a script of theirs may call `sys.exit`."""


class InputError(ValueError):
    r"""Input that cannot be used: says what came, what was expected and what to do.

    The message is one line that any terminal shows, whatever the input that it quotes.

    Example:
        >>> print(InputError("bad name 'a\nb': expected a word"))
        bad name 'a\nb': expected a word
    """

    def __init__(self, message: str) -> None:
        message = re.sub(r"(\S{150})\S{100,}(\S{50})", r"\1...\2", message)
        if len(message) > MAX_CHARACTERS:
            cut = f" [{len(message) - MAX_CHARACTERS} characters] "
            message = message[: MAX_CHARACTERS // 2] + cut + message[-MAX_CHARACTERS // 2 :]
        super().__init__("".join(c if c.isprintable() else _escaped(c) for c in message))


def _escaped(character: str) -> str:
    """Writes a character that is not printable, a lone surrogate too, as in a Python text."""
    return character.encode("unicode_escape").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known name that is most like one, or nothing where none is.

    Example:
        >>> nearest("gaus", ["gauss", "maf"]), nearest("nsf", ["gauss"])
        ('gauss', '')
    """
    return next(iter(difflib.get_close_matches(name[:100], known, n=1)), "")


def unknown(kind: str, name: str, known: Iterable[str], *, of: str = "") -> InputError:
    """Builds the error for an unknown name, with the nearest known one.

    Arguments:
        kind: What was named, such as `prior`.
        name: The name that came.
        known: The names that would have been accepted.
        of: What it would belong to, such as `prior 'maf'`.

    Returns:
        The error, for the caller to raise.

    Example:
        >>> print(unknown("prior", "gaus", ["gauss", "maf"]))
        unknown prior 'gaus': expected one of gauss, maf; did you mean 'gauss'?
    """
    known = list(known)
    near = nearest(name, known)
    hint = f"; did you mean '{near}'?" if near else ""
    owner = f" of {of}" if of else ""
    return InputError(f"unknown {kind} '{name}'{owner}: expected one of {', '.join(known)}{hint}")


def out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out, by an error of Python's, or of torch's on any device.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("a shape does not fit"))
        (True, False)
    """
    # On a CUDA device it is torch.OutOfMemoryError; on a CPU a RuntimeError like any other.
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in phrases)
    )
