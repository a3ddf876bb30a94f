"""Jobs through an executor: each yields its outcomes as it ends.

What another process of the same grid is at is passed over first, and waited for at the end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import replace

from bench.execution.executors.base import JobExecutor, run_task
from bench.execution.waiting import StaleWatch
from bench.execution.worker import StackTooLargeError, failed, give_up, open_store
from bench.grid.job import Job, Notice, Outcome, Report, UnfinishedError

__all__ = ["run_jobs"]


LOOK = 0.5
"""How often the number of workers is looked at, s."""
WATCH = {False: 0.5, True: 5.0}
"""How often others' trials are looked at, in a store of this machine and in a shared one, s."""


def run_jobs(
    jobs: Sequence[Job],
    workers: JobExecutor,
    report: Report | None = None,
    on_wait: Callable[[list[Job]], None] | None = None,
) -> Iterator[tuple[Job, list[Outcome]]]:
    """Runs jobs on workers; yields each with its outcomes as it ends.

    Post-hoc fits take up models of the same grid: they start when all else is done. A job at
    which its worker died each time is tried once more trial by trial, so that one bad trial does
    not take its stack along. A stack that does not fit in memory is halved and tried again.

    Arguments:
        jobs: The jobs, in the order in which they should start.
        workers: Where they run.
        report: Called with each event, in this process; maybe from another thread.
        on_wait: Called with the jobs that other processes are at, before they are waited for.

    Raises:
        UnfinishedError: The workers went away.
    """
    there, taken = workers.relay(report), []
    for later in (False, True):
        wave = [job for job in jobs if (job.trials[0].base is not None) == later]
        for job, outcomes in _run(wave, workers, report, there):
            if outcomes is None:
                taken.append(job)
            else:
                yield job, outcomes
    if taken and on_wait:
        on_wait(taken)
    watch = StaleWatch(open_store)
    while taken:
        ids = {trial.id for job in taken for trial in job.trials}
        last = [job for job in taken if ids.intersection(job.bases)]  # after what they start from
        ready = [free for job in taken if job not in last and (free := watch.ready(job))]
        taken = [job for job in taken if all(job.trials != each.trials for each in ready)]
        for job, outcomes in _run(ready, workers, report, there, waited=True):
            if outcomes is None:
                taken.append(job)
            else:
                yield job, outcomes
        if taken:
            time.sleep(WATCH[open_store(taken[0]).shared])


def _run(
    jobs: Iterable[Job],
    workers: JobExecutor,
    report: Report | None,
    there: Report | None,
    *,
    waited: bool = False,
) -> Iterator[tuple[Job, list[Outcome] | None]]:
    """Runs jobs, as many at once as there are slots; none for what others are at."""
    queue, running, apart, told = deque(jobs), dict[Future, Job](), list[Job](), False
    while queue or running:
        while queue and len(running) < workers.slots:
            job = queue.popleft()
            running[_submit(workers, job, there, waited=waited)] = job
        if workers.slots:
            told = False
        elif not told and report:
            report(Notice("there are no workers: waiting for one to come"))
            told = True
        done, _ = wait(running, LOOK, return_when=FIRST_COMPLETED)
        if not running:
            time.sleep(LOOK)
        for future in done:
            job = running.pop(future)
            try:
                yield job, future.result()
            except workers.lost as error:
                if len(job.trials) > 1:
                    apart += [replace(job, trials=(trial,)) for trial in job.trials]
                else:
                    yield job, give_up(job, error)
            except StackTooLargeError as error:
                if report:
                    report(Notice(f"{job.name}: {error}: two halves are tried"))
                half = len(job.trials) // 2
                for trials in (job.trials[half:], job.trials[:half]):
                    queue.appendleft(replace(job, trials=trials))
            except CancelledError:
                raise UnfinishedError(
                    "the workers went away; the same command goes on when they are back"
                ) from None
            except Exception as error:
                yield job, [failed(trial, error) for trial in job.trials]
    if apart:
        yield from _run(apart, workers, report, there, waited=waited)


def _submit(
    workers: JobExecutor, job: Job, report: Report | None, *, waited: bool
) -> Future[list[Outcome] | None]:
    try:
        shared = max(job.shared, workers.shared)  # more may have come since it was planned
        return workers.submit(run_task, replace(job, shared=shared), report, waited=waited)
    except Exception as error:  # workers that broke take no more
        future: Future[list[Outcome] | None] = Future()
        future.set_exception(error)
        return future
