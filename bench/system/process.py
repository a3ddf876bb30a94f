"""Identifies this process, and tells whether another one still lives."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ended", "process"]


def process() -> dict[str, str]:
    """Returns what tells this process from all others: host, number, and when it started."""
    return {"host": platform.node(), "pid": str(os.getpid()), "process.start": _start(os.getpid())}


def ended(known: Mapping[str, str]) -> bool:
    """Tells whether a process of this machine has ended; no where that cannot be known.

    Arguments:
        known: What `process` returned there.
    """
    if known.get("host") != platform.node() or not known.get("pid", "").isdecimal():
        return False
    boot, space, _ = _parts(known.get("process.start", ""))
    here_boot, here_space, _ = _parts(_start(os.getpid()))
    if boot != here_boot or not boot:
        return bool(boot)  # the machine was started anew since; or it is not known when
    return space == here_space and _start(int(known["pid"])) != known["process.start"]


def _parts(start: str) -> tuple[str, str, str]:
    boot, _, rest = start.partition("/")
    space, _, ticks = rest.partition("/")
    return boot, space, ticks


def _start(pid: int) -> str:
    """Returns when a process started, by no clock that can be set: boot, numbering, clock ticks.

    Empty where there is no such process, or no /proc to tell.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")  # containers number their processes anew
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot[:8]}/{space}/{fields[19]}"
