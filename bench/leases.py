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
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from .job import Job

if TYPE_CHECKING:
    from .record import Record
    from .tracking import Store

__all__ = [
    "BEAT",
    "ENDED_AS",
    "LEASE",
    "SUPERSEDED",
    "OvertakenError",
    "Watch",
    "beating",
    "end_as",
]

ENDED_AS = "ended_as"
"""The param; its values are `complete`, `diverged` and `superseded`."""
SUPERSEDED = "superseded"
ALIVE = "alive"
BEAT = 20.0
"""How often a process gives a sign of life, s."""
LEASE = 150.0
"""How long a run may give none before it is forsaken, s."""


class OvertakenError(Exception):
    """Another process took the trial over, or completed it."""


def end_as(client: MlflowClient, run_id: str, what: str) -> bool:
    """Writes down what a run ends as, if that is not written yet; tells whether it is `what`."""
    try:
        client.log_param(run_id, ENDED_AS, what)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return False
    return True


@contextmanager
def beating(records: Collection[Record]) -> Iterator[None]:
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


@dataclass
class _Seen:
    """A run as a watcher saw it: its sign of life, since when, and when it last looked."""

    sign: str
    since: float
    looked: float


class Watch:
    """Looks again and again whether others are still at a job's trials.

    Arguments:
        open_store: Opens the store of a job.
        clock: Tells the time, s.
    """

    def __init__(
        self, open_store: Callable[[Job], Store], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open, self._clock = open_store, clock
        self._seen: dict[str, _Seen] = {}

    def ready(self, job: Job) -> Job | None:
        """Returns the job, with the runs that are forsaken, if nobody is at its trials."""
        store, keys = self._open(job), [*(trial.id for trial in job.trials), *job.bases]
        with store.claims.held(keys) as held:
            if not held:
                return None
        forsaken = set(job.forsaken)
        for run in store.busy(keys, job):
            if not self._forsaken(run):
                return None
            forsaken.add(run.info.run_id)
        return replace(job, forsaken=tuple(sorted(forsaken)))

    def _forsaken(self, run: Run) -> bool:
        """Tells whether a run gave no sign for as long as this watcher could have seen one."""
        now, sign = self._clock(), run.data.tags.get(ALIVE, "")
        seen = self._seen.get(run.info.run_id)
        # While the store does not answer, nobody's signs arrive.
        if seen is None or seen.sign != sign or now - seen.looked > BEAT:
            seen = self._seen[run.info.run_id] = _Seen(sign, now, now)
        seen.looked = now
        return now - seen.since >= LEASE
