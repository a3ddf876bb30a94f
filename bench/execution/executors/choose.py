"""Which workers a command asks for: this process, processes beside it, or those of a cluster."""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.parser import read_flag
from flowvae.errors import InputError
from flowvae.specs.values import Count

if TYPE_CHECKING:
    from bench.execution.executors.base import JobExecutor

__all__ = ["EXECUTORS", "add_flags", "choose_executor"]


EXECUTORS = ("serial", "local", "dask")
OWN = {
    "workers": ("local", "dask"),
    "per_gpu": ("local",),
    "scheduler": ("dask",),
    "scheduler_file": ("dask",),
}
"""The executors that a flag belongs to."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where jobs run."""
    add = parser.add_argument_group("on how many workers").add_argument
    add(
        "--executor", choices=EXECUTORS, default="serial",
        help="serial: this process (default); local: processes on this machine, one a GPU or a "
        "core; dask: the workers of a cluster",
    )  # fmt: skip
    add(
        "--workers", metavar="N",
        help="local: how many processes (default: one a GPU, or core); dask: how many workers to "
        "wait for, a minute at most (default: 1)",
    )  # fmt: skip
    add("--per-gpu", metavar="N", help="local: how many share a GPU (default: 1)")
    add("--scheduler", metavar="ADDRESS", help="dask: its address, such as tcp://10.0.0.1:8786")
    add("--scheduler-file", metavar="FILE", help="dask: the file that it wrote its address to")


def choose_executor(arguments: argparse.Namespace) -> tuple[JobExecutor, str, str]:
    """Returns the workers that the flags ask for, their device, and the session's name.

    Raises:
        InputError: The flags do not fit together, or there are no such workers.
    """
    from bench.system.devices import choose_device

    kind, session = arguments.executor, uuid.uuid4().hex[:12]
    for name, owners in OWN.items():
        if getattr(arguments, name) is not None and kind not in owners:
            told = " or ".join(owners)
            raise InputError(f"--{name.replace('_', '-')} goes with --executor {told}")
    number = None
    if arguments.workers is not None:
        number = read_flag("workers", arguments.workers, Count)
    if kind == "dask":
        address, file = arguments.scheduler, arguments.scheduler_file
        if (address is None) == (file is None):
            raise InputError("--executor dask needs --scheduler ADDRESS or --scheduler-file FILE")
        from bench.execution.executors.dask import DaskExecutor

        cluster = DaskExecutor(session, address, None if file is None else Path(file), number or 1)
        try:
            return cluster, cluster.choose_device(arguments.device), session
        except BaseException:
            cluster.shutdown()
            raise
    device = choose_device(arguments.device)
    if kind == "local":
        from bench.execution.executors.local import LocalExecutor, slots

        each = arguments.per_gpu
        found = slots(device, number, None if each is None else read_flag("per-gpu", each, Count))
        # A worker sees but its own GPU.
        return LocalExecutor(found, device), device.partition(":")[0], session
    from bench.execution.executors.base import SerialExecutor

    return SerialExecutor(device), device, session
