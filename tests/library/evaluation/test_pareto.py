"""Pareto k-hat: against ArviZ, and distributions whose tail is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from flowvae.evaluation.pareto import pareto_khat


@pytest.mark.parametrize("samples", [25, 100, 225, 226, 1000, 5000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 7.0, 60.0])
def test_khat_is_that_of_arviz(samples: int, scale: float) -> None:
    """Log weights of any spread and size; ArviZ takes minus the log weights of one image."""
    log_w = scale * np.random.default_rng(samples).normal(size=(7, samples)) - 500
    expected = [array_stats.psislw(-row)[1] for row in log_w]
    found = pareto_khat(torch.from_numpy(log_w))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.5])
def test_khat_finds_the_shape_of_a_pareto_tail(shape: float) -> None:
    u = np.random.default_rng(0).uniform(size=(200, 5000))
    found = pareto_khat(torch.from_numpy(-shape * np.log(u)))  # w = u^-k
    assert found.mean().item() == pytest.approx(shape, rel=0.1)


@pytest.mark.parametrize("level", [-80.0, -600.0])
@pytest.mark.parametrize("spread", [1e-6, 1e-5, 1e-4])
def test_rounding_of_nearly_equal_weights_is_no_tail(level: float, spread: float) -> None:
    """In float32 they tie, and the steps between the ties look like the heaviest of tails."""
    log_w = level + spread * torch.from_numpy(np.random.default_rng(0).normal(size=(50, 1000)))
    for rounded in (log_w, log_w.float()):
        assert (pareto_khat(rounded) == -torch.inf).all()


def test_small_weights_do_not_hide_a_heavy_tail() -> None:
    u = np.random.default_rng(0).uniform(size=(50, 1000))
    found = pareto_khat(torch.from_numpy(np.log1p(1e-3 / u)))  # nearly equal, but for a few
    assert found.mean().item() == pytest.approx(1.0, rel=0.15)


def test_khat_of_degenerate_weights() -> None:
    assert pareto_khat(torch.randn(3, 24)).isnan().all()  # too few for a tail of five
    assert (pareto_khat(torch.full((3, 1000), -80.0)) == -torch.inf).all()
    broken = torch.randn(1, 1000)
    broken[0, 5] = torch.nan
    assert pareto_khat(broken).isnan().all()
    alone = torch.zeros(1, 1000)
    alone[0, 3] = 2000.0  # all others vanish beside it
    assert pareto_khat(alone).item() > 5
