"""Workers that are processes on this machine, each with its own device or threads.

When a worker dies, a new one tries its job again, a bounded number of times; other jobs go on.
When this process dies, its workers save their state and end.
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
from bench.system.allocator import keep_freed_memory
from bench.system.devices import device_name
from bench.system.signals import handle_signals, request_end
from flowvae.errors import InputError

__all__ = ["LocalExecutor", "Slot", "slots"]


MAX_TRIES = 3
"""How often a job that kills its worker is tried."""


@dataclass(frozen=True)
class Slot:
    """The part of the machine that a worker computes on.

    Arguments:
        threads: The number of threads.
        cuda: The only GPU that the worker sees, as in CUDA_VISIBLE_DEVICES; empty on a CPU.
    """

    threads: int
    cuda: str = ""


def slots(device: str, workers: int | None, per_gpu: int | None) -> list[Slot]:
    """Returns the slots of a machine: GPUs in turn, or its cores divided.

    Arguments:
        device: `cpu`, `cuda` for all GPUs, or `cuda:N`.
        workers: The number of slots; by default one per core, or `per_gpu` per GPU.
        per_gpu: The number of slots that share a GPU; by default one.

    Raises:
        InputError: There are more workers than cores, or than the GPUs take.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    if device == "cpu":
        if per_gpu is not None:
            raise InputError("--per-gpu needs a CUDA device; on a CPU give --workers")
        number = workers or cores
        if number > cores:
            raise InputError(
                f"--workers {number}: expected at most {cores}, the cores of this machine"
            )
        return [Slot(cores // number)] * number
    gpus, per_gpu = _visible_gpus(device), per_gpu or 1
    number = workers or per_gpu * len(gpus)
    if number > per_gpu * len(gpus):
        needed = -(-number // len(gpus))
        raise InputError(
            f"--workers {number}: torch sees {len(gpus)} GPU{'s' * (len(gpus) > 1)}; to let "
            f"several workers share one, give --per-gpu {needed}"
        )
    return [Slot(max(1, cores // number), gpus[i % len(gpus)]) for i in range(number)]


def _visible_gpus(device: str) -> list[str]:
    """Returns the GPUs of a device, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",")] if named else list(map(str, range(count)))
    _, colon, index = device.partition(":")
    return [names[int(index)]] if colon else names[:count]


class LocalExecutor(JobExecutor):
    """Processes on this machine, one per slot.

    Arguments:
        slots: What each process computes on.
        device: The device as the user gave it.
    """

    def __init__(self, slots: Sequence[Slot], device: str = "cpu") -> None:
        self.slots = len(slots)
        gpus = [slot.cuda for slot in slots]
        self.shared = max(gpus.count(gpu) for gpu in gpus)
        self.device = device.partition(":")[0]  # a worker sees one GPU, its own
        self._given_device, self._slot = device, slots[0]
        self._workers = [_Worker(slot) for slot in slots]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(len(slots))
        self._stopped = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Calls `fn` in the next free process."""
        return self._threads.submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        worker, death = self._free.get(), ""
        try:
            for _ in range(MAX_TRIES):
                if self._stopped:
                    raise CancelledError
                try:
                    value, error = worker.call(fn, args, kwargs)
                except (EOFError, OSError):
                    death = worker.join()
                    continue
                if error is not None:
                    raise error
                return value
            raise WorkerLostError(f"its worker process {death}, in each of {MAX_TRIES} tries")
        finally:
            self._free.put(worker)

    def relay(self, report: Report | None) -> Report | None:
        """Returns a function that sends an event through the worker's connection."""
        for worker in self._workers:
            worker.report = report
        return _send_event if report else None

    def stop(self) -> None:
        """Sends each worker a signal: it saves its state and ends."""
        self._stopped = True
        for worker in self._workers:
            worker.signal()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers after their current jobs."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.end()

    def describe(self) -> str:
        """Returns the number of workers and what each computes on."""
        if self._slot.cuda:
            share = f"{self.shared} per GPU" if self.shared > 1 else "one per GPU"
            return f"{self.slots} processes, {share}; {device_name(self._given_device)}"
        name = device_name("cpu").rpartition(",")[0]
        threads = f"{self._slot.threads} thread{'s' if self._slot.threads > 1 else ''}"
        return f"{name}; {self.slots} process{'es' * (self.slots > 1)} of {threads}"


class _Worker:
    """A worker process, as its parent sees it; a new process replaces one that died.

    Arguments:
        slot: What the process computes on.
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
        """Calls `fn` in the process, and reports the events that it sends.

        Returns:
            The value and the error of the call, one of them None.

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
                with suppress(OSError):  # of this terminal, not of the worker
                    self.report(message)

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Daemons end with this process, unless it is killed.
        process = context.Process(target=_serve, args=(theirs, self._slot), daemon=True)
        with self._lock:
            if self._stopped:
                raise CancelledError
            process.start()
            self._process = process
        theirs.close()  # so that the connection ends with the process
        return self._connection

    def join(self) -> str:
        """Joins a process that died; returns in words how it died."""
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        self.end()
        if code >= 0:
            return f"exited with status {code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"

    def signal(self) -> None:
        """Asks the process to end."""
        with self._lock:
            self._stopped, process = True, self._process
        if process is not None:
            with suppress(OSError, ValueError):  # it has ended
                process.terminate()

    def end(self) -> None:
        """Closes the connection, at which the process ends, and waits for it."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join()
        self._process = self._connection = None


class _WorkerState:
    """State of a worker process, set when it starts."""

    connection: Connection


def _send_event(event: Event | Notice) -> None:
    """Sends an event from a worker process to its parent."""
    with suppress(OSError):  # the parent is gone: `_watch_parent` ends the job
        _WorkerState.connection.send(event)


def _serve(connection: Connection, slot: Slot) -> None:
    """Runs in a worker process: makes the calls that it receives until the connection ends."""
    with suppress(OSError):
        os.setpgid(0, 0)  # a terminal's Ctrl-C goes to the parent alone
    if slot.cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.cuda
    os.environ["OMP_NUM_THREADS"] = str(slot.threads)
    import torch

    torch.set_num_threads(slot.threads)
    keep_freed_memory()
    _WorkerState.connection = connection
    threading.Thread(target=_watch_parent, daemon=True).start()
    with handle_signals(), suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            message = connection.recv_bytes()
            answer: tuple[Any, BaseException | None]
            ending = None
            try:
                fn, args, kwargs = pickle.loads(message)  # may import modules that are missing
                answer = fn(*args, **kwargs), None
            except KeyboardInterrupt as interrupt:
                answer, ending = (None, CancelledError()), interrupt
            except Exception as error:
                answer = None, _portable(error)
            connection.send(answer)
            if ending:
                raise ending


def _portable(error: Exception) -> Exception:
    """Returns an error that another process can unpickle."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # its class may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")


def _watch_parent() -> None:
    """Asks the running job to end when the parent process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    request_end("the end of its parent process")
