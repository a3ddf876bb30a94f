"""The peak memory of a block of code, by device.

On CUDA it is the peak of what torch's allocator had handed out on that device. On a CPU it is the
peak resident memory of the *whole process*: interpreter, libraries and data included. Neither
separates two blocks that run at the same time in one process.

On Linux, writing 5 to /proc/self/clear_refs resets the high-water mark (VmHWM) of the process, so
the peak is the block's own. Elsewhere, or where that is not allowed, the mark (`ru_maxrss`) never
falls: it is the peak since the process started.

References:
    The /proc filesystem, the Linux kernel, https://docs.kernel.org/filesystems/proc.html
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.system.allocator import release_freed_memory

__all__ = ["Peak", "peak_memory"]


CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


@dataclass
class Peak:
    """The peak memory of a block, known when the block has ended.

    Arguments:
        size: The peak, bytes; 0 until then.
        since_start: Whether it is the peak since the process started, not the block's own.
    """

    size: int = 0
    since_start: bool = False


@contextmanager
def peak_memory(device: str | torch.device) -> Iterator[Peak]:
    """Measures the peak memory of a block; an error in the block leaves the peak at 0.

    Warning:
        On a CPU this is a measurement of the whole process; see the module.

    Arguments:
        device: Where the block computes, such as `cpu` or `cuda:1`.

    Returns:
        The peak, filled in when the block ends.
    """
    peak, device = Peak(), torch.device(device)
    if device.type == "cuda":
        torch.cuda.init()  # there are no statistics to reset before
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.size = torch.cuda.max_memory_allocated(device)
        return
    peak.since_start = not _reset()
    yield peak
    peak.size = _since_start() if peak.since_start else _high_water_mark()


def _reset() -> bool:
    """Resets the high-water mark to the current memory; whether that is possible."""
    release_freed_memory()
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int:
    """Returns VmHWM, bytes."""
    line = next(ln for ln in STATUS.read_text().splitlines() if ln.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])  # kB, as the kernel calls KiB


def _since_start() -> int:
    """Returns the peak since the process started, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
