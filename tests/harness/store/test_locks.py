"""Locks: one process at a time, and none that outlives its holder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.store.locks import TrialLocks
from bench.system.process import has_ended, process_identity
from flowvae.errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from bench.store.locks import TrialLocks
from bench.system.process import process_identity
with TrialLocks(Path(sys.argv[1])).held(["b", "a"]) as held:
    print(held, *process_identity().values(), sep="|", flush=True)
    time.sleep(600)
"""


def free(locks: TrialLocks, key: str) -> bool:
    with locks.held([key]) as held:
        return held


@contextmanager
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start a process that holds the locks a and b, and return what it says of itself."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            said = other.stdout.readline().strip().split("|")
            assert said[0] == "True"
            yield other, said[1:]
        finally:
            other.kill()


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    locks = TrialLocks(tmp_path / "locks")
    with holder(locks.folder) as (other, said):
        known = dict(zip(process_identity(), said, strict=True))
        assert not has_ended(known)
        with locks.held(["c", "a"]) as held:
            assert not held
        assert free(locks, "c")  # all of them or none
        assert not free(locks, "b")
        other.kill()
        other.wait()
        with locks.held(["a", "b"]) as held:
            assert held
            assert not free(TrialLocks(locks.folder), "a")  # nor in the same process
        assert has_ended(known)
    assert free(locks, "a")


def test_a_process_is_known_by_when_it_started() -> None:
    mine = process_identity()
    assert not has_ended(mine)
    assert not has_ended({**mine, "host": "elsewhere"})
    assert not has_ended({})
    assert not has_ended({**mine, "pid": "junk"})
    if mine["process.start"]:  # where the system tells
        boot, space, ticks = mine["process.start"].split("/")
        assert has_ended(
            {**mine, "process.start": f"{boot}/{space}/{int(ticks) + 1}"}
        )  # a later one
        assert has_ended({**mine, "process.start": f"other/{space}/{ticks}"})  # before a new start
        assert not has_ended({**mine, "process.start": f"{boot}/other/{ticks}"})  # of a container
        assert not has_ended({**mine, "process.start": ""})


def test_a_lock_of_what_is_complete_leaves_no_file(tmp_path: Path) -> None:
    locks = TrialLocks(tmp_path)
    with locks.held(["a", "b"]) as held:
        assert held
        locks.remove(["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["b.lock"]
    locks.remove(["a"])  # another process was faster


def test_locks_that_cannot_be_made_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="cannot write to .*file/locks: Not a directory"),
        TrialLocks(tmp_path / "file" / "locks").held(["a"]),
    ):
        os.abort()
