"""What a job asks of a store: counted and timed.

A small job of the digits is done once while its calls are counted. Its record is then written over
and over, by several processes at once, to find out what the store takes: the clients compute on
the same cores as a server on this machine, so that its capacity is a lower bound.
"""

from __future__ import annotations

import inspect
import os
import secrets
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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

from .address import SQLITE
from .job import Job, Outcome
from .kills import processes
from .leases import ALIVE
from .plan import Place
from .record import Record
from .tracking import Store
from .work import work

__all__ = ["Done", "Table", "measure_store"]

CLIENTS = (1, 2, 4, 8)
"""How many processes call a store at once."""
SECONDS = 4.0
"""How long calls of a kind are repeated, s."""
TUTORIAL = Trial(prior="maf", dataset="mnist", latent=16, net="mlp[hidden=1024x1024]")
"""The trial whose weights are uploaded: that of zuko's tutorial."""
SIDE = (28, 28)
EPOCHS = 20
"""Epochs of a batch of curves: those of 20 s at one a second."""
TINY = Trial(
    prior="maf", dataset="digits", latent=2, net="mlp[hidden=64]", epochs=EPOCHS, batch=256
)
SCORED = Evaluation(samples=100)
READS = 5
"""How often runs are read; the shortest time counts."""


class Table:
    """What was measured, a row a number."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, where: str, what: str, value: float, unit: str, **more: object) -> None:
        """Adds a number."""
        self.rows.append({"where": where, "what": what, "value": value, "unit": unit, **more})


def measure_store(uri: str, folder: Path, found: Table) -> tuple[Done, dict[str, Any]]:
    """Measures what a job asks of a store, and what the store takes.

    Arguments:
        uri: The store.
        folder: Where files of the job go.
        found: Where all numbers go.

    Returns:
        The job that was done, and the fields of `bench.bottlenecks.Measured` that are a store's.
    """
    kind = uri.partition(":")[0]
    found.add(kind, "load of this machine, before", os.getloadavg()[0], "processes")
    job, data = job_of(uri, f"scaling-{uuid.uuid4().hex[:8]}")
    done, counts = do_one(job, data, folder / f"{kind}-job")
    _tell_job(kind, done, counts, found)
    upload = weights(TUTORIAL, SIDE, folder / "weights")
    size = upload.stat().st_size
    found.add(kind, "upload: weights of the tutorial's model", size, "bytes")
    file = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    before, few = rows_and_bytes(file), read_seconds(job)
    best = {"run": _best("run", kind, done, upload, found)}
    many, after = read_seconds(job), rows_and_bytes(file)
    best |= {name: _best(name, kind, done, upload, found) for name in ("flush", "beat", "upload")}
    runs = many[0] - few[0]
    if file is not None:
        for unit, first, last in zip(("rows", "bytes"), before, after, strict=True):
            found.add(kind, "database: a run", (last - first) / runs, unit)
    for number, everything, one in (few, many):
        found.add(kind, "all runs read", everything, "s", runs=number)
        found.add(kind, "the runs of one trial read", one, "s", runs=number)
    read = max(many[1] - few[1], 0.0) / runs
    found.add(kind, "all runs read: each", read, "s")
    return done, {
        "runs": best["run"],
        "flushes": best["flush"],
        "beats": best["beat"],
        "bytes": best["upload"] * size,
        "size": size,
        "shared": file is None,
    }


def _tell_job(kind: str, done: Done, counts: Counts, found: Table) -> None:
    """Tells what one job asked of a store."""
    for name, number in counts.calls.items():
        found.add(kind, f"a job: {name}", number, "calls")
        found.add(kind, f"a call: {name}", counts.seconds[name] / number, "s")
    found.add(kind, "a job: in calls", sum(counts.seconds.values()), "s")
    with counted() as again:
        done.write()
    if counts.requests:
        found.add(kind, "a job: requests", counts.requests, "requests")
        found.add(kind, "a job: sent", counts.sent, "bytes")
        found.add(kind, "its record, written again: requests", again.requests, "requests")
    for name, size in file_sizes(done.artifacts).items():
        found.add(kind, f"files of a run: {name}", size, "bytes")


def _best(name: str, kind: str, done: Done, upload: Path, found: Table) -> float:
    """Returns how many calls a store takes from the number of clients that suits it best, 1/s."""
    rates = []
    for clients in CLIENTS:
        rates.append(rate(name, done, upload, clients, SECONDS))
        found.add(kind, f"calls taken: {name}", rates[-1], "1/s", clients=clients)
    return max(rates)


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
    _thread: int = field(default_factory=threading.get_ident)
    _inside: bool = False

    @property
    def mine(self) -> bool:
        """Whether what happens now is of the thread that counts: signs of life are not."""
        return threading.get_ident() == self._thread

    def counting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a method that is counted, if no other calls it."""

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if self._inside or not self.mine:
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
        if counts.mine:
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
    store.describe("Written by `python -m bench.scaling`; to be deleted.", {})
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
    """Returns the number of complete runs, and what reading all and one trial's takes, s."""
    store = Store(job.uri, job.experiment, known=True)
    trial = job.trials[0]
    taken = []
    for trials in ([trial, trial.but(seed=1)], [trial]):
        times = []
        for _ in range(READS):
            start = time.perf_counter()
            store.fitted(trials)
            times.append(time.perf_counter() - start)
        taken.append(min(times))
    return len(store.complete()), taken[0], taken[1]


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


def rows_and_bytes(file: Path | None) -> tuple[int, int]:
    """Returns the rows of an sqlite store, and its bytes; none of any other."""
    if file is None:
        return 0, 0
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
