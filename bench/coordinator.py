"""What jobs take of the coordinator and of a Dask scheduler; the jobs themselves do nothing."""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

from .display import Display
from .job import Event, Job, Notice, Outcome
from .launch import launch
from .load import Done, Table
from .workers import Workers

__all__ = ["measure_coordinator"]

MANY = 1000
"""Jobs, workers or events over which a cost is averaged."""


def measure_coordinator(done: Done, found: Table) -> dict[str, Any]:
    """Measures what jobs take of the coordinator and of the scheduler.

    Arguments:
        done: A job that was done.
        found: Where all numbers go.

    Returns:
        The fields of `bench.bottlenecks.Measured` that are not a store's; NaN without Dask.
    """
    sent = (done.job, list(done.outcomes), Event(0, done.job.name, "fit", 1, 64, -100.0))
    for what, thing in zip(("job", "outcomes of a job", "event"), sent, strict=True):
        found.add("coordinator", f"pickled: {what}", len(pickle.dumps(thing)), "bytes")
    outcome = outcome_seconds(done)
    found.add("coordinator", "an outcome", outcome, "s")
    try:
        cluster = cluster_costs(done)
    except ImportError:
        return {"outcome": outcome, **dict.fromkeys(("events", "jobs", "once", "each"), math.nan)}
    found.add("scheduler", "events passed on", cluster["events"], "1/s")
    found.add("scheduler", "jobs passed on", cluster["jobs"], "1/s")
    found.add("scheduler", "workers read: none", cluster["once"], "s")
    found.add("scheduler", "workers read: each more", cluster["each"], "s")
    return {"outcome": outcome, **cluster}


class _Ended(Workers):
    """Workers that have done every job already.

    Arguments:
        outcomes: What each job ends with.
    """

    slots = MANY

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = list(outcomes)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Returns a future that is done."""
        future: Future[Any] = Future()
        future.set_result(self._outcomes)
        return future


def outcome_seconds(done: Done, number: int = MANY) -> float:
    """Returns what the coordinator takes for an outcome, read from bytes and shown, s."""
    from rich.console import Console

    jobs = [replace(done.job, number=n) for n in range(number)]
    packed = pickle.dumps(list(done.outcomes))
    console = Console(file=io.StringIO(), width=170)
    start = time.perf_counter()
    with Display(console, number) as display:
        for job, _ in launch(jobs, _Ended(done.outcomes), display.report):
            display.finished(job, pickle.loads(packed))
    return (time.perf_counter() - start) / number


def _nothing(job: Job, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    return outcomes


def _tell(report: Callable[[Event | Notice], None], event: Event, number: int) -> None:
    for done in range(number):
        report(replace(event, done=done))


def cluster_costs(done: Done, sizes: Sequence[int] = (2, 20)) -> dict[str, float]:
    """Returns what a Dask scheduler passes on, 1/s, and what asking for its workers takes, s.

    Scheduler and workers are threads of this process, behind TCP: they share one core with the
    coordinator.

    Arguments:
        done: The job and the outcomes that are sent.
        sizes: The numbers of workers with which it is asked how many there are.
    """
    import distributed

    from .cluster import Cluster

    asked, found = [], {}
    for workers in sizes:
        local = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp://",
            dashboard_address=":0", memory_limit=None,
        )  # fmt: skip
        with local, Cluster("scaling", local.scheduler_address, None) as cluster:
            start = time.perf_counter()
            for _ in range(20):
                assert cluster.slots == workers
            asked.append((time.perf_counter() - start) / 20)
            if workers > sizes[0]:
                continue
            start = time.perf_counter()
            futures = [cluster.submit(_nothing, done.job, list(done.outcomes)) for _ in range(200)]
            wait(futures)
            found["jobs"] = 200 / (time.perf_counter() - start)
            arrived: list[Event | Notice] = []
            event = Event(0, done.job.name, "fit", 0, MANY, -100.0)
            start = time.perf_counter()
            cluster.submit(_tell, cluster.relay(arrived.append), event, MANY).result()
            while len(arrived) < MANY and time.perf_counter() - start < 60:
                time.sleep(0.001)
            found["events"] = len(arrived) / (time.perf_counter() - start)
    found["each"] = (asked[-1] - asked[0]) / (sizes[-1] - sizes[0])
    found["once"] = max(asked[0] - sizes[0] * found["each"], 0.0)
    return found
