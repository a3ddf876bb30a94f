"""The bound: against torch.distributions, the closed form, and finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from flowvae.data import Dataset
from flowvae.evaluation.importance_weighting import log_weights
from flowvae.models.vae import VAE, build
from flowvae.numerics.streams import generator
from flowvae.trial import Trial


def make(
    prior: str,
    data: Dataset,
    device: torch.device,
    *,
    latent: int = 3,
    precision: str = "float64",
) -> VAE:
    trial = Trial(prior=prior, latent=latent, net="mlp[hidden=24x16]", precision=precision)
    return build(trial, data.shape, data.train).to(device)


@pytest.fixture
def normal(device: torch.device) -> Callable[..., Tensor]:
    """Draw normal numbers that are the same on all devices."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator(0, "test")).to(device)

    return draw


def test_terms_are_those_of_torch_distributions(
    prior: str, small: Dataset, normal: Callable[..., Tensor], device: torch.device
) -> None:
    """Both the training bound and the importance weights, at given noise."""
    vae, x, noise = make(prior, small, device), small.test[:6].to(device), normal(6, 4, 3)
    mean, log_std = vae.encoder(x.double()).chunk(2, dim=-1)
    q = Normal(mean[:, None], log_std.exp()[:, None])  # (6, 1, 3)
    z = q.loc + q.scale * noise
    log_q = q.log_prob(z).sum(dim=-1)
    log_p = vae.prior().log_prob(z)
    log_x = Bernoulli(logits=vae.decoder(z)).log_prob(x[:, None].double()).sum(dim=-1)
    expected = (log_x + log_p - log_q, log_q - log_p, -log_x)
    for k in range(4):
        for found, value in zip(vae.elbo(x, noise[:, k]), expected, strict=True):
            assert found.shape == (6,)
            torch.testing.assert_close(found, value[:, k], rtol=1e-10, atol=1e-10)
    for found, value in zip(log_weights(vae, x, noise), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10)


def test_rate_of_the_gaussian_prior_is_the_divergence_in_the_mean(
    small: Dataset, normal: Callable[..., Tensor], device: torch.device
) -> None:
    vae, draws = make("gauss", small, device), 20_000
    with torch.no_grad():
        for p in vae.encoder.parameters():
            p *= 2  # away from the prior
        x = small.test[:1].to(device)
        q = vae.encode(x)
        exact = kl_divergence(Normal(q.mean, q.std), Normal(0.0, 1.0)).sum()
        rate = vae.elbo(x.expand(draws, -1), normal(draws, 3)).rate
    assert exact > 0.1
    assert abs(rate.mean() - exact) < 4 * rate.std() / draws**0.5


def test_gradient_agrees_with_finite_differences(
    prior: str, small: Dataset, normal: Callable[..., Tensor], device: torch.device
) -> None:
    """Along random directions in the space of all parameters, at common noise."""
    vae, x, noise = make(prior, small, device), small.train[:10].to(device), normal(10, 3)
    parameters = list(vae.parameters())
    vae.elbo(x, noise).elbo.mean().backward()
    step, stream = 1e-6, generator(1, "test")
    for _ in range(4):
        ways = [
            torch.randn(p.shape, dtype=p.dtype, generator=stream).to(device) / p.numel() ** 0.5
            for p in parameters
        ]
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):  # to +step, to -step, and back
                for p, way in zip(parameters, ways, strict=True):
                    p += sign * step * way
                values.append(vae.elbo(x, noise).elbo.mean().item())
        slope = sum((p.grad * way).sum().item() for p, way in zip(parameters, ways, strict=True))
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-6)


def test_gradient_reaches_encoder_and_decoder(
    prior: str, small: Dataset, normal: Callable[..., Tensor], device: torch.device
) -> None:
    vae = make(prior, small, device)
    vae.elbo(small.train[:10].to(device), normal(10, 3)).elbo.mean().backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None] == []
    for body in (vae.encoder, vae.decoder):
        assert all(p.grad.any() for p in body.parameters())


def test_no_image_touches_another(
    prior: str, small: Dataset, normal: Callable[..., Tensor], device: torch.device
) -> None:
    vae, x, noise = make(prior, small, device), small.train[:5].to(device), normal(5, 3)
    alone = [vae.elbo(x[i : i + 1], noise[i : i + 1]).elbo for i in range(5)]
    torch.testing.assert_close(vae.elbo(x, noise).elbo, torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_initial_encoder_and_decoder_do_not_depend_on_the_prior(
    prior: str, seed: int, small: Dataset
) -> None:
    base, other = (
        build(
            Trial(prior=name, latent=3, seed=seed, net="mlp[hidden=24]"), small.shape, small.train
        )
        for name in ("gauss", prior)
    )
    for body in ("encoder", "decoder"):
        expected, found = (getattr(vae, body).state_dict() for vae in (base, other))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_initial_weights_come_from_the_seed_alone(prior: str, small: Dataset) -> None:
    states = []
    for seed, disturbance in [(0, 1), (0, 2), (1, 1)]:
        torch.manual_seed(disturbance)
        trial = Trial(prior=prior, latent=3, seed=seed, net="mlp[hidden=24]")
        states.append(build(trial, small.shape, small.train).state_dict())
    a, again, b = states
    assert all(torch.equal(a[key], again[key]) for key in a)
    for part in ("encoder.", "decoder.", "prior."):
        weights = [key for key in a if key.startswith(part) and key.endswith(".weight")]
        assert all(not torch.equal(a[key], b[key]) for key in weights)


def test_sample_draws_probabilities_from_the_seed(
    prior: str, small: Dataset, device: torch.device
) -> None:
    vae = make(prior, small, device, precision="float32")
    images = vae.sample(5, seed=1)
    assert images.shape == (5, 8, 8)
    assert ((images > 0) & (images < 1)).all()
    torch.manual_seed(123)
    assert torch.equal(images, vae.sample(5, seed=1))
    assert not torch.equal(images, vae.sample(5, seed=2))


def test_samples_decode_draws_of_the_prior(small: Dataset, device: torch.device) -> None:
    """With the identity as decoder, a sample is sigmoid(z), z ~ N(0, I)."""
    vae = make("gauss", small, device, latent=64)
    vae.decoder = torch.nn.Identity()
    z = torch.logit(vae.sample(500)).flatten(1)
    assert abs(z.mean().item()) < 5 / z.numel() ** 0.5
    assert z.var().item() == pytest.approx(1, abs=5 * (2 / z.numel()) ** 0.5)


def test_bf16_is_for_the_products_only(
    small: Dataset, normal: Callable[..., Tensor], device: torch.device
) -> None:
    """Weights and terms stay float32; the logits are those of bfloat16, near and not equal."""
    vae, exact = (make("maf[hidden=8]", small, device, precision=p) for p in ("bf16", "float32"))
    x, noise = small.test[:20].to(device), normal(20, 3).float()
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    found, expected = vae.elbo(x, noise), exact.elbo(x, noise)
    assert {term.dtype for term in found} == {torch.float32}
    error = (found.elbo - expected.elbo).abs()
    assert 0 < error.max() < 0.5
    assert vae.decode(noise).dtype == torch.float32
