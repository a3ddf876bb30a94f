"""The Bernoulli likelihood: against torch's distributions and cross-entropy, and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli as Reference
from torch.nn import functional as F  # noqa: N812

from flowvae.likelihoods import Bernoulli, Likelihood
from flowvae.numerics.streams import generator

LIKELIHOOD: Likelihood = Bernoulli()


def pixels_and_logits(*shape: int, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    stream = generator(0, "test")
    logits = scale * torch.randn(shape, generator=stream, dtype=torch.float64).to(device)
    return torch.randint(2, shape, generator=stream).to(device, torch.float64), logits


@pytest.mark.parametrize("scale", [1.0, 20.0, 200.0])
def test_log_prob_and_its_gradient_are_those_of_bernoullis(
    scale: float, device: torch.device
) -> None:
    """Against torch's cross-entropy, alone and stacked, at logits where exp overflows too."""
    x, logits = pixels_and_logits(3, 5, 9, scale=scale, device=device)
    weights = torch.randn(3, 5, generator=generator(1, "test"), dtype=torch.float64).to(device)
    expected = logits.clone().requires_grad_()
    log_p = -F.binary_cross_entropy_with_logits(expected, x, reduction="none").sum(dim=-1)
    (log_p * weights).sum().backward()
    for function in (LIKELIHOOD.log_prob, torch.func.vmap(LIKELIHOOD.log_prob)):
        found = logits.clone().requires_grad_()
        ours = function(x, found)
        (ours * weights).sum().backward()
        torch.testing.assert_close(ours, log_p, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_products_and_normaliser_are_the_log_prob(device: torch.device) -> None:
    """Of K latents for each image, and of all images at all latents."""
    x, logits = pixels_and_logits(4, 9, scale=3, device=device)
    pairs = Reference(logits=logits).log_prob(x[:, None]).sum(dim=-1)  # (4, 4)
    normaliser = LIKELIHOOD.log_normaliser(logits)
    own = LIKELIHOOD.products(x, logits.expand(4, -1, -1)) - normaliser
    torch.testing.assert_close(own, pairs, rtol=1e-12, atol=1e-12)
    every = LIKELIHOOD.all_products(x, logits, -normaliser)
    torch.testing.assert_close(every, pairs, rtol=1e-12, atol=1e-12)


def test_curvature_is_minus_the_second_derivative_of_log_prob(device: torch.device) -> None:
    x, logits = pixels_and_logits(2, 5, scale=3, device=device)

    def log_prob(outputs: Tensor, image: Tensor) -> Tensor:
        return Reference(logits=outputs).log_prob(image).sum()

    hessian = torch.func.vmap(torch.func.hessian(log_prob))
    expected = torch.diag_embed(LIKELIHOOD.curvature(logits))
    torch.testing.assert_close(-hessian(logits, x), expected, rtol=1e-12, atol=1e-12)


def test_samples_have_the_mean(device: torch.device) -> None:
    _, logits = pixels_and_logits(6, scale=1, device=device)
    noise = torch.rand(40_000, 6, generator=generator(2, "test")).to(device)
    images = LIKELIHOOD.sample(logits.expand(40_000, -1), noise)
    assert images.dtype == torch.uint8
    mean = LIKELIHOOD.mean(logits)
    torch.testing.assert_close(mean, Reference(logits=logits).mean)
    error = (images.double().mean(dim=0) - mean).abs() / (mean * (1 - mean) / 40_000).sqrt()
    assert error.max() < 4
