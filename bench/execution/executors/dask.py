"""Workers of a Dask cluster: each a process, anywhere, that has this package and its own data.

A worker has one thread, for it holds one model at a time; one that computes on a GPU declares the
resource `GPU`. Dask gives the jobs of a worker that is lost to another one, a bounded number of
times; `bench.store.heartbeat` sees to it that a trial is complete once, whatever is delivered
twice.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.execution.executors.base import COUNT, JobExecutor, WorkerLostError
from bench.grid.job import Event, Notice, Report
from bench.store.runs import Store
from bench.system.signals import ask, forget
from flowvae.checkpoint import code
from flowvae.data import Dataset, data_dir, load_data
from flowvae.errors import InputError

__all__ = ["DaskExecutor"]


try:
    import distributed
except ImportError:
    raise InputError(
        "--executor dask needs Dask: pip install 'flowvae[cluster]', here and where workers run"
    ) from None


CONNECT = 10.0
"""How long the scheduler may take to answer, s."""
JOIN = 60.0
"""How long is waited for a first worker, s."""
END = 60.0
"""How long workers may take to save their state when they are asked to end, s."""
GPU = "GPU"
RETRIES = 2
"""How often Dask tries a job again that raised an error, as where a connection breaks."""


class DaskExecutor(JobExecutor):
    """The workers of a Dask cluster.

    Arguments:
        session: What tells this command's jobs from others'.
        number: How many workers to wait for; those that came in time do, if any.
        address: The scheduler's address, such as `tcp://10.0.0.1:8786`.
        file: The file that the scheduler wrote it to, instead.

    Raises:
        InputError: No scheduler answers there, or no worker comes.
    """

    lost = (WorkerLostError, distributed.scheduler.KilledWorker)

    def __init__(
        self, session: str, address: str | None, file: Path | None, number: int = 1
    ) -> None:
        where = address or _address(file)
        for chatty in ("distributed.client", "distributed.core", "distributed.comm"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)  # what happens, we tell in a line
        try:
            self._client = distributed.Client(
                address=where,
                timeout=CONNECT,
                name=f"flowvae-{session}",
                set_as_default=False,
            )
        except (OSError, TimeoutError, ValueError) as error:
            told = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
            raise InputError(
                f"no Dask scheduler answers at {where} ({told}): start one with `dask scheduler`"
            ) from None
        self._session, self._where = session, where
        self._resources: dict[str, float] = {}
        self._known: list[dict[str, Any]] = []
        self._asked = -COUNT
        self._flying: set[Future[Any]] = set()
        self._accepted: set[str] | None = None
        self._refused: set[str] = set()
        with suppress(TimeoutError):
            self._client.wait_for_workers(number, timeout=JOIN)
        if not self.slots:
            self._client.close()
            raise InputError(
                f"no worker came to the scheduler at {where} within {JOIN:.0f} s: start some with "
                f"`dask worker {where} --nthreads 1`"
            )

    def _about(self, workers: list[str] | None = None) -> dict[str, dict[str, Any]]:
        """Asks workers what they are, all or some.

        Raises:
            InputError: One cannot tell, for it does not have this package.
        """
        answers = self._client.run(_about, workers=workers, on_error="return")
        for name, answer in answers.items():
            if isinstance(answer, Exception):
                raise InputError(
                    f"the worker {name} cannot run jobs ({answer}): install flowvae there, the "
                    "version that is here"
                )
        return answers

    def check(self, store: Store, data: Dataset, folder: Path | None) -> None:
        """Refuses a cluster whose workers would fail, or train to other numbers.

        Arguments:
            store: Where they record their runs.
            data: The data set as it is here.
            folder: Where they look for it; none for each worker's own folder.

        Raises:
            InputError: A worker has several threads, other code, other data, or no way to write
                what the store keeps.
        """
        about = self._about()
        abroad = sorted({each["host"] for each in about.values()} - {platform.node()})
        for name, each in about.items():
            if why := self._unfit(each):
                raise InputError(f"the worker {name} {why}")
        if abroad and not store.shared:
            raise InputError(
                f"workers on {', '.join(abroad)} cannot write to {store.uri}, a file on "
                f"{platform.node()}: {store.served_by(platform.node())}"
            )
        if abroad and store.keeps_files_locally:
            raise InputError(
                f"the store {store.shown} keeps files in a folder of each machine, so that those "
                f"of workers on {', '.join(abroad)} would be lost: start `mlflow server` with "
                "--serve-artifacts and an --artifacts-destination, and take a new --name"
            )
        found = self._client.run(_data, data.spec, folder, on_error="return")
        for name, answer in found.items():
            if isinstance(answer, Exception):
                raise InputError(f"the worker {name}: {answer}")
            if answer != data.hash:
                raise InputError(
                    f"the worker {name} has other files of the data set {data.name} (hash "
                    f"{answer}, here {data.hash}): give every worker the same files"
                )
        self._accepted, self._asked = set(about), -COUNT

    def _unfit(self, about: Mapping[str, Any]) -> str:
        """Says what keeps a worker from doing jobs; nothing if nothing does."""
        if about["threads"] != 1:
            return (
                f"has {about['threads']} threads: a worker holds one model at a time; start it "
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

    def _meet(self, names: Collection[str], accepted: set[str]) -> None:
        """Takes in workers that joined since the others were checked, or refuses them."""
        new = sorted(set(names) - accepted - self._refused)
        try:
            about = self._about(new) if new else {}
        except InputError as error:
            self._refused.update(new)
            warnings.warn(f"{error}; it is given no jobs", RuntimeWarning, stacklevel=2)
            return
        for name, each in about.items():
            if why := self._unfit(each):
                self._refused.add(name)
                text = f"the worker {name} {why}; it is given no jobs"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            else:
                accepted.add(name)

    def choose_device(self, text: str) -> str:
        """Returns the device that jobs are given, and takes the workers that have it.

        Arguments:
            text: `auto`, `cpu` or `cuda`.

        Raises:
            InputError: The workers do not have it, or `auto` cannot tell.
        """
        if text not in ("auto", "cpu", "cuda"):
            raise InputError(
                f"--device {text}: a worker of a cluster has one GPU at most, which it sees by "
                "CUDA_VISIBLE_DEVICES; expected auto, cpu or cuda"
            )
        gpus = {name: each["gpus"] for name, each in self._about().items()}
        if text == "auto":
            if any(gpus.values()) and not all(gpus.values()):
                raise InputError("some workers see a GPU and some none: say --device cpu or cuda")
            text = "cuda" if all(gpus.values()) else "cpu"
        if text == "cuda":
            self._resources, self._asked = {GPU: 1}, -COUNT
            if not self.slots:
                raise InputError(
                    "no worker offers a GPU: start one a GPU with CUDA_VISIBLE_DEVICES=N "
                    f"dask worker {self._where} --nthreads 1 --resources {GPU}=1"
                )
        return text

    def _workers(self) -> list[dict[str, Any]]:
        """Returns what the scheduler knows of the workers that can do our jobs, asked lately."""
        now = time.monotonic()
        if now < self._asked + COUNT:
            return self._known
        found = self._client.scheduler_info(n_workers=-1)["workers"]
        if self._accepted is not None:
            self._meet(found, self._accepted)
            found = {name: each for name, each in found.items() if name in self._accepted}
        self._asked = now
        self._known = [
            each
            for each in found.values()
            if all(each["resources"].get(name, 0) >= n for name, n in self._resources.items())
        ]
        return self._known

    @property
    def slots(self) -> int:  # type: ignore[override]
        """How many workers there are at this moment."""
        return len(self._workers())

    @property
    def shared(self) -> int:  # type: ignore[override]
        """How many workers share a device: on CPUs, those of a machine; GPUs are not shared."""
        hosts = [each["host"] for each in self._workers()]
        return 1 if self._resources else max(map(hosts.count, hosts), default=1)

    def describe(self) -> str:
        """Says how many workers there are, on which machines."""
        about = self._about().values()
        hosts, devices = ({each[key] for each in about} for key in ("host", "device"))
        number = self.slots
        return (
            f"{number} Dask worker{'s' * (number != 1)} at {self._where}, on "
            f"{len(hosts)} machine{'s' * (len(hosts) != 1)}; {', '.join(sorted(devices))}"
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Calls `fn` on a worker; one that has a GPU, where that is the device."""
        executor = self._client.get_executor(
            pure=False,
            retries=RETRIES,
            resources=self._resources or None,
            workers=sorted(self._accepted or ()) if self._refused else None,
        )
        future = executor.submit(_call, self._session, fn, *args, **kwargs)
        self._flying.add(future)
        future.add_done_callback(self._flying.discard)
        return future

    def relay(self, report: Report | None) -> Report | None:
        """Returns what sends an event by the scheduler, under a topic of this command's."""
        if report is None:
            return None

        def arrive(event: tuple[float, Any]) -> None:
            message = dict(event[1])
            message.pop("worker", None)
            report(Notice(**message) if "text" in message else Event(**message))

        self._client.subscribe_topic(f"flowvae-{self._session}", arrive)
        return _Topic(f"flowvae-{self._session}")

    def stop(self) -> None:
        """Asks the workers that are at jobs of this command to save their state and end."""
        with suppress(Exception):  # a scheduler that is gone has no workers
            self._client.run(_end, self._session, on_error="ignore")
            wait(set(self._flying), END)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster, which stays as it is."""
        with suppress(Exception):
            self._client.close(timeout=CONNECT)


def _address(file: Path | None) -> str:
    """Returns the address that a scheduler wrote to a file."""
    assert file is not None
    try:
        return str(json.loads(file.read_text())["address"])
    except OSError as error:
        told = error.strerror
    except (ValueError, KeyError, TypeError):
        told = "it holds no address"
    raise InputError(f"cannot read --scheduler-file {file}: {told}; `dask scheduler` writes it")


@dataclass(frozen=True)
class _Topic:
    """Sends events from a worker, by the scheduler."""

    name: str

    def __call__(self, event: Event | Notice) -> None:
        distributed.get_worker().log_event(self.name, asdict(event))


class _Here:
    """What a worker is at: a job of this command, or none; and the commands that ended."""

    session = ""
    ended: ClassVar[set[str]] = set()


def _call(session: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Calls `fn` on a worker; what is asked to end returns nothing, and is not done."""
    if session in _Here.ended:  # it waited behind one that was asked
        return None
    forget()
    _Here.session = session
    try:
        return fn(*args, **kwargs)
    except KeyboardInterrupt:  # which would end the worker
        return None
    finally:
        _Here.session = ""
        forget()


def _end(session: str) -> None:
    """Asks a worker to end what it is at, if it is this command's, and to begin no more of it."""
    _Here.ended.add(session)
    if _Here.session == session:
        ask("the end of its command")


def _about(dask_worker: distributed.Worker) -> dict[str, Any]:
    """Returns what a worker is; Dask gives it as the argument of this name."""
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


def _data(spec: str, folder: Path | None) -> str:
    """Returns the hash of a worker's data set."""
    return load_data(spec, data_dir(folder)).hash
