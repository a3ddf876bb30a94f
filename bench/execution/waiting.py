"""Waits for trials that another process is running, and finds stale ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow.entities import Run

from bench.grid.job import Job
from bench.store.heartbeat import ALIVE, BEAT

if TYPE_CHECKING:
    from bench.store.runs import Store

__all__ = ["LEASE", "StaleWatch"]


LEASE = 150.0
"""How long a run may give none before it is forsaken, s."""


@dataclass
class _Seen:
    """A run as a watcher saw it: its sign of life, since when, and when it last looked."""

    sign: str
    since: float
    looked: float


class StaleWatch:
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
