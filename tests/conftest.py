"""What the tests share: the data sets, cut small, and the contract's list of priors."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import pytest
import torch
from support.small_priors import narrow

from flowvae.data import MNIST_SHA256, Dataset, data_dir, load_data
from flowvae.priors import PRIORS
from flowvae.trial import registries

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: each has a core, and no more
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that it starts
    torch.set_num_threads(1)


WAITING = ("test_kills", "test_slurm", "test_team", "test_local")
"""Modules whose tests start processes and wait for them, a minute and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Takes those first, so that none begins when all else is done; one core serves the rest."""
    items.sort(key=lambda item: item.path.stem not in WAITING)


@pytest.fixture(params=list(PRIORS))
def prior(request: pytest.FixtureRequest) -> str:
    """Every registered prior in turn, its networks narrow so that a test takes no time."""
    return narrow(request.param)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, for a test of what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    return device


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_data("digits")


@pytest.fixture(scope="session")
def small(digits: Dataset) -> Dataset:
    """The first digits: 200 for training, which 64 does not divide, 60 for the rest."""
    return replace(digits, train=digits.train[:200], valid=digits.valid[:60])


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    raw = data_dir() / "MNIST" / "raw"
    if not all((raw / name).is_file() for name in MNIST_SHA256):
        pytest.skip("needs MNIST: set FLOWVAE_DATA to a folder that holds MNIST/raw")
    return load_data("mnist")


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that puts an MLflow database without runs into a folder; returns its file."""
    from bench.store.runs import Store

    made = tmp_path_factory.mktemp("store") / "mlflow.db"
    Store(f"sqlite:///{made}", "").client  # noqa: B018  its tables take seconds, so once

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(copyfile(made, folder / "mlflow.db"))

    return make


@pytest.fixture
def empty_store(tmp_path: Path, make_store: Callable[[Path], Path]) -> Path:
    """A store without runs, where a command in the test's folder looks; returns its file."""
    return make_store(tmp_path)


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the registries: what a test registers or imports is no other test's."""
    for registry in registries().values():
        monkeypatch.setattr(registry, "_entries", {**registry._entries})
        monkeypatch.setattr(registry, "_others", {**registry._others})


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from support.fast_commands import leave_undrawn  # which imports MLflow

    leave_undrawn(monkeypatch)
