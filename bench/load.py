"""What a job asks of the store, of the scheduler and of its coordinator: counted and timed.

A small job of the digits is done once while its calls are counted. Its record is then written over
and over, by several processes at once, to find out what the store takes: the clients compute on
the same cores as a server on this machine, so that its capacity is a lower bound.
"""

from __future__ import annotations

import inspect
import io
import pickle
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest.mock import patch

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric
from requests.utils import super_len

from flowvae.data import Dataset, load_data
from flowvae.folder import save
from flowvae.trial import Evaluation, Trial
from flowvae.vae import build

from .display import Display
from .job import Event, Job, Notice, Outcome
from .kills import processes
from .launch import launch
from .leases import ALIVE
from .plan import Place
from .record import Record
from .tracking import Store
from .work import work
from .workers import Workers

__all__ = [
    "CALLS",
    "Counts",
    "Done",
    "cluster_costs",
    "counted",
    "do_one",
    "file_sizes",
    "job_of",
    "outcome_seconds",
    "rate",
    "read_seconds",
    "rows_and_bytes",
    "weights",
]

EPOCHS = 20
"""Epochs of a batch of curves: those of 20 s at one a second."""
TINY = Trial(
    prior="maf", dataset="digits", latent=2, net="mlp[hidden=64]", epochs=EPOCHS, batch=256
)
SCORED = Evaluation(samples=100)
GRID_OF = 1000
"""Jobs, workers or events over which a cost of the coordinator is averaged."""


