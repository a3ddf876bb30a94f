"""Heartbeats: a tag of each open run on a shared server that its process changes regularly."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from bench.store.run_writer import RunWriter

__all__ = ["HEARTBEAT_SECONDS", "HEARTBEAT_TAG", "heartbeats"]


HEARTBEAT_TAG = "alive"
HEARTBEAT_SECONDS = 20.0
"""The time between two heartbeats, s."""


@contextmanager
def heartbeats(writers: Collection[RunWriter]) -> Iterator[None]:
    """Sends heartbeats of the runs that are open, in the block, from a thread.

    Arguments:
        writers: The writers of the runs; more may be added in the block.
    """
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(HEARTBEAT_SECONDS):
            count += 1
            for writer in list(writers):
                if not writer.closed:
                    with suppress(Exception):  # if the store does not answer, the next one may
                        writer.client.set_tag(writer.run_id, HEARTBEAT_TAG, str(count))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(HEARTBEAT_SECONDS)
