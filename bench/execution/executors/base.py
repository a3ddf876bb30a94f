"""Executors of jobs: what the scheduler and the command need to know of each kind.

`SerialExecutor` runs jobs in this process; `bench.execution.executors.local` starts processes on
this machine, `bench.execution.executors.dask` uses the workers of a Dask cluster.
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

__all__ = ["JobExecutor", "SerialExecutor", "WorkerLostError", "run_task"]


MIN_EVENT_SECONDS = 0.5
"""Time between two events of the same phase of a job that are passed on."""


class WorkerLostError(Exception):
    """The worker died while running the job, each time that the job was tried."""


class JobExecutor(Executor):
    """An executor of jobs; the base of all.

    `shutdown` waits for running jobs. An error in the `with` block asks them to stop first.
    """

    device: str = "cpu"
    """The device that jobs are given."""
    slots: int = 1
    """The number of jobs that run at once; it may change at any time."""
    shared: int = 1
    """The number of jobs that compute on one device at once."""
    runs_elsewhere: bool = False
    """Whether workers may be on other machines, with files of their own."""
    traces_here: bool = False
    """Whether jobs run in this process, where a profiler sees them."""
    lost: tuple[type[Exception], ...] = (WorkerLostError,)
    """The errors of a job whose worker died."""

    def relay(self, report: Report | None) -> Report | None:
        """Returns a callable that can be sent to a worker, and calls `report` in this process."""
        return report

    def stop(self) -> None:
        """Asks running jobs to save their state and end."""

    def describe(self) -> str:
        """Returns in words where jobs run."""
        raise NotImplementedError

    def check(self, store: Store, data: Dataset, folder: Path | None) -> None:
        """Raises an InputError if a worker could not run jobs; here there is none to check."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        self.shutdown(wait=True, cancel_futures=kind is not None)


class SerialExecutor(JobExecutor):
    """Runs each call immediately, in this process.

    Arguments:
        device: The device that jobs are given.
    """

    traces_here = True

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
        """Returns the name of the device."""
        return device_name(self.device)


def run_task(
    job: Job, report: Report | None = None, *, waited: bool = False
) -> list[Outcome] | None:
    """Runs a job as `run_job` does; reports its warnings as notices, and not all of its events."""
    if report is None:
        return run_job(job, waited=waited)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: report(Notice(f"{job.name}: {message}"))
        return run_job(job, _Paced(report), waited=waited)


class _Paced:
    """Passes on the first and the last event of each phase, and a few of those between.

    Arguments:
        report: Receives the events that are passed on.
    """

    def __init__(self, report: Report) -> None:
        self._report, self._phase, self._next = report, "", 0.0

    def __call__(self, event: Event | Notice) -> None:
        if isinstance(event, Event):
            now, last = time.monotonic(), event.done >= event.total
            if event.phase == self._phase and now < self._next and not last:
                return
            self._phase, self._next = event.phase, now + MIN_EVENT_SECONDS
        self._report(event)
