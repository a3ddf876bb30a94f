"""The diagonal Gaussian posterior: against torch's distributions."""

from __future__ import annotations

import pytest
import torch
from support.random_inputs import normal
from torch import Tensor
from torch.distributions import Normal

from flowvae.posteriors import DiagonalGaussian, Posterior


def posterior(device: torch.device) -> tuple[Posterior, Tensor, Tensor]:
    """Five posteriors in two dimensions, with their means and deviations."""
    mean, log_std = (normal(5, 2, of=name).to(device) for name in ("mean", "log std"))
    return DiagonalGaussian.of_outputs(torch.cat([mean, log_std], dim=1)), mean, log_std.exp()


def test_moments_and_densities_are_those_of_torch_distributions(device: torch.device) -> None:
    q, mean, std = posterior(device)
    for found, expected in ((q.mean, mean), (q.std, std), (q.variance, std**2)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    noise = normal(5, 3, 2, of="noise").to(device)
    z, log_q = q.map(lambda t: t[:, None]).sample_with_log_prob(noise)
    torch.testing.assert_close(z, mean[:, None] + std[:, None] * noise, rtol=1e-12, atol=1e-12)
    expected = Normal(mean[:, None], std[:, None]).log_prob(z).sum(dim=-1)
    torch.testing.assert_close(log_q, expected, rtol=1e-12, atol=1e-12)
    many = q.map(lambda t: t[:, None])
    torch.testing.assert_close(many.log_prob(z), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(many.noise(z), noise, rtol=1e-10, atol=1e-10)
    assert torch.equal(many.sample(noise), z)


def test_outputs_are_read_and_written_alike(device: torch.device) -> None:
    outputs = normal(5, 4, of="outputs").to(device)
    assert torch.equal(DiagonalGaussian.of_outputs(outputs).outputs, outputs)


def test_join_puts_others_after(device: torch.device) -> None:
    q, mean, std = posterior(device)
    joined = q.join([q.map(lambda t: 2 * t), q])
    torch.testing.assert_close(joined.mean, torch.cat([mean, 2 * mean, mean]))
    torch.testing.assert_close(joined.std, torch.cat([std, std**2, std]))


@pytest.mark.parametrize("scale", [1.0, 1e-12], ids=["by a product", "by differences"])
def test_pairs_are_all_log_densities(scale: float, device: torch.device) -> None:
    """Posteriors that are nearly points, too: there a matrix product loses all digits."""
    q, mean, std = posterior(device)
    narrow = DiagonalGaussian(mean, (scale * std).log())
    z = mean + scale * normal(5, 2, of="z").to(device)
    expected = Normal(mean, scale * std).log_prob(z[:, None]).sum(dim=-1)
    found = narrow.pairs(at=z)(z, out=torch.empty(5, 5, dtype=torch.float64, device=device))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-3)
    if scale == 1:
        torch.testing.assert_close(q.pairs()(z), expected, rtol=1e-10, atol=1e-10)
