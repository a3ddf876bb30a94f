"""Values made ahead: in order, no more than asked for, errors where they are used."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from flowvae.numerics.prefetch import ahead


def test_values_come_in_order_from_as_many_threads() -> None:
    barrier = threading.Barrier(3, timeout=10)  # passed only if three run at once

    def slow(i: int) -> int:
        barrier.wait()
        time.sleep(0.01 * (i % 3))
        return i

    assert list(ahead(slow, range(9), workers=3)) == list(range(9))


def test_one_worker_calls_one_after_the_other_and_only_so_far_ahead() -> None:
    called: list[int] = []
    made = threading.Event()

    def note(i: int) -> int:
        called.append(i)
        if len(called) == 2:
            made.set()
        return i

    with closing(ahead(note, range(100))) as values:
        assert next(values) == 0
        assert made.wait(10)
        time.sleep(0.05)
        assert called == [0, 1]
    assert called == [0, 1]
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_an_error_reaches_whoever_asks_for_the_value() -> None:
    def fail(i: int) -> int:
        if i == 2:
            raise ValueError("the third")
        return i

    values = ahead(fail, range(5))
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(values)
    with pytest.raises(StopIteration):
        next(values)
