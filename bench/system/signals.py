"""Signals that ask a process to end, turned into a clean end.

Ctrl-C; SIGTERM and SIGHUP, which a closed terminal, a container's engine, a spot machine and SLURM
send; SIGUSR1, SIGUSR2 and SIGXCPU, by which batch systems warn (`sbatch --signal=USR1@120`). The
first signal raises KeyboardInterrupt in the main thread. Inside `defer_signals` it is only noted:
the code there checks `requested_end` between two steps, so that it ends in a consistent state. A
second Ctrl-C ends the process immediately.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["defer_signals", "handle_signals", "request_end", "requested_end", "withdraw_request"]


ENDING_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SHOW_CURSOR = "\x1b[?25h"
EXIT_STATUS = 130


class _State:
    """State of this process: the signal that asked it to end, and how many blocks defer it."""

    request = ""
    deferring = 0


def requested_end() -> str:
    """Returns the name of the signal that asked this process to end, or an empty text."""
    return _State.request


def request_end(reason: str) -> None:
    """Asks this process to end as a signal does, from any thread."""
    _State.request = _State.request or reason


def withdraw_request() -> None:
    """Cancels the request to end this process."""
    _State.request = ""


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defers a signal to the end of the block, which may check `requested_end` before."""
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
    if _State.request and not _State.deferring:
        raise KeyboardInterrupt(_State.request)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Handles the signals in the block, except those that the process was told to ignore.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.request, handlers = "", {}
    for name in ENDING_SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets
            handlers[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # one that C code set cannot be restored from Python
                signal.signal(number, handler)


def _handle(number: int, _: FrameType | None) -> None:
    if not _State.request:
        _State.request = signal.Signals(number).name
        if not _State.deferring:
            raise KeyboardInterrupt(_State.request)
    elif number == signal.SIGINT:
        cursor = SHOW_CURSOR if sys.stdout.isatty() else ""  # progress bars hide it
        message = "ended immediately: work since the last checkpoint is lost"
        os.write(2, f"{cursor}\n{message}\n".encode())
        os._exit(EXIT_STATUS)
