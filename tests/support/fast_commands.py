"""Commands without what takes longest in a small grid.

That is figures, quadrature, and libraries loaded anew.
"""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import pytest
from support import fault_injection

from bench.execution.executors import local


def leave_undrawn(patch: pytest.MonkeyPatch) -> None:
    """Make the commands of this process draw no figures, and integrate no evidence."""
    patch.setattr("bench.execution.measurement.MAX_FEATURES", 0)
    patch.setattr("bench.report.build.draw_all", lambda *_, **__: [])


def fork_workers(patch: pytest.MonkeyPatch) -> None:
    """Make local workers start in a process that has loaded the libraries, not from nothing.

    Their environment is that of the first such process.
    """
    forking = SimpleNamespace(
        get_context=lambda _: fault_injection.processes(),
        parent_process=multiprocessing.parent_process,
    )
    patch.setattr(local, "multiprocessing", forking)


def hasten_processes(patch: pytest.MonkeyPatch) -> None:
    """Make the processes that `fault_injection.start` starts do both."""
    patch.setattr(fault_injection, "_main", _main)


def _main(argv: list[str], folder: str) -> None:
    """What such a process does, by its name, so that it can be read there."""
    with pytest.MonkeyPatch.context() as patch:
        leave_undrawn(patch)
        fork_workers(patch)
        fault_injection._main(argv, folder)
