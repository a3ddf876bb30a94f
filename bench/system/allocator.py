"""Keeps freed memory for the next pass, or gives it back.

A pass over thousands of images claims and frees tens of megabytes. By default the C library gives
much of that back to the system, which clears it and maps it anew, page by page, a moment later.

References:
    The GNU C library's manual, "Malloc Tunable Parameters",
    https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["give_back", "keep_freed"]


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGE = 2**30


def keep_freed() -> bool:
    """Raises the sizes from which this process gives memory back; tells whether it could.

    With another C library than glibc it does nothing: what is computed is the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older ones take no more than 32 MiB here; trimming alone would make it worse.
    kept = mallopt(MMAP_THRESHOLD, LARGE) or mallopt(MMAP_THRESHOLD, 2**25)
    return bool(kept and mallopt(TRIM_THRESHOLD, LARGE))


def give_back() -> None:
    """Gives freed memory back to the system, as far as the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
