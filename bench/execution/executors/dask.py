"""Workers of a Dask cluster: processes on any machine that has this package and the data.

A worker has one thread, because it trains one model at a time; a worker with a GPU declares the
resource `GPU`. If a worker is lost, Dask gives its jobs to another one, a bounded number of times;
`bench.store.claims` ensures that a trial is completed once, even if a job is delivered twice.

References:
    Rocklin, "Dask: Parallel Computation with Blocked Algorithms and Task Scheduling", SciPy 2015.
    Dask's manual, "Worker Resources", https://distributed.dask.org/en/latest/resources.html
"""

from __future__ import annotations

import json
import logging
import platform
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from bench.execution.executors.base import JobExecutor, WorkerLostError
from bench.grid.job import Event, Notice, Report
from bench.store.runs import Store
from bench.system.signals import request_end, withdraw_request
from flowvae.checkpoint import code
from flowvae.data import Dataset, data_dir, load_data
from flowvae.errors import InputError

__all__ = ["DaskExecutor"]


try:
    import distributed
except ImportError:
    raise InputError(
        "--executor dask needs Dask: pip install 'flowvae[cluster]', here and on every worker"
    ) from None


CONNECT_SECONDS = 10.0
"""How long the scheduler may take to answer."""
JOIN_SECONDS = 60.0
"""How long the command waits for workers."""
END_SECONDS = 60.0
"""How long workers may take to save their state when they are asked to end."""
COUNT_SECONDS = 3.0
"""Time after which the scheduler is asked again for its workers."""
GPU = "GPU"
MAX_RETRIES = 2
"""How often Dask repeats a job that raised an error, such as a broken connection."""


