"""Signals that ask a process to end, turned into a clean end.

Ctrl-C; SIGTERM and SIGHUP, which a closed terminal, a container's engine, a spot machine and SLURM
send; SIGUSR1, SIGUSR2 and SIGXCPU, by which batch systems warn (`sbatch --signal=USR1@120`). The
first one raises KeyboardInterrupt in the main thread; inside `waiting` it is noted only, and what
runs there asks for it between two steps (`asked`), so that it ends where its state is whole. A
second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["ask", "asked", "forget", "handled", "waiting"]


ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SHOW_CURSOR = "\x1b[?25h"
STATUS = 130


class _Process:
    """What this process was asked. Signals are a process's own, and so is this."""

    asked = ""
    waits = 0


def asked() -> str:
    """Returns the name of the signal that asked for the end, or an empty text."""
    return _Process.asked


def ask(why: str) -> None:
    """Asks this process for the end as a signal does, from any thread."""
    _Process.asked = _Process.asked or why


def forget() -> None:
    """Takes back that this process was asked to end."""
    _Process.asked = ""


@contextmanager
def waiting() -> Iterator[None]:
    """Lets a signal wait until what runs in the block asks, or the block ends."""
    _Process.waits += 1
    try:
        yield
    finally:
        _Process.waits -= 1
    if _Process.asked and not _Process.waits:
        raise KeyboardInterrupt(_Process.asked)


@contextmanager
def handled() -> Iterator[None]:
    """Handles the signals in the block, those that the process was told to ignore left out.

    Outside the main thread, where Python takes no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Process.asked, before = "", {}
    for name in ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets
            before[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not set from Python cannot be set from it
                signal.signal(number, handler)


def _handle(number: int, _: FrameType | None) -> None:
    if not _Process.asked:
        _Process.asked = signal.Signals(number).name
        if not _Process.waits:
            raise KeyboardInterrupt(_Process.asked)
    elif number == signal.SIGINT:
        cursor = SHOW_CURSOR if sys.stdout.isatty() else ""  # hidden by the bars
        os.write(2, f"{cursor}\nended at once: what was not saved is done again\n".encode())
        os._exit(STATUS)
