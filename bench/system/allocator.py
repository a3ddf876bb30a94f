"""Memory that the C library keeps for this process after it was freed, or returns to the system.

A pass over thousands of images allocates and frees tens of megabytes. By default the C library
returns much of that to the system, which clears and maps it again, page by page, a moment later.

References:
    The GNU C library's manual, "Malloc Tunable Parameters",
    https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory", "release_freed_memory"]


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Raises the sizes from which freed memory is returned; whether that was possible.

    With a C library other than glibc it does nothing. Results do not depend on it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions accept at most 32 MiB here; the trim threshold alone would make it worse.
    kept = mallopt(M_MMAP_THRESHOLD, MAX_KEPT_BYTES) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, MAX_KEPT_BYTES))


def release_freed_memory() -> None:
    """Returns freed memory to the system, if the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