class DaskExecutor(JobExecutor):
    """The workers of a Dask cluster.

    Arguments:
        session: The id of the command, which tells its jobs from others'.
        address: The scheduler's address, such as `tcp://10.0.0.1:8786`.
        file: The file that holds the address, instead.
        number: How many workers to wait for; if fewer come in time, they are used.

    Raises:
        InputError: No scheduler answers, or no worker comes.
    """

    runs_elsewhere = True
    lost = (WorkerLostError, distributed.scheduler.KilledWorker)

    def __init__(
        self, session: str, address: str | None, file: Path | None, number: int = 1
    ) -> None:
        where = address or _address(file)
        for chatty in ("distributed.client", "distributed.core", "distributed.comm"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)  # our own messages suffice
        try:
            self._client = distributed.Client(
                address=where,
                timeout=CONNECT_SECONDS,
                name=f"flowvae-{session}",
                set_as_default=False,
            )
        except (OSError, TimeoutError, ValueError) as error:
            reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
            raise InputError(
                f"no Dask scheduler answers at {where} ({reason}): start one with `dask scheduler`"
            ) from None
        self._terms, self._where = _Terms(session, code()), where
        self._resources: dict[str, float] = {}
        self._known: list[dict[str, Any]] = []
        self._counted_at = -COUNT_SECONDS
        self._futures: set[Future[Any]] = set()
        self._accepted: set[str] | None = None
        self._refused: set[str] = set()
        with suppress(TimeoutError):
            self._client.wait_for_workers(number, timeout=JOIN_SECONDS)
        if not self.slots:
            self._client.close()
            raise InputError(
                f"no worker joined the scheduler at {where} within {JOIN_SECONDS:.0f} s: start "
                f"some with `dask worker {where} --nthreads 1`"
            )

    def _about(self, workers: list[str] | None = None) -> dict[str, dict[str, Any]]:
        """Returns the facts of all workers, or of some, by address.

        Raises:
            InputError: A worker does not have this package.
        """
        answers = self._client.run(_about, workers=workers, on_error="return")
        for name, answer in answers.items():
            if isinstance(answer, Exception):
                raise InputError(
                    f"the worker {name} cannot run jobs ({answer}): install flowvae there, in the "
                    "same version as here"
                )
        return answers

    def check(self, store: Store, data: Dataset, folder: Path | None) -> None:
        """Checks that the workers would not fail, or train to other numbers.

        Arguments:
            store: The store of the runs.
            data: The data set on this machine.
            folder: The data folder on the workers; None for each worker's own.

        Raises:
            InputError: A worker has several threads, other code or other data, or cannot write
                to the store.
        """
        about = self._about()
        remote = sorted({facts["host"] for facts in about.values()} - {platform.node()})
        for name, facts in about.items():
            if reason := self._misfit(facts):
                raise InputError(f"the worker {name} {reason}")
        if remote and not store.shared:
            raise InputError(
                f"workers on {', '.join(remote)} cannot write to {store.uri}, a file on "
                f"{platform.node()}: {store.served_by(platform.node())}"
            )
        if remote and store.keeps_files_locally:
            raise InputError(
                f"the store {store.shown} keeps files in a folder of each machine, so that those "
                f"of workers on {', '.join(remote)} would be lost: start `mlflow server` with "
                "--serve-artifacts and an --artifacts-destination, and take a new --name"
            )
        hashes = self._client.run(_data_hash, data.spec, folder, on_error="return")
        for name, answer in hashes.items():
            if isinstance(answer, Exception):
                raise InputError(f"the worker {name}: {answer}")
            if answer != data.hash:
                raise InputError(
                    f"the worker {name} has other files of the data set {data.name} (hash "
                    f"{answer}, here {data.hash}): give every worker the same files"
                )
        if not store.shared:
            host = platform.node()
            reason = f"cannot write to {store.uri}, a file on {host}: {store.served_by(host)}"
            self._terms = replace(self._terms, host=host, reason=reason)
        self._accepted, self._counted_at = set(about), -COUNT_SECONDS

    def _misfit(self, about: Mapping[str, Any]) -> str:
        """Returns why a worker cannot run jobs, or an empty text."""
        if about["threads"] != 1:
            return (
                f"has {about['threads']} threads: a worker trains one model at a time; start it "
                "with --nthreads 1, and several of them on one machine"
            )
        if about["code"] != code():
            return (
                "has another flowvae than this command: install the same version, or commit, on "
                "both"
            )
        if self._resources and about["gpus"] != 1:
            return f"sees {about['gpus']} GPUs: start one for each, with CUDA_VISIBLE_DEVICES=N"
        return ""

    def _check_new(self, names: Collection[str], accepted: set[str]) -> None:
        """Accepts or refuses the workers that joined after `check`."""
        new = sorted(set(names) - accepted - self._refused)
        try:
            about = self._about(new) if new else {}
        except InputError as error:
            self._refused.update(new)
            warnings.warn(f"{error}; it gets no jobs", RuntimeWarning, stacklevel=2)
            return
        for name, facts in about.items():
            if reason := self._misfit(facts):
                self._refused.add(name)
                text = f"the worker {name} {reason}; it gets no jobs"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            else:
                accepted.add(name)

    def choose_device(self, text: str) -> None:
        """Sets the device of all jobs, and uses the workers that have it.

        Arguments:
            text: `auto`, `cpu` or `cuda`.

        Raises:
            InputError: No worker has the device, or `auto` is ambiguous.
        """
        if text not in ("auto", "cpu", "cuda"):
            raise InputError(
                f"--device {text}: expected auto, cpu or cuda; which GPU a worker of a cluster "
                "uses is set by its CUDA_VISIBLE_DEVICES"
            )
        gpus = {name: facts["gpus"] for name, facts in self._about().items()}
        if text == "auto":
            if any(gpus.values()) and not all(gpus.values()):
                raise InputError("some workers see a GPU and some none: give --device cpu or cuda")
            text = "cuda" if all(gpus.values()) else "cpu"
        if text == "cuda":
            self._resources, self._counted_at = {GPU: 1}, -COUNT_SECONDS
            if not self.slots:
                raise InputError(
                    "no worker offers a GPU: start one per GPU with CUDA_VISIBLE_DEVICES=N "
                    f"dask worker {self._where} --nthreads 1 --resources {GPU}=1"
                )
        self.device = text

    def _workers(self) -> list[dict[str, Any]]:
        """Returns the scheduler's facts of the workers that can run our jobs, seconds old."""
        now = time.monotonic()
        if now < self._counted_at + COUNT_SECONDS:
            return self._known
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        if self._accepted is not None:
            self._check_new(workers, self._accepted)
            workers = {name: facts for name, facts in workers.items() if name in self._accepted}
        self._counted_at = now
        self._known = [
            facts
            for facts in workers.values()
            if all(facts["resources"].get(name, 0) >= n for name, n in self._resources.items())
        ]
        return self._known

    @property
    def slots(self) -> int:  # type: ignore[override]
        """The number of workers at this moment."""
        return len(self._workers())

    @property
    def shared(self) -> int:  # type: ignore[override]
        """The number of workers that share a device: on CPUs, those of one machine."""
        hosts = [facts["host"] for facts in self._workers()]
        return 1 if self._resources else max(map(hosts.count, hosts), default=1)

    def describe(self) -> str:
        """Returns the number of workers and machines, and the devices."""
        about = self._about().values()
        hosts, devices = ({facts[key] for facts in about} for key in ("host", "device"))
        number = self.slots
        return (
            f"{number} Dask worker{'s' * (number != 1)} at {self._where}, on "
            f"{len(hosts)} machine{'s' * (len(hosts) != 1)}; {', '.join(sorted(devices))}"
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Calls `fn` on a worker that has the device."""
        executor = self._client.get_executor(
            pure=False,
            retries=MAX_RETRIES,
            resources=self._resources or None,
            workers=sorted(self._accepted or ()) if self._refused else None,
        )
        future = executor.submit(_call, self._terms, fn, *args, **kwargs)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def relay(self, report: Report | None) -> Report | None:
        """Returns a callable that sends an event through the scheduler to this process."""
        if report is None:
            return None

        def arrive(event: tuple[float, Any]) -> None:
            message = dict(event[1])
            message.pop("worker", None)
            report(Notice(**message) if "text" in message else Event(**message))

        self._client.subscribe_topic(f"flowvae-{self._terms.session}", arrive)
        return _Topic(f"flowvae-{self._terms.session}")

    def stop(self) -> None:
        """Asks the workers that run jobs of this command to save their state and end."""
        with suppress(Exception):  # a scheduler that is gone has no workers
            self._client.run(_end_session, self._terms.session, on_error="ignore")
            wait(set(self._futures), END_SECONDS)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Disconnects from the cluster, which keeps running."""
        with suppress(Exception):
            self._client.close(timeout=CONNECT_SECONDS)


def _address(file: Path | None) -> str:
    """Returns the address in a scheduler's file."""
    assert file is not None
    try:
        return str(json.loads(file.read_text())["address"])
    except OSError as error:
        reason = error.strerror
    except (ValueError, KeyError, TypeError):
        reason = "it holds no address"
    raise InputError(f"cannot read --scheduler-file {file}: {reason}; `dask scheduler` writes it")


@dataclass(frozen=True)
class _Topic:
    """Sends events from a worker through the scheduler."""

    name: str

    def __call__(self, event: Event | Notice) -> None:
        distributed.get_worker().log_event(self.name, asdict(event))


class _WorkerState:
    """State of a worker: the session whose job it runs, or none, and the sessions that ended."""

    session = ""
    ended: ClassVar[set[str]] = set()


@dataclass(frozen=True)
class _Terms:
    """The terms of a command's jobs, which each worker checks: it may have just joined.

    Arguments:
        session: The command.
        code: The hash of the package that must run them.
        host: The machine of the store's file; empty for a store on a server.
        reason: Why no other machine can write to that file, and what to do.
    """

    session: str
    code: str
    host: str = ""
    reason: str = ""

    def check(self) -> None:
        """Refuses a worker that would train to other numbers, or cannot write to the store.

        Raises:
            InputError: It has other code, or does not see the file of an sqlite store.
        """
        if self.code != code():
            raise InputError(
                f"the worker on {platform.node()} has another flowvae than the command that gives "
                "it work: install the same version, or commit, on both"
            )
        if self.host not in ("", platform.node()):
            raise InputError(f"the worker on {platform.node()} {self.reason}")


def _call(terms: _Terms, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Calls `fn` on a worker; returns None if the session's end was requested."""
    if terms.session in _WorkerState.ended:  # the call waited behind the one that was ended
        return None
    terms.check()
    withdraw_request()
    _WorkerState.session = terms.session
    try:
        return fn(*args, **kwargs)
    except KeyboardInterrupt:  # would end the worker
        return None
    finally:
        _WorkerState.session = ""
        withdraw_request()


def _end_session(session: str) -> None:
    """Asks a worker to end its job of this session, and to start no other."""
    _WorkerState.ended.add(session)
    if _WorkerState.session == session:
        request_end("the end of its command")


def _about(dask_worker: distributed.Worker) -> dict[str, Any]:
    """Returns the facts of a worker, which Dask passes as the argument of this name."""
    import torch

    from bench.system.devices import device_name

    gpus = torch.cuda.device_count()
    return {
        "host": platform.node(),
        "code": code(),
        "threads": dask_worker.state.nthreads,
        "gpus": gpus,
        "device": device_name("cuda" if gpus else "cpu"),
    }


def _data_hash(spec: str, folder: Path | None) -> str:
    """Returns the hash of the data set on a worker."""
    return load_data(spec, data_dir(folder)).hash
