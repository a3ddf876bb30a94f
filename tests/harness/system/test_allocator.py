"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from bench.system import allocator

PASSES = """
import resource
import torch
from bench.system.allocator import keep_freed_memory

def claim():
    return [torch.ones(2_000_000) for _ in range(8)]

def faults():
    for _ in range(3):
        claim()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    claim()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_freed_memory()
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_are_not_mapped_anew() -> None:
    """By chance a small block lies last, and nothing can be given back: then it is tried again."""

    def saves() -> bool:
        words = [sys.executable, "-c", PASSES]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        given_back, kept = map(int, done.stdout.split())
        return kept < given_back / 4

    assert any(saves() for _ in range(6))


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory()
