"""The identity of this process, and whether another process has ended."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

__all__ = ["has_ended", "process_identity"]


def process_identity() -> dict[str, str]:
    """Returns the host, number and start of this process, which no other process shares."""
    return {"host": platform.node(), "pid": str(os.getpid()), "process.start": _start(os.getpid())}


def has_ended(identity: Mapping[str, str]) -> bool:
    """Whether a process of this machine has ended; False if that cannot be known.

    Arguments:
        identity: The process's `process_identity`.
    """
    if identity.get("host") != platform.node() or not identity.get("pid", "").isdecimal():
        return False
    boot, space, _ = _parts(identity.get("process.start", ""))
    here_boot, here_space, _ = _parts(_start(os.getpid()))
    if boot != here_boot or not boot:
        return bool(boot)  # the machine has rebooted since; without a boot id, unknown
    return space == here_space and _start(int(identity["pid"])) != identity["process.start"]


def _parts(start: str) -> tuple[str, str, str]:
    boot, _, rest = start.partition("/")
    space, _, ticks = rest.partition("/")
    return boot, space, ticks


def _start(pid: int) -> str:
    """Returns boot id, PID namespace and start in clock ticks, which no change of clock affects.

    Empty if there is no such process, or no /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")  # each container numbers its own processes
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot[:8]}/{space}/{fields[19]}"
