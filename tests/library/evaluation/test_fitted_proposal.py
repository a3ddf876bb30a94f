"""Scores by a fitted proposal: against quadrature, closed forms, and its own contract."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.oracles import fitted, quadrature
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Laplace, Normal, StudentT
from zuko.lazy import LazyDistribution

from flowvae.data import Dataset
from flowvae.evaluation import fitted_proposal, passes
from flowvae.evaluation import importance_weighting as module
from flowvae.evaluation.importance_weighting import Scores, evaluate
from flowvae.evaluation.quadrature import evidence
from flowvae.likelihoods import Bernoulli
from flowvae.models.vae import VAE, build
from flowvae.trial import Evaluation, Trial

SPIKY = {"nsf": 0.4, "unaf": 0.1}
"""Priors whose density at D = 1 has spikes too narrow for most sets of draws, and the error of the
mean over 20 images that is allowed for them, nats."""


class Fixed(LazyDistribution):
    """A user's prior without weights, made of a tensor of D zeros."""

    def __init__(self, make: Callable[[Tensor], Distribution], latent: int) -> None:
        super().__init__()
        self.make = make
        self.register_buffer("zeros", torch.zeros(latent))

    def forward(self, c: Tensor | None = None) -> Distribution:
        return self.make(self.zeros)


def independent(make: Callable[[Tensor, Tensor], Distribution]) -> Fixed:
    """Return a prior of two independent features, by a distribution's centre and scale."""
    return Fixed(lambda zeros: Independent(make(zeros, torch.ones_like(zeros)), 1), 2)


class Odd(Distribution):
    """A standard Gaussian that keeps a bad habit of some users' densities."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, zeros: Tensor, habit: str) -> None:
        super().__init__((), zeros.shape, validate_args=False)
        self.inner, self.habit = Independent(Normal(zeros, torch.ones_like(zeros)), 1), habit

    def log_prob(self, z: Tensor) -> Tensor:
        if self.habit == "no derivative":
            with torch.no_grad():
                return self.inner.log_prob(z)
        out = (z.abs() > 1.5).any(dim=-1)
        if self.habit == "raises" and out.any():
            raise ValueError("a latent is outside the support")
        return self.inner.log_prob(z).where(~out, math.nan if self.habit == "NaN" else -math.inf)


def odd(habit: str) -> Fixed:
    """Return a prior with such a habit."""
    return Fixed(lambda zeros: Odd(zeros, habit), 2)


class Gaussian(Bernoulli):
    """Pixels x ~ N(l, 0.5), without the factor that depends on x alone."""

    variance = 0.5

    def log_normaliser(self, outputs: Tensor) -> Tensor:
        return outputs.square().sum(dim=-1) / (2 * self.variance)

    def products(self, x: Tensor, outputs: Tensor) -> Tensor:
        return super().products(x, outputs / self.variance)

    def all_products(self, x: Tensor, outputs: Tensor, offset: Tensor) -> Tensor:
        return super().all_products(x, outputs / self.variance, offset)

    def curvature(self, outputs: Tensor) -> Tensor:
        return torch.full_like(outputs, 1 / self.variance)


FAR = 6.0
"""How far from the centre each of two halves of a latent space is."""


def halves(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the side of latents, -1 or 1, (N, 1), and what they are there, (N, D)."""
    side = torch.where(z[:, :1] < 0, -1, 1)
    return side, side * z - FAR * torch.eye(1, z.shape[-1]).to(z)


class Doubled(nn.Module):
    """A decoder for which each latent z has a twin: the images of both are the same."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, z: Tensor) -> Tensor:
        return self.body(halves(z)[1])


class Sided(nn.Module):
    """An encoder that takes the one twin, or, by the parity of the image, either."""

    def __init__(self, body: nn.Module, *, both: bool) -> None:
        super().__init__()
        self.body, self.both = body, both

    def forward(self, x: Tensor) -> Tensor:
        mean, rest = self.body(x).chunk(2, dim=-1)
        side = torch.where(x.sum(dim=-1, keepdim=True) % 2 == 0, -1, 1) if self.both else 1
        return torch.cat([side * (mean + FAR * torch.eye(1, 2).to(mean)), rest], dim=-1)


class Twins(Distribution):
    """The prior of such a model: a standard Gaussian on each side, mirror images of each other."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, zeros: Tensor) -> None:
        super().__init__((), zeros.shape, validate_args=False)
        self.inner = Independent(Normal(zeros, torch.ones_like(zeros)), 1)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.inner.log_prob(halves(z)[1]) - math.log(2)


