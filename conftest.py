"""The flag `pytest --device cuda`: where tests and benchmarks compute."""

from __future__ import annotations

import os

import pytest
import torch

from bench.system.devices import choose_device
from flowvae.errors import InputError


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flag; pytest knows it whatever part of the repository it is given."""
    parser.addoption(
        "--device",
        help="where to compute: auto, cpu, cuda or cuda:N (tests: cpu, benchmarks: auto)",
    )


def _chosen(config: pytest.Config) -> torch.device:
    return torch.device(choose_device(config.getoption("--device") or "cpu"))


def pytest_configure(config: pytest.Config) -> None:
    """Ends the session before the first test if the device is not available."""
    try:
        _chosen(config)
    except InputError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(optionalhook=True)  # unknown to a pytest without pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Runs one process more than there are cores: some tests wait for processes they start."""
    return 1 + (os.cpu_count() or 1)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the tests compute."""
    return _chosen(request.config)
