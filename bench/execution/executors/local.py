"""Workers that are processes on this machine, each with a device or threads of its own.

A worker that dies takes only its own job along: another is started in its place, and tries the
job again, a bounded number of times. When this process dies, its workers save their state and end.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from bench.execution.executors.base import JobExecutor, WorkerLostError
from bench.grid.job import Event, Notice, Report
from bench.system.allocator import keep_freed
from bench.system.devices import device_name
from bench.system.signals import ask, handled
from flowvae.errors import InputError

__all__ = ["LocalExecutor", "Slot", "slots"]


TRIES = 3
"""How often a job is tried that kills its worker."""


@dataclass(frozen=True)
class Slot:
    """What a worker computes on.

    Arguments:
        threads: Its threads.
        cuda: The one GPU that it sees, as CUDA_VISIBLE_DEVICES names it; none on a CPU.
    """

    threads: int
    cuda: str = ""


def slots(device: str, workers: int | None, per_gpu: int | None) -> list[Slot]:
    """Returns the slots of a machine: GPUs in turn, or its cores divided.

    Arguments:
        device: `cpu`, `cuda` for all GPUs, or `cuda:N`.
        workers: How many; one a core, or `per_gpu` a GPU, where it is not said.
        per_gpu: How many share a GPU; one where it is not said.

    Raises:
        InputError: There are not so many cores, or GPUs for so many workers.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    if device == "cpu":
        if per_gpu is not None:
            raise InputError("--per-gpu needs a CUDA device; on a CPU say --workers")
        number = workers or cores
        if number > cores:
            raise InputError(
                f"--workers {number}: this machine has {cores} cores, one a worker at least"
            )
        return [Slot(cores // number)] * number
    gpus, each = _visible(device), per_gpu or 1
    number = workers or each * len(gpus)
    if number > each * len(gpus):
        fit = -(-number // len(gpus))
        raise InputError(
            f"--workers {number}: torch sees {len(gpus)} GPU{'s' * (len(gpus) > 1)}; several "
            f"workers share one with --per-gpu {fit}"
        )
    return [Slot(max(1, cores // number), gpus[i % len(gpus)]) for i in range(number)]


def _visible(device: str) -> list[str]:
    """Returns the GPUs that a device stands for, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [each.strip() for each in named.split(",")] if named else list(map(str, range(count)))
    _, colon, index = device.partition(":")
    return [names[int(index)]] if colon else names[:count]


class LocalExecutor(JobExecutor):
    """Processes of this machine, one a slot.

    Arguments:
        slots: What each computes on.
        device: The device as a person said it.
    """

    def __init__(self, slots: Sequence[Slot], device: str = "cpu") -> None:
        self.slots = len(slots)
        gpus = [slot.cuda for slot in slots]
        self.shared = max(gpus.count(gpu) for gpu in gpus)
        self._device, self._each = device, slots[0]
        self._workers = [_Worker(slot) for slot in slots]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(len(slots))
        self._stopped = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Calls `fn` in the next process that is free."""
        return self._threads.submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        worker, how = self._free.get(), ""
        try:
            for _ in range(TRIES):
                if self._stopped:
                    raise CancelledError
                try:
                    value, error = worker.call(fn, args, kwargs)
                except (EOFError, OSError):
                    how = worker.bury()
                    continue
                if error is not None:
                    raise error
                return value
            raise WorkerLostError(
                f"its worker process {how} each of the {TRIES} times it was tried"
            )
        finally:
            self._free.put(worker)

    def relay(self, report: Report | None) -> Report | None:
        """Returns what sends an event through the worker's connection."""
        for worker in self._workers:
            worker.report = report
        return _through if report else None

    def stop(self) -> None:
        """Sends each worker a signal, upon which it saves its state and ends."""
        self._stopped = True
        for worker in self._workers:
            worker.signal()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers, when they have done what they are at."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.end()

    def describe(self) -> str:
        """Says how many workers there are, and what each computes on."""
        if self._each.cuda:
            many = f", {self.shared} to a GPU" if self.shared > 1 else ", one to a GPU"
            return f"{self.slots} processes{many}; {device_name(self._device)}"
        name = device_name("cpu").rpartition(",")[0]
        each = f"{self._each.threads} thread{'s' if self._each.threads > 1 else ''}"
        return f"{name}; {self.slots} process{'es' * (self.slots > 1)} of {each}"


class _Worker:
    """A process, seen from the one that gives it jobs; another takes its place when it dies.

    Arguments:
        slot: What it computes on.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._lock, self._stopped = threading.Lock(), False
        self.report: Report | None = None

    def call(
        self, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Any, BaseException | None]:
        """Calls `fn` there; events that come meanwhile are reported.

        Returns:
            What it returned, and what it raised.

        Raises:
            EOFError, OSError: The process died.
        """
        connection = self._connection or self._start()
        connection.send_bytes(pickle.dumps((fn, args, kwargs)))
        while True:
            message = connection.recv()
            if isinstance(message, tuple):
                return message
            if self.report:
                with suppress(OSError):  # of the screen, which is no fault of the worker
                    self.report(message)

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Daemons end with this process, if it ends in peace.
        process = context.Process(target=_serve, args=(theirs, self._slot), daemon=True)
        with self._lock:
            if self._stopped:
                raise CancelledError
            process.start()
            self._process = process
        theirs.close()  # so that its end is the connection's
        return self._connection

    def bury(self) -> str:
        """Clears away a process that died; returns how it did, in words."""
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        self.end()
        if code >= 0:
            return f"exited with status {code}"
        hint = ", as where memory runs out," if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"

    def signal(self) -> None:
        """Asks the process to end."""
        with self._lock:
            self._stopped, process = True, self._process
        if process is not None:
            with suppress(OSError, ValueError):  # it is over
                process.terminate()

    def end(self) -> None:
        """Lets the process end, and waits for it."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join()
        self._process = self._connection = None


class _Here:
    """What a worker process has of its own."""

    connection: Connection


def _through(event: Event | Notice) -> None:
    """Sends an event to the process that this worker is of."""
    with suppress(OSError):  # where nobody listens any more, the job is asked to end
        _Here.connection.send(event)


def _serve(connection: Connection, slot: Slot) -> None:
    """What a worker process does: calls, one after another, until the connection ends."""
    with suppress(OSError):
        os.setpgid(0, 0)  # a terminal's Ctrl-C is for the process that gives the jobs
    if slot.cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.cuda
    os.environ["OMP_NUM_THREADS"] = str(slot.threads)
    import torch

    torch.set_num_threads(slot.threads)
    keep_freed()
    _Here.connection = connection
    threading.Thread(target=_watch, daemon=True).start()
    with handled(), suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            asked = connection.recv_bytes()
            answer: tuple[Any, BaseException | None]
            ending = None
            try:
                fn, args, kwargs = pickle.loads(asked)  # which may need modules that are not here
                answer = fn(*args, **kwargs), None
            except KeyboardInterrupt as interrupt:
                answer, ending = (None, CancelledError()), interrupt
            except Exception as error:
                answer = None, _portable(error)
            connection.send(answer)
            if ending:
                raise ending


def _portable(error: Exception) -> Exception:
    """Returns an error as another process can read it."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does there
        return RuntimeError(f"{type(error).__name__}: {error}")


def _watch() -> None:
    """Asks what this process is at to end when its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    ask("the end of its parent")
