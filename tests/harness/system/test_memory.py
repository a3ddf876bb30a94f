"""The peak memory of a block, against memory of a known size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.system import memory
from bench.system.memory import peak_memory

MEGABYTE = 10**6
LARGE, SMALL = 200 * MEGABYTE, 20 * MEGABYTE
SLACK = 10 * MEGABYTE


def hold(size: int) -> None:
    """Allocates memory that goes back to the system when freed, and touches every page of it."""
    np.ones(size, dtype=np.uint8)


@pytest.fixture
def resettable() -> None:
    if not memory._reset():
        pytest.skip("needs a system whose high-water mark can be reset: Linux")


def test_the_peak_is_the_blocks_own(resettable: None) -> None:
    with peak_memory("cpu") as nothing:
        pass
    with peak_memory("cpu") as large:
        hold(LARGE)
    with peak_memory("cpu") as small:
        hold(SMALL)
    assert large.size - nothing.size == pytest.approx(LARGE, abs=SLACK)
    assert small.size - nothing.size == pytest.approx(SMALL, abs=SLACK)
    assert not small.since_start


def test_where_the_mark_cannot_be_reset_the_peak_is_since_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    with peak_memory("cpu") as large:
        hold(LARGE)
    with peak_memory("cpu") as small:
        hold(SMALL)
    assert small.size >= large.size > LARGE
    assert small.since_start


def test_both_marks_are_in_bytes(resettable: None) -> None:
    """Two counters of the kernel, in units of their own, tell the same number."""
    with peak_memory("cpu") as peak:
        hold(LARGE)
    assert memory._since_start() >= peak.size - SLACK
    assert memory._since_start() < 100 * peak.size


def test_on_cuda_it_is_what_torch_allocated(cuda: torch.device) -> None:
    kept = torch.ones(SMALL, dtype=torch.uint8, device=cuda)
    with peak_memory(cuda) as large:
        torch.ones(LARGE, dtype=torch.uint8, device=cuda)
    with peak_memory(cuda) as small:
        torch.ones(SMALL, dtype=torch.uint8, device=cuda)
    assert large.size - small.size == pytest.approx(LARGE - SMALL, abs=SLACK)
    assert small.size >= 2 * len(kept)
