"""Priors made of posteriors, and the resampled prior: against torch's mixtures and quadrature."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from support.small_priors import narrow
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F  # noqa: N812

from flowvae.data import Dataset, load_data
from flowvae.errors import InputError
from flowvae.models.saved_model import load, save
from flowvae.models.vae import VAE, build
from flowvae.numerics.streams import generator
from flowvae.priors import PRIORS, Latent
from flowvae.training.trainer import fit
from flowvae.trial import Trial


def make(prior: str, **changes: object) -> Trial:
    recipe = {"latent": 2, "net": "mlp[hidden=8]", "epochs": 3, "precision": "float64"}
    return Trial(prior=prior, **{**recipe, **changes})


def mixture(mean: torch.Tensor, log_std: torch.Tensor) -> MixtureSameFamily:
    parts = Independent(Normal(mean, log_std.exp()), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(mean), dtype=mean.dtype)), parts)


@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_vamp_is_the_mean_of_the_posteriors_of_its_inputs(spread: float, small: Dataset) -> None:
    vae = build(make("vamp[components=7]"), small.shape)
    with torch.no_grad():
        vae.prior.pseudo_inputs.mul_(3)  # some leave [0, 1]
        vae.encoder[2].bias[2:] += math.log(spread)
    mean, log_std = vae.encoder(vae.prior.pseudo_inputs.clip(0, 1)).chunk(2, dim=-1)
    z = mean + spread * torch.randn(7, 2, dtype=torch.float64, generator=generator(0, "z"))
    expected = mixture(mean, log_std).log_prob(z)
    torch.testing.assert_close(vae.prior().log_prob(z), expected, rtol=1e-7, atol=1e-6)


def test_exemplars_are_training_images_of_one_learned_width() -> None:
    data = load_data("digits[binarise=stochastic]")
    vae = build(make("exemplar[exemplars=9]"), data.shape, data.train, data.levels)
    rows = {row.numpy().tobytes() for row in data.train}
    chosen = vae.prior.exemplars
    assert len(chosen) == 9
    assert {(16 * row).round().byte().numpy().tobytes() for row in chosen} <= rows
    with torch.no_grad():
        vae.prior.log_std.fill_(-0.7)
    mean = vae.encoder(chosen)[:, :2]
    z = torch.randn(5, 2, dtype=torch.float64, generator=generator(0, "z"))
    expected = mixture(mean, torch.full_like(mean, -0.7)).log_prob(z)
    torch.testing.assert_close(vae.prior().log_prob(z), expected, rtol=1e-10, atol=1e-10)


def test_pseudo_inputs_can_start_from_training_images() -> None:
    data = load_data("digits[binarise=stochastic]")
    trial = make("vamp[components=9,start=images]")
    inputs = build(trial, data.shape, data.train, data.levels).prior.pseudo_inputs
    rows = {row.numpy().tobytes() for row in data.train}
    assert {(16 * row).round().byte().numpy().tobytes() for row in inputs} <= rows
    assert inputs.max() == 1
    noise = build(make("vamp[components=9]"), data.shape).prior.pseudo_inputs
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("prior", ["exemplar[exemplars=201]", "vamp[components=201,start=images]"])
def test_more_images_than_there_are_are_refused(prior: str, small: Dataset) -> None:
    with pytest.raises(InputError, match="cannot draw 201 images out of the 200"):
        fit([make(prior)], small)


def test_a_saved_model_of_grey_images_is_the_same(prior: str, tmp_path: Path) -> None:
    data = load_data("digits[binarise=stochastic]")
    trial = make(prior, dataset=data.spec)
    vae = build(trial, data.shape, data.train, data.levels)
    again, _ = load(save(vae, trial, tmp_path))
    z = torch.randn(5, 2, dtype=torch.float64, generator=generator(0, "z"))
    torch.testing.assert_close(again.prior().log_prob(z), vae.prior().log_prob(z), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vamp", "exemplar"])
def test_a_copied_model_borrows_its_own_encoder(name: str, small: Dataset) -> None:
    vae = build(make(narrow(name)), small.shape, small.train)
    z = torch.zeros(1, 2, dtype=torch.float64)
    before = vae.prior().log_prob(z)
    other = copy.deepcopy(vae)
    with torch.no_grad():
        for p in other.encoder.parameters():
            p.mul_(3)
    assert torch.equal(vae.prior().log_prob(z), before)
    assert not torch.equal(other.prior().log_prob(z), before)
    own = {key.removeprefix("prior.") for key in vae.state_dict() if key.startswith("prior.")}
    assert own in ({"pseudo_inputs"}, {"exemplars", "log_std"})  # the encoder is the model's


def test_the_bound_moves_the_encoder_through_the_prior_too(small: Dataset) -> None:
    vae = build(make("vamp[components=5]"), small.shape)
    z = torch.zeros(1, 2, dtype=torch.float64)
    vae.prior().log_prob(z).backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.encoder.parameters())


def lars(features: int, **options: str) -> nn.Module:
    inside = ",".join(f"{k}={v}" for k, v in {"hidden": "16x16", **options}.items())
    prior = PRIORS.build(f"lars[{inside}]", Latent(features)).double()
    stream = generator(0, "scramble")
    with torch.no_grad():
        for p in prior.parameters():
            p.copy_(torch.randn(p.shape, generator=stream, dtype=p.dtype))
        prior.accept[-1].bias.sub_(2.0)
    return prior


@pytest.mark.parametrize("features", [1, 2])
def test_log_z_is_the_mean_acceptance_within_its_error(features: int) -> None:
    prior = lars(features)
    axis = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * features).view(-1, features)
    with torch.no_grad():
        weight = torch.exp(-0.5 * grid.square().sum(dim=1)) / (2 * math.pi) ** (features / 2)
        exact = (weight * torch.sigmoid(prior.accept(grid)).squeeze(-1)).sum() * 0.01**features
        density = prior()
        error = density.log_z_error.item()
    assert 0 < error < 1e-3
    assert density.log_z.item() == pytest.approx(exact.log().item(), abs=6 * error + 1e-6)
    assert -4 < density.log_z.item() < -0.05


def test_resampled_density_is_the_formula_written_out() -> None:
    prior = lars(3, truncation="5")
    z = torch.randn(6, 3, dtype=torch.float64, generator=generator(0, "z"))
    density = prior()
    a, big_z = torch.sigmoid(prior.accept(z)).squeeze(-1), density.log_z.exp()
    rest = (1 - big_z) ** 4
    base = torch.exp(-0.5 * z.square().sum(dim=1)) / (2 * math.pi) ** 1.5
    expected = (base * ((1 - rest) * a / big_z + rest)).log()
    torch.testing.assert_close(density.log_prob(z), expected, rtol=1e-9, atol=1e-9)


def test_training_estimates_z_from_the_proposals_of_its_batch(small: Dataset) -> None:
    vae: VAE = build(make("lars[hidden=8]"), small.shape)
    stream = generator(0, "test")
    noise, own = (
        torch.randn(n, 2, dtype=torch.float64, generator=stream) for n in (5, 5 * vae.prior.draws)
    )
    x = small.train[:5]
    log_z = F.logsigmoid(vae.prior.accept(own)).logsumexp(dim=0) - math.log(len(own))
    shift = vae.elbo(x, noise, own).elbo - vae.elbo(x, noise).elbo
    assert shift.abs().max() > 1e-5
    # with T = 100 hardly anything is left over: log p moves as -log Z
    torch.testing.assert_close(shift, (vae.prior().log_z - log_z).expand(5), rtol=1e-6, atol=1e-9)


def test_a_step_of_the_resampled_prior_draws_afresh(
    small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[torch.Tensor] = []
    elbo = VAE.elbo

    def spy(vae: VAE, x: torch.Tensor, noise: torch.Tensor, *own: torch.Tensor) -> object:
        if own:
            met.append(own[0].clone())
        return elbo(vae, x, noise, *own)

    monkeypatch.setattr(VAE, "elbo", spy)
    fit([make("lars[hidden=8]", batch=64, epochs=2)], small)
    assert [len(own) for own in met] == 2 * [256, 256, 256, 32]
    drawn = torch.cat(met)
    assert len(drawn.unique()) == drawn.numel()
    assert drawn.var().item() == pytest.approx(1, abs=0.15)
