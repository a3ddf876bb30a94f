"""Runs jobs on an executor, and yields the outcomes of each as it ends.

Trials that another process is running are skipped and waited for at the end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import replace

from bench.execution.executors.base import JobExecutor, run_task
from bench.execution.waiting import StaleWatch
from bench.execution.worker import StackTooLargeError, fail_lost_job, failed, open_store
from bench.grid.job import Job, Notice, Outcome, Report, UnfinishedError

__all__ = ["run_jobs"]


SLOTS_SECONDS = 0.5
"""The time between two looks at the number of workers, s."""
WATCH_SECONDS = {False: 0.5, True: 5.0}
"""The time between two looks at others' trials: in a store of this machine, in a shared one, s."""


def run_jobs(
    jobs: Sequence[Job],
    workers: JobExecutor,
    report: Report | None = None,
    on_wait: Callable[[list[Job]], None] | None = None,
) -> Iterator[tuple[Job, list[Outcome]]]:
    """Runs jobs on workers; yields each with its outcomes as it ends.

    Post-hoc fits start from models of the same grid, so they are run last. A job whose worker
    died every time is tried once more trial by trial, so that one bad trial does not cost its
    stack. A stack that does not fit in memory is halved and tried again.

    Arguments:
        jobs: The jobs, in the order in which they should start.
        workers: Where they run.
        report: Called with each event, in this process; maybe from another thread.
        on_wait: Called with the jobs that other processes are running, before the wait for them.

    Raises:
        UnfinishedError: The workers went away.
    """
    relay, waiting = workers.relay(report), []
    for later in (False, True):
        wave = [job for job in jobs if (job.trials[0].base is not None) == later]
        for job, outcomes in _run(wave, workers, report, relay):
            if outcomes is None:
                waiting.append(job)
            else:
                yield job, outcomes
    if waiting and on_wait:
        on_wait(waiting)
    watch = StaleWatch(open_store)
    while waiting:
        ids = {trial.id for job in waiting for trial in job.trials}
        # A job whose bases wait, too, is run after them.
        ready = [j for j in waiting if not ids.intersection(j.bases) and watch.ready(j)]
        waiting = [job for job in waiting if job not in ready]
        for job, outcomes in _run(ready, workers, report, relay, waited=True):
            if outcomes is None:
                waiting.append(job)
            else:
                yield job, outcomes
        if waiting:
            time.sleep(WATCH_SECONDS[open_store(waiting[0]).shared])


def _run(
    jobs: Iterable[Job],
    workers: JobExecutor,
    report: Report | None,
    relay: Report | None,
    *,
    waited: bool = False,
) -> Iterator[tuple[Job, list[Outcome] | None]]:
    """Runs jobs, as many at once as there are slots; no outcomes if another process runs one."""
    queue, running, single, noticed = deque(jobs), dict[Future, Job](), list[Job](), False
    while queue or running:
        while queue and len(running) < workers.slots:
            job = queue.popleft()
            running[_submit(workers, job, relay, waited=waited)] = job
        if workers.slots:
            noticed = False
        elif not noticed and report:
            report(Notice("there are no workers: waiting for one"))
            noticed = True
        done, _ = wait(running, SLOTS_SECONDS, return_when=FIRST_COMPLETED)
        if not running:
            time.sleep(SLOTS_SECONDS)
        for future in done:
            job = running.pop(future)
            try:
                yield job, future.result()
            except workers.lost as error:
                if len(job.trials) > 1:
                    single += [replace(job, trials=(trial,)) for trial in job.trials]
                else:
                    yield job, fail_lost_job(job, error)
            except StackTooLargeError as error:
                if report:
                    report(Notice(f"{job.name}: {error}: two halves are tried"))
                half = len(job.trials) // 2
                for trials in (job.trials[half:], job.trials[:half]):
                    queue.appendleft(replace(job, trials=trials))
            except CancelledError:
                raise UnfinishedError(
                    "the workers went away; once they are back, the same command resumes"
                ) from None
            except Exception as error:
                yield job, [failed(trial, error) for trial in job.trials]
    if single:
        yield from _run(single, workers, report, relay, waited=waited)


def _submit(
    workers: JobExecutor, job: Job, report: Report | None, *, waited: bool
) -> Future[list[Outcome] | None]:
    try:
        shared = max(job.shared, workers.shared)  # more workers may have come since the plan
        return workers.submit(run_task, replace(job, shared=shared), report, waited=waited)
    except Exception as error:  # a broken executor takes no more jobs
        future: Future[list[Outcome] | None] = Future()
        future.set_exception(error)
        return future