@dataclass
class Counts:
    """Calls of MLflow's client, and the requests to a server that they became.

    Arguments:
        calls: How often each was called.
        seconds: What each took in all, s.
        requests: The number of requests.
        sent: What they carried, bytes.
    """

    calls: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    sent: int = 0
    _inside: bool = False

    def counting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a method that is counted, if no other calls it."""

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if self._inside:
                return method(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._inside = False
                self.calls[name] += 1
                self.seconds[name] += time.perf_counter() - start  # type: ignore[assignment]

        return call


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts what MLflow's client is asked for in the block, by this thread."""
    counts, send = Counts(), requests.Session.send

    def sending(self: requests.Session, request: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401
        counts.requests += 1
        counts.sent += super_len(request.body) if request.body else 0
        return send(self, request, **kwargs)

    with ExitStack() as patches:
        for name, method in list(vars(MlflowClient).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                counting = counts.counting(name, method)
                patches.enter_context(patch.object(MlflowClient, name, counting))
        patches.enter_context(patch.object(requests.Session, "send", sending))
        yield counts


def job_of(uri: str, experiment: str, trial: Trial = TINY) -> tuple[Job, Dataset]:
    """Returns the job of one trial, as a grid plans it, and its data."""
    data = load_data(trial.dataset)
    store = Store(uri, experiment, data.hash)
    place = Place(
        store=store, data=data, data_dir=None, device="cpu", stack=1, keep_weights=True,
        force=False, every=60.0, session="scaling",
    )  # fmt: skip
    store.describe("Written by `python -m bench.scaling`; to be deleted.")
    return place.jobs([trial], SCORED)[0], data


@dataclass(frozen=True)
class Done:
    """A job that was done, of which the record can be written again.

    Arguments:
        job: The job.
        data: Its data set.
        outcomes: How it ended.
        tags: The tags that its run was opened with, beside those of every run.
        curves: The points of its curves.
        numbers: Its other metrics.
        artifacts: The folder of its files.
    """

    job: Job
    data: Dataset
    outcomes: Sequence[Outcome]
    tags: dict[str, str]
    curves: Sequence[Metric]
    numbers: dict[str, float]
    artifacts: Path

    def open(self) -> Record:
        """Looks for and opens the run of another seed, as a worker does."""
        store = Store(self.job.uri, self.job.experiment, self.job.data_hash, known=True)
        trial = self.job.trials[0].but(seed=secrets.randbelow(2**31))
        store.busy([trial.id], self.job)
        store.fitted([trial])
        return store.start(trial, self.data, self.tags, self.job)

    def write(self) -> None:
        """Writes the record of another seed, from its opening to its end."""
        record = self.open()
        record.take(self.curves)
        record.flush()
        record.folder(self.artifacts)
        record.metrics(self.numbers)
        record.finish("complete")


def do_one(job: Job, data: Dataset, folder: Path) -> tuple[Done, Counts]:
    """Does a job while its calls are counted, and takes its record along into a folder."""
    with counted() as counts:
        outcomes = work(job)
    assert outcomes is not None
    store = Store(job.uri, job.experiment, known=True)
    run = store.runs(job.trials)[job.trials[0].id]
    points = [
        point
        for name in run.data.metrics
        for point in store.client.get_metric_history(run.info.run_id, name)
    ]
    folder.mkdir(parents=True)
    artifacts = Path(store.client.download_artifacts(run.info.run_id, "", str(folder)))
    names = ("device", "threads", "stack", "load", "timing.shared", "timing.measured")
    done = Done(
        job=job,
        data=data,
        outcomes=outcomes,
        tags={name: run.data.tags[name] for name in names},
        curves=[Metric(p.key, p.value, p.timestamp, p.step) for p in points if p.step],
        numbers={p.key: p.value for p in points if not p.step},
        artifacts=artifacts,
    )
    return done, counts


class _Client:
    """One client of a store, in a process of its own.

    Arguments:
        done: The job whose record it writes.
        upload: The file that it uploads.
    """

    def __init__(self, done: Done, upload: Path) -> None:
        self.done, self.upload, self.count = done, upload, 0
        self._record: Record | None = None

    @property
    def record(self) -> Record:
        """The run that calls are about."""
        self._record = self._record or self.done.open()
        return self._record

    def run(self) -> None:
        """Writes a whole record."""
        self.done.write()

    def flush(self) -> None:
        """Sends the curves of some epochs."""
        self.count += 1
        later = self.count * EPOCHS
        points = [Metric(p.key, p.value, p.timestamp, p.step + later) for p in self.done.curves]
        self.record.client.log_batch(self.record.run_id, metrics=points)

    def beat(self) -> None:
        """Gives a sign of life."""
        self.count += 1
        self.record.client.set_tag(self.record.run_id, ALIVE, str(self.count))

    def upload_file(self) -> None:
        """Uploads the file."""
        self.record.client.log_artifact(self.record.run_id, str(self.upload))


CALLS: dict[str, Callable[[_Client], None]] = {
    "run": _Client.run,
    "flush": _Client.flush,
    "beat": _Client.beat,
    "upload": _Client.upload_file,
}
"""What is asked of a store over and over."""


class _Together:
    """What the processes of a load share."""

    barrier: Barrier


def _join(barrier: Barrier) -> None:
    _Together.barrier = barrier


def _call_over_and_over(name: str, client: _Client, seconds: float) -> tuple[int, float]:
    """Calls once, waits for the others, and calls for so long; returns the calls, and seconds."""
    CALLS[name](client)
    _Together.barrier.wait()
    count, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        CALLS[name](client)
        count += 1
    return count, time.monotonic() - start


def rate(name: str, done: Done, upload: Path, clients: int, seconds: float) -> float:
    """Returns how many calls a store takes from so many processes at once, 1/s."""
    context = processes()
    pool = ProcessPoolExecutor(clients, context, _join, (context.Barrier(clients),))
    with pool:
        client = _Client(done, upload)
        futures = [pool.submit(_call_over_and_over, name, client, seconds) for _ in range(clients)]
        return sum(count / taken for count, taken in (future.result() for future in futures))


def read_seconds(job: Job) -> tuple[int, float, float]:
    """Returns the runs of an experiment, and what reading all of them and one trial's takes, s."""
    store = Store(job.uri, job.experiment, known=True)
    trial = job.trials[0]
    start = time.perf_counter()
    store.fitted([trial, trial.but(seed=1)])
    middle = time.perf_counter()
    store.fitted([trial])
    end = time.perf_counter()
    number = sum(1 for _ in store._pages([store.experiment], ""))
    return number, middle - start, end - middle


def weights(trial: Trial, shape: tuple[int, int], folder: Path) -> Path:
    """Writes the weights of a trial that was not trained; returns their file."""
    return save(build(trial, shape), trial, folder) / "weights.safetensors"


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns the bytes of a run's files by the folder that they lie in."""
    sizes: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_file():
            sizes[path.relative_to(folder).parts[0]] += path.stat().st_size
    return dict(sizes)


def rows_and_bytes(file: Path) -> tuple[int, int]:
    """Returns the rows of an sqlite store, and its bytes in pages that are in use."""
    with sqlite3.connect(file) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        rows = sum(
            database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
            for (name,) in names.fetchall()
        )
        size, pages, free = (
            database.execute(f"PRAGMA {what}").fetchone()[0]
            for what in ("page_size", "page_count", "freelist_count")
        )
    return rows, size * (pages - free)


class _Ended(Workers):
    """Workers that have done every job already.

    Arguments:
        outcomes: What each job ends with.
    """

    slots = GRID_OF

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = list(outcomes)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Returns a future that is done."""
        future: Future[Any] = Future()
        future.set_result(self._outcomes)
        return future


def outcome_seconds(done: Done, number: int = GRID_OF) -> float:
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
            dashboard_address=None,
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
            event = Event(0, done.job.name, "fit", 0, GRID_OF, -100.0)
            start = time.perf_counter()
            cluster.submit(_tell, cluster.relay(arrived.append), event, GRID_OF).result()
            while len(arrived) < GRID_OF and time.perf_counter() - start < 60:
                time.sleep(0.001)
            found["events"] = len(arrived) / (time.perf_counter() - start)
    found["each"] = (asked[-1] - asked[0]) / (sizes[-1] - sizes[0])
    found["once"] = max(asked[0] - sizes[0] * found["each"], 0.0)
    return found
