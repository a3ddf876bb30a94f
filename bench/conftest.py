"""Fixtures of the benchmarks: device and images; and the machine's facts in their JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from bench.system.devices import choose_device, device_name

if TYPE_CHECKING:
    from bench.benchmarks.step_runner import TrainingImages


def _chosen(config: pytest.Config) -> torch.device:
    return torch.device(choose_device(config.getoption("--device") or "auto"))


@pytest.hookimpl(optionalhook=True)  # unknown to a pytest without pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Runs benchmarks in one process, so that no other process slows them down."""
    return 0 if config.getoption("benchmark_enable") else None


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of the benchmarks, by `--device`."""
    return _chosen(request.config)


@pytest.fixture(scope="session")
def images() -> TrainingImages:
    """MNIST if it is in the data folder, else random images."""
    from bench.benchmarks.step_runner import (
        find_images,  # torchvision takes seconds, in each process of pytest
    )

    return find_images()


@pytest.hookimpl(optionalhook=True)  # unknown to a pytest without pytest-benchmark
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Adds the device and the settings of torch that decide its speed."""
    device = _chosen(config)
    machine_info["device"] = device_name(str(device))
    machine_info["torch"] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
