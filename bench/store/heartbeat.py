"""Who is at a trial where no file is shared: runs that are open and give signs of life.

While a process has open runs on a server, it changes a tag of theirs now and then (`beating`).
Others watch (`Watch`): a run whose tag stays the same for long, by the watcher's own clock, is
forsaken, and another process may take its trial over.

A process that was only cut off may come back. So what a run ends as is written down by a param,
which MLflow takes once and never changes (`end_as`): who takes a trial over first ends the runs
before it, and of two runs of a trial at most one is complete.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.store.run_writer import RunWriter

__all__ = ["ALIVE", "BEAT", "heartbeats"]


ALIVE = "alive"
BEAT = 20.0
"""How often a process gives a sign of life, s."""


@contextmanager
def heartbeats(records: Collection[RunWriter]) -> Iterator[None]:
    """Gives signs of life of the runs that are open, in the block, from a thread.

    Arguments:
        records: The runs, which may become more meanwhile.
    """
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT):
            count += 1
            for record in list(records):
                if record.run_id and not record.closed:
                    with suppress(Exception):  # a store that is away hears the next one
                        record.client.set_tag(record.run_id, ALIVE, str(count))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(BEAT)
