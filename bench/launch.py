"""Jobs through an executor: each yields its outcomes as it ends.

What another process of the same grid is at is passed over first, and waited for at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from typing import Any

from .job import Job, Outcome, Report
from .work import failed, work

__all__ = ["Serial", "launch"]


class Serial(Executor):
    """Runs each call at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Calls `fn` and returns a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def launch(
    jobs: Sequence[Job],
    executor: Executor,
    report: Report | None = None,
    on_wait: Callable[[list[Job]], None] | None = None,
) -> Iterator[tuple[Job, list[Outcome]]]:
    """Runs jobs on an executor; yields each with its outcomes as it ends.

    Post-hoc fits take up models of the same grid: in another process they start when all else is
    done; in this one jobs run in the order in which they come.

    Arguments:
        jobs: The jobs, in the order in which they should start.
        executor: Where they run.
        report: Called with each event; only a worker in this process can reach it.
        on_wait: Called with the jobs that other processes are at, before they are waited for.
    """
    taken: list[Job] = []
    for job, outcomes in _once(jobs, executor, report, wait=False):
        if outcomes is None:
            taken.append(job)
        else:
            yield job, outcomes
    if taken and on_wait:
        on_wait(taken)
    for job, outcomes in _once(taken, executor, report, wait=True):
        assert outcomes is not None, "who waits gets it"
        yield job, outcomes


def _once(
    jobs: Sequence[Job], executor: Executor, report: Report | None, *, wait: bool
) -> Iterator[tuple[Job, list[Outcome] | None]]:
    """Runs jobs; none for the outcomes of one that another process is at."""
    if isinstance(executor, Serial):  # its jobs run inside `submit`: yield between them
        for job in jobs:
            yield job, executor.submit(work, job, report, wait=wait).result()
        return
    for later in (False, True):
        wave = [job for job in jobs if (job.trials[0].base is not None) == later]
        futures = {_submit(executor, job, wait=wait): job for job in wave}
        for future in as_completed(futures):
            job, error = futures[future], future.exception()
            if isinstance(error, Exception):  # its worker died, say
                yield job, [failed(trial, error) for trial in job.trials]
            else:
                yield job, future.result()


def _submit(executor: Executor, job: Job, *, wait: bool) -> Future[list[Outcome] | None]:
    try:
        return executor.submit(work, job, wait=wait)
    except Exception as error:  # a pool that broke takes no more
        future: Future[list[Outcome] | None] = Future()
        future.set_exception(error)
        return future
