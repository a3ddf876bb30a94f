"""Flags that say where jobs run, and the executor that they choose."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.cli.parser import read_flag
from flowvae.errors import InputError
from flowvae.specs.values import Count

if TYPE_CHECKING:
    from bench.execution.executors.base import JobExecutor

__all__ = ["EXECUTORS", "add_flags", "choose_executor"]


def _serial(arguments: argparse.Namespace, _: str) -> JobExecutor:
    from bench.execution.executors.base import SerialExecutor
    from bench.system.devices import choose_device

    return SerialExecutor(choose_device(arguments.device))


def _local(arguments: argparse.Namespace, _: str) -> JobExecutor:
    from bench.execution.executors.local import LocalExecutor, slots
    from bench.system.devices import choose_device

    device = choose_device(arguments.device)
    number, per_gpu = _count("workers", arguments.workers), _count("per-gpu", arguments.per_gpu)
    return LocalExecutor(slots(device, number, per_gpu), device)


def _dask(arguments: argparse.Namespace, session: str) -> JobExecutor:
    address, file = arguments.scheduler, arguments.scheduler_file
    if (address is None) == (file is None):
        raise InputError("--executor dask needs --scheduler ADDRESS or --scheduler-file FILE")
    number = _count("workers", arguments.workers) or 1
    from bench.execution.executors.dask import DaskExecutor

    executor = DaskExecutor(session, address, None if file is None else Path(file), number)
    try:
        executor.choose_device(arguments.device)
    except BaseException:
        executor.shutdown()
        raise
    return executor


def _count(flag: str, text: str | None) -> int | None:
    return None if text is None else read_flag(flag, text, Count)


class _Choice(NamedTuple):
    """An executor that can be chosen.

    Arguments:
        make: Makes it from the flags and the session's id.
        help: Where jobs run.
        flags: The flags that go with it, as attributes of the parsed arguments.
    """

    make: Callable[[argparse.Namespace, str], JobExecutor]
    help: str
    flags: tuple[str, ...] = ()


EXECUTORS = {
    "serial": _Choice(_serial, "this process (default)"),
    "local": _Choice(
        _local, "processes on this machine, one per GPU or core", ("workers", "per_gpu")
    ),
    "dask": _Choice(
        _dask, "workers of a Dask cluster", ("workers", "scheduler", "scheduler_file")
    ),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where jobs run."""
    add = parser.add_argument_group("where jobs run").add_argument
    add(
        "--executor", choices=EXECUTORS, default="serial",
        help="; ".join(f"{name}: {choice.help}" for name, choice in EXECUTORS.items()),
    )  # fmt: skip
    add(
        "--workers", metavar="N",
        help="local: number of processes (default: one per GPU, or core); dask: number of workers "
        "to wait for, at most a minute (default: 1)",
    )  # fmt: skip
    add("--per-gpu", metavar="N", help="local: number of processes that share a GPU (default: 1)")
    add("--scheduler", metavar="ADDRESS", help="dask: its address, such as tcp://10.0.0.1:8786")
    add("--scheduler-file", metavar="FILE", help="dask: the file with the scheduler's address")


def choose_executor(arguments: argparse.Namespace, session: str) -> JobExecutor:
    """Returns the executor that the flags ask for.

    Arguments:
        arguments: The parsed flags of `add_flags`, and `device`.
        session: The id of the command, by which a cluster tells its jobs from others'.

    Raises:
        InputError: The flags do not fit together, or there are no such workers.
    """
    for flag in sorted({flag for choice in EXECUTORS.values() for flag in choice.flags}):
        owners = [name for name, choice in EXECUTORS.items() if flag in choice.flags]
        if getattr(arguments, flag) is not None and arguments.executor not in owners:
            raise InputError(
                f"--{flag.replace('_', '-')} goes with --executor {' or '.join(owners)}"
            )
    return EXECUTORS[arguments.executor].make(arguments, session)
