"""What the tests share: the data sets, cut small, and the contract's list of priors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from narrow import narrow

from flowvae.data import MNIST_SHA256, Dataset, data_dir, load_data
from flowvae.priors import PRIORS


@pytest.fixture(params=list(PRIORS))
def prior(request: pytest.FixtureRequest) -> str:
    """Every registered prior in turn, its networks narrow so that a test takes no time."""
    return narrow(request.param)


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
