"""Waits for trials that another process is running, and closes its runs if they are stale."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mlflow.entities import Run

from bench.grid.job import Job
from bench.store.claims import close_run
from bench.store.heartbeat import HEARTBEAT_SECONDS, HEARTBEAT_TAG
from bench.store.run_writer import OvertakenError
from bench.store.runs import Store

__all__ = ["STALE_SECONDS", "StaleWatch"]


STALE_SECONDS = 150.0
"""How long a run may send no heartbeat before it is stale, s."""


@dataclass
class _Pulse:
    """The last heartbeat of a run, when it was first seen, and when it was last looked for, s."""

    heartbeat: str
    since: float
    looked: float


class StaleWatch:
    """Watches the heartbeats of runs that keep a job waiting.

    Arguments:
        open_store: Opens the store of a job.
        clock: Returns the time, s.
    """

    def __init__(
        self, open_store: Callable[[Job], Store], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open, self._clock = open_store, clock
        self._pulses: dict[str, _Pulse] = {}

    def ready(self, job: Job) -> bool:
        """Tells whether no process runs the trials of a job, or its bases; closes stale runs."""
        bases = [trial.base for trial in job.trials if trial.base]
        store = self._open(job)
        with store.claim([*job.trials, *bases], job.replaces) as claim:
            # All pulses are taken, so that several runs become stale at the same time.
            stale = [run for run in claim.others if self._is_stale(run)]
            for run in stale:
                with suppress(OvertakenError):  # its result is found next
                    close_run(store, run)
            return len(stale) == len(claim.others) if claim.others else not claim.busy

    def _is_stale(self, run: Run) -> bool:
        """Tells whether a run sent no heartbeat while this process could have seen one."""
        now, heartbeat = self._clock(), run.data.tags.get(HEARTBEAT_TAG, "")
        pulse = self._pulses.get(run.info.run_id)
        # After a time without looks, as while the store did not answer, counting starts again.
        if pulse is None or pulse.heartbeat != heartbeat or now - pulse.looked > HEARTBEAT_SECONDS:
            pulse = self._pulses[run.info.run_id] = _Pulse(heartbeat, now, now)
        pulse.looked = now
        return now - pulse.since >= STALE_SECONDS