def score(
    vae: VAE, images: Tensor, samples: int = 1000, precision: str = "float64", seed: int = 0
) -> Scores:
    """Score a model where it is."""
    evaluation = Evaluation(samples=samples, precision=precision)
    return evaluate(vae, images, evaluation, seed=seed, device=next(vae.parameters()).device)


def errors(scores: Scores, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what an estimate is off by, and its standard deviation by the delta method."""
    ((samples, found),) = scores.loglik.items()
    return found - exact, np.sqrt(np.maximum(1 / scores.ess - 1 / samples, 0))


def agrees(scores: Scores, exact: np.ndarray) -> bool:
    """Tell whether all estimates, and their mean, are what they should be within their error."""
    error, spread = errors(scores, exact)
    mean = abs(error.mean()) < 4 * np.sqrt((spread**2).sum()) / len(error) + 1e-4
    return bool(mean and (abs(error) < 6 * spread + 1e-3).all())


def same(a: Scores, b: Scores, rtol: float = 0.0) -> None:
    assert a.loglik.keys() == b.loglik.keys()
    for name in ("elbo", "rate", "distortion", "ess", "khat", "outside"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, err_msg=name)
    for samples in a.loglik:
        np.testing.assert_allclose(a.loglik[samples], b.loglik[samples], rtol=rtol)


@pytest.fixture(scope="module")
def gauss(small: Dataset, device: torch.device) -> VAE:
    return fitted("gauss", small, device)


@pytest.fixture(scope="module")
def maf(small: Dataset, device: torch.device) -> VAE:
    return fitted("maf[hidden=8]", small, device)


def with_prior(vae: VAE, prior: LazyDistribution) -> VAE:
    """Return a copy with another prior."""
    changed = copy.deepcopy(vae)
    changed.prior = prior.to(next(vae.parameters()))
    return changed


# The evidence


def test_score_is_the_evidence_at_two_features(
    prior: str, small: Dataset, device: torch.device
) -> None:
    vae, x = fitted(prior, small, device), small.test[:20]
    scores, exact = score(vae, x), quadrature(vae, x)
    error, spread = errors(scores, exact)
    assert abs(error.mean()) < 0.02
    told = ~(scores.khat <= 0.7)
    assert told.mean() <= 0.2
    assert (abs(error) < 6 * spread + 1e-3)[~told].all()
    assert (exact - scores.elbo).mean() > 0.2  # so that the weights have something to close


def test_score_is_the_evidence_at_one_feature(
    prior: str, small: Dataset, device: torch.device
) -> None:
    vae, x = fitted(prior, small, device, latent=1), small.test[:20]
    scores, exact = score(vae, x), evidence(vae, x).log_p
    error, spread = errors(scores, exact)
    spiky = SPIKY.get(prior.partition("[")[0])
    assert abs(error.mean()) < (spiky or 0.02)
    if spiky is None:
        assert (scores.khat > 0.7).mean() <= 0.2
        assert (abs(error) < 6 * spread + 1e-3)[scores.khat <= 0.7].all()


@pytest.mark.parametrize("latent", [16, 64])
def test_score_is_that_of_a_linear_model_with_gaussian_noise(
    latent: int, digits: Dataset, device: torch.device
) -> None:
    """Where log p(x) = log N(x; 0, W W' + s^2 I); the encoder is not trained at all."""
    trial = Trial(prior="gauss", latent=latent, net="mlp[hidden=4]", precision="float64")
    vae, x = build(trial, digits.shape).to(device), digits.test[:40]
    loading = torch.randn(64, latent, generator=torch.Generator().manual_seed(0)).double() / 4
    vae.decoder = nn.Linear(latent, 64, bias=False).double().to(device)
    vae.decoder.weight.data = loading.to(device)
    vae.likelihood = Gaussian()
    scores, pixels = score(vae, x, 5000), x.double()
    one, variance = torch.eye(64).double(), Gaussian.variance
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(64).double(), loading @ loading.T + variance * one
    )
    left_out = torch.distributions.Normal(0.0, math.sqrt(variance)).log_prob(pixels).sum(dim=-1)
    exact = (evidence.log_prob(pixels) - left_out).numpy()
    error, _ = errors(scores, exact)
    assert agrees(scores, exact)
    assert abs(error.mean()) < 3e-3
    assert scores.khat.max() < 0.7


@pytest.mark.parametrize("samples", [20, 1000])
def test_mean_of_the_estimate_is_the_evidence(
    small: Dataset, samples: int, device: torch.device
) -> None:
    """Its exponential has no bias, at any number of draws: copies of one image share no noise."""
    vae = fitted("gmm[components=6]", small, device, latent=1)
    x = small.test[:1]
    copies = 2000 if samples == 20 else 100
    scores = score(vae, x.expand(copies, -1), samples)
    ratio = np.exp(scores.loglik[samples] - evidence(vae, x).log_p)
    assert ratio.std() > 0
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(copies)
    if samples == 20:  # whose log is biased by half its variance
        assert np.log(ratio).mean() < -0.2 * ratio.var()


def test_elbo_and_its_terms_are_those_of_the_encoder(maf: VAE, small: Dataset) -> None:
    x, device = small.test[:100], next(maf.parameters()).device
    evaluation = Evaluation(samples=1000, precision="float64", estimator="encoder")
    found, expected = score(maf, x, 2000), evaluate(maf, x, evaluation, seed=1, device=device)
    for name in ("elbo", "rate", "distortion"):
        difference = getattr(found, name) - getattr(expected, name)
        assert abs(difference.mean()) < 4 * difference.std() / 10
        assert difference.std() < 0.15
    np.testing.assert_allclose(found.elbo, -found.rate - found.distortion, rtol=1e-12)


# Posteriors that are hard to fit


@pytest.mark.parametrize("make", [Laplace, lambda zero, one: StudentT(3.0, zero, one)])
def test_heavy_tails_of_a_users_prior(
    gauss: VAE, small: Dataset, make: Callable[[Tensor, Tensor], Distribution]
) -> None:
    vae = with_prior(gauss, independent(make))
    x = small.test[:40]
    scores = score(vae, x)
    assert agrees(scores, evidence(vae, x).log_p)
    assert (scores.khat > 0.7).mean() <= 0.15


def constant(vae: VAE) -> VAE:
    """Return a copy whose decoder does not heed the latents, so that p(z|x) is the prior."""
    changed = copy.deepcopy(vae)
    changed.decoder[-1].weight.data.zero_()
    return changed


def exact_of_constant(vae: VAE, x: Tensor) -> np.ndarray:
    """Return log p(x) of such a model, whatever its prior."""
    z = torch.zeros(len(x), 2, dtype=torch.float64, device=next(vae.parameters()).device)
    with torch.no_grad():
        return vae.likelihood.log_prob(x.to(z), vae.decode(z)).cpu().numpy()


def test_tails_heavier_than_the_proposals_are_told(gauss: VAE, small: Dataset) -> None:
    """A Cauchy's: beside a t of 3 degrees of freedom, the weights' tail has the shape 2/3."""
    cauchy = independent(lambda zero, one: StudentT(1.0, zero, one))
    vae, x = with_prior(constant(gauss), cauchy), small.test[:40]
    scores = score(vae, x)
    error, _ = errors(scores, exact_of_constant(vae, x))
    assert np.median(scores.khat) == pytest.approx(2 / 3, abs=0.15)
    assert abs(error.mean()) < 0.1


@pytest.mark.parametrize("both", [True, False])
def test_two_far_modes(gauss: VAE, small: Dataset, both: bool) -> None:
    """Each image has two decodings, 12 standard deviations of the prior apart.

    The second is found where other images are encoded on its side. Else it is missed, and k-hat
    does not tell, but on a few images, where a single draw of the heavy tail meets it.
    """
    x, twins = small.test[:100], with_prior(gauss, Fixed(Twins, 2))
    twins.decoder = Doubled(twins.decoder)
    twins.encoder = Sided(twins.encoder, both=both)
    exact = evidence(gauss, x).log_p
    scores = score(twins, x)
    error, _ = errors(scores, exact)
    assert (scores.khat > 0.7).mean() < 0.1
    if both:
        assert agrees(scores, exact)
    else:
        assert np.median(error) == pytest.approx(-math.log(2), abs=0.03)


def test_constant_decoder(gauss: VAE, small: Dataset) -> None:
    """The posterior is the prior, far from what the encoder says."""
    vae, x = constant(gauss), small.test[:50]
    exact = exact_of_constant(vae, x)
    for precision in ("float64", "float32"):
        scores = score(vae, x, precision=precision)
        assert agrees(scores, exact)
        assert (scores.khat < 0.7).all()


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("samples", [1, 2, 7, 25, 130])
def test_few_draws_and_images_that_are_black(maf: VAE, samples: int, images: int) -> None:
    x = torch.zeros(images, 64, dtype=torch.uint8)
    scores = score(maf, x, samples)
    error, _ = errors(scores, quadrature(maf, x))
    assert np.isfinite(scores.loglik[samples]).all()
    assert samples < 25 or abs(error).max() < 0.5
    assert np.isnan(scores.khat).all() == (samples < 25)
    assert (scores.ess >= 1 - 1e-9).all()
    assert (scores.ess <= samples + 1e-9).all()
    if samples == 1:  # which is of the encoder
        np.testing.assert_allclose(scores.elbo, scores.loglik[1], rtol=1e-12)


# The contract


def test_one_seed_gives_the_same_bits(maf: VAE, small: Dataset) -> None:
    x = small.test[:120]
    torch.manual_seed(1)
    one = score(maf, x, 60)
    torch.manual_seed(2)
    same(one, score(maf, x, 60))
    other = score(maf, x, 60, seed=1)
    assert (other.loglik[60] != one.loglik[60]).all()


def test_scores_do_not_depend_on_the_memory_of_a_pass(
    maf: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    found = []
    for budget in (1, 2**24, 2**30):
        monkeypatch.setitem(passes.PASS_BYTES, device.type, budget)
        found.append(score(maf, small.test[:120], 130))
    for other in found[1:]:
        same(found[0], other, rtol=1e-7)


def test_where_memory_runs_out_fewer_latents_are_decoded_at_once(
    maf: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, decode = score(maf, small.test[:120], 60), VAE.decode

    def starved(vae: VAE, z: Tensor) -> Tensor:
        if len(z) > 1000:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return decode(vae, z)

    monkeypatch.setattr(VAE, "decode", starved)
    with pytest.warns(RuntimeWarning, match="out of memory: scoring continues with"):
        same(whole, score(maf, small.test[:120], 60), rtol=1e-7)


def test_pilot_decides_and_the_scoring_draws_are_used_once_and_by_all_priors(
    gauss: VAE, maf: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pilots: list[Tensor] = []
    scored: list[Tensor] = []
    weigh = fitted_proposal.weigh

    def spy(into: list[Tensor]) -> Callable[..., Any]:
        return lambda *a: into.append(a[3].gauss) or weigh(*a)

    monkeypatch.setattr(fitted_proposal, "weigh", spy(pilots))
    monkeypatch.setattr(module, "weigh", spy(scored))
    monkeypatch.setattr(fitted_proposal, "RELIABLE", -9.0)  # so that every pilot asks for more
    x = small.test[:130]
    for vae in (gauss, maf):
        score(vae, x, 50)
    rounds = 1 + fitted_proposal.MAX_ROUNDS
    assert [len(noise) for noise in scored] == [100, 30] * 2
    assert [len(noise) for noise in pilots] == ([100] * rounds + [30] * rounds) * 2
    assert torch.equal(scored[0], scored[2])
    assert torch.equal(scored[1], scored[3])
    seen = {tuple(row) for noise in pilots for row in noise.flatten(0, 1).tolist()}
    drawn = [tuple(row) for noise in scored[:2] for row in noise.flatten(0, 1).tolist()]
    assert len(set(drawn)) == len(drawn) == 130 * 50
    assert not seen & set(drawn)


def test_khat_of_the_scoring_draws_triggers_nothing(
    maf: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(maf, small.test[:20], 50)
    bad = torch.full((20,), 5.0, dtype=torch.float64)
    monkeypatch.setattr(module, "pareto_khat", lambda log_w: bad.to(log_w.device))
    found = score(maf, small.test[:20], 50)
    assert (found.khat == 5).all()
    assert np.array_equal(found.loglik[50], expected.loglik[50])


@pytest.mark.parametrize("habit", ["raises", "NaN", "-inf"])
def test_draws_outside_a_priors_support_have_no_weight_and_are_counted(
    gauss: VAE, small: Dataset, habit: str
) -> None:
    x = small.test[:20]
    vae, reference = (with_prior(gauss, odd(each)) for each in (habit, "-inf"))
    scores, exact = score(vae, x), quadrature(reference, x)
    error, spread = errors(scores, exact)
    assert (scores.outside > 0).any()
    assert (scores.outside < 1000).all()
    assert (abs(error) < 6 * spread + 1e-3)[scores.khat <= 0.7].all()
    assert abs(error.mean()) < 0.05
    assert (score(gauss, x, 50).outside == 0).all()


def test_prior_without_a_derivative(gauss: VAE, small: Dataset) -> None:
    """Its second differences alone shape the proposal where the decoder does not."""
    x = small.test[:40]
    vae = with_prior(gauss, odd("no derivative"))
    assert agrees(score(vae, x), quadrature(gauss, x))
    found, expected = (score(constant(each), x) for each in (vae, gauss))
    assert agrees(found, exact_of_constant(constant(gauss), x))
    assert found.ess.mean() > 0.9 * expected.ess.mean()


class Broken(nn.Module):
    """A decoder without finite outputs beyond a distance of the centre."""

    def __init__(self, body: nn.Module, distance: float) -> None:
        super().__init__()
        self.body, self.distance = body, distance

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z).where(z.norm(dim=-1, keepdim=True) < self.distance, math.nan)


@pytest.mark.parametrize("distance", [0.0, 5.0])
def test_decoder_that_is_not_finite_gives_a_score_that_is_not(
    small: Dataset, distance: float, device: torch.device
) -> None:
    """Which ends the trial as diverged; at D = 3, where NaN is an error of linear algebra."""
    vae, x = fitted("gauss", small, device, latent=3), small.test[:40]
    vae.decoder = Broken(vae.decoder, distance)
    scores = score(vae, x, 100)
    assert np.isnan(scores.loglik[100]).any()
    assert np.isnan(scores.loglik[100]).all() == (distance == 0)


def test_precisions_agree(small: Dataset, device: torch.device) -> None:
    vae, x = fitted("nsf[hidden=8]", small, device, precision="float32"), small.test[:50]
    single, double, half = (score(vae, x, 500, each) for each in ("float32", "float64", "bf16"))
    rounding = abs(double.loglik[500] - single.loglik[500])
    assert np.quantile(rounding, 0.9) < 1e-3
    assert rounding.max() < 0.1  # a pilot's k-hat beside 0.7 may fall on its other side
    error = half.loglik[500] - single.loglik[500]
    assert 0 < abs(error).max() < 1
    assert abs(error.mean()) < 0.1
    same(single, score(vae, x, 500, "float32"))
