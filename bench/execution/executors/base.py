"""Where jobs run: an executor that also knows how many it takes at once, and tells what they say.

`Serial` is this process; `bench.execution.executors.local` starts processes on this machine,
`bench.execution.executors.dask` takes those of a Dask cluster.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench.execution.worker import run_job
from bench.grid.job import Event, Job, Notice, Outcome, Report
from bench.system.devices import device_name

if TYPE_CHECKING:
    from bench.store.runs import Store
    from flowvae.data import Dataset

__all__ = ["COUNT", "JobExecutor", "SerialExecutor", "WorkerLostError", "run_task"]


COUNT = 3.0
"""How often the workers of a cluster are counted at most, s."""
PACE = 0.5
"""What lies at least between two events of a phase of a job that leave their process, s."""


class WorkerLostError(Exception):
    """The worker died at this job, each time that it was tried."""


class JobExecutor(Executor):
    """An executor of jobs; the base of all.

    `shutdown` waits for what is at work; leaving the block by an error first asks it to end.
    """

    slots: int = 1
    """How many jobs it takes at once; this may change from one moment to the next."""
    shared: int = 1
    """How many jobs compute on one device at once."""
    lost: tuple[type[Exception], ...] = (WorkerLostError,)
    """What a job raises when its worker died at it."""

    def relay(self, report: Report | None) -> Report | None:
        """Returns a callable that can be sent to a worker, and calls `report` in this process."""
        return report

    def stop(self) -> None:
        """Asks what is at work to save its state and end."""

    def describe(self) -> str:
        """Says where jobs run."""
        raise NotImplementedError

    def check(self, store: Store, data: Dataset, folder: Path | None) -> None:
        """Refuses what workers of other machines could not do; here there are none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        self.shutdown(wait=True, cancel_futures=kind is not None)


class SerialExecutor(JobExecutor):
    """Runs each call at once, in this process.

    Arguments:
        device: Where jobs compute.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Calls `fn` and returns a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def describe(self) -> str:
        """Says which device this process computes on."""
        return device_name(self.device)


def run_task(
    job: Job, report: Report | None = None, *, waited: bool = False
) -> list[Outcome] | None:
    """Does a job as `run_job` does, and tells its warnings as notices, its events in good time."""
    if report is None:
        return run_job(job, waited=waited)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: report(Notice(f"{job.name}: {message}"))
        return run_job(job, _Paced(report), waited=waited)


class _Paced:
    """Lets through the first and the last event of each phase, and between them one now and then.

    Arguments:
        report: Where they go.
    """

    def __init__(self, report: Report) -> None:
        self._report, self._phase, self._next = report, "", 0.0

    def __call__(self, event: Event | Notice) -> None:
        if isinstance(event, Event):
            now, last = time.monotonic(), event.done >= event.total
            if event.phase == self._phase and now < self._next and not last:
                return
            self._phase, self._next = event.phase, now + PACE
        self._report(event)
