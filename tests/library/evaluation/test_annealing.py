"""Annealing: against closed forms and quadrature, and its kernel against exact draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from support.oracles import fitted, quadrature
from support.small_priors import narrow
from torch import Tensor, nn

from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.evaluation import annealing, hmc
from flowvae.evaluation.annealing import Bounds, anneal
from flowvae.evaluation.hmc import Draws, Path, Route, point, run_chains, transition, tune
from flowvae.evaluation.importance_weighting import evaluate
from flowvae.models.vae import VAE
from flowvae.numerics.streams import generator
from flowvae.trial import Audit, Evaluation

TINY = Audit(images=12, chains=4, temperatures=6, leapfrogs=2, samples=20)


@pytest.fixture
def draws(device: torch.device) -> Callable[..., Draws]:
    """Make the draws of C chains for N images in D dimensions, on the device."""

    def make(images: int, chains: int, features: int, purpose: str = "test") -> Draws:
        streams = [generator(0, f"{purpose}/{n}") for n in range(images)]
        return Draws(
            streams=streams,
            chains=chains,
            features=features,
            dtype=torch.float64,
            device=device,
        )

    return make


class LinearGaussian:
    """x = A z + noise, z standard Gaussian, D = 3, in float64; q is too wide and off the centre.

    Arguments:
        images: The number of images N, simulated.
        device: Where log w is computed.
    """

    def __init__(self, images: int, device: torch.device) -> None:
        self.device = device
        rng = np.random.default_rng(0)
        basis, sigma = np.linalg.qr(rng.normal(size=(5, 3)))[0], 0.7
        weight = basis @ (np.diag([0.7, 1.0, 1.3]) + 0.15)
        self.z = rng.normal(size=(images, 3))
        x = self.z @ weight.T + sigma * rng.normal(size=(images, 5))
        precision = np.eye(3) + weight.T @ weight / sigma**2  # of p(z|x)
        self.covariance = np.linalg.inv(precision)
        self.centre = x @ weight / sigma**2 @ self.covariance
        marginal = scipy.stats.multivariate_normal(cov=weight @ weight.T + sigma**2 * np.eye(5))
        self.evidence = marginal.logpdf(x)  # (N,), nats
        self.mean = self.centre + 0.15
        self.std = 1.15 * np.sqrt(np.diag(self.covariance))
        self.precision = np.diag(self.std) @ precision @ np.diag(self.std)  # in e
        joint = (torch.from_numpy(a).to(device) for a in (self.mean, self.std, weight, x))

        def log_weight(
            e: Tensor, joint: tuple[Tensor, ...] = tuple(joint), sigma: float = sigma
        ) -> Tensor:
            mean, std, weight, x = joint
            z = mean[:, None] + std * e
            log_p = -0.5 * ((x[:, None] - z @ weight.T) / sigma).square().sum(-1)
            log_p = log_p - 5 * math.log(sigma) - 2.5 * math.log(2 * math.pi)
            log_prior = -0.5 * z.square().sum(-1)
            return log_p + log_prior + 0.5 * e.square().sum(-1) + std.log().sum()

        self.route = Route(log_weight)

    def whiten(self, z: NDArray[np.float64]) -> Tensor:
        """Return e for z (N, C, D)."""
        return torch.from_numpy((z - self.mean[:, None]) / self.std).to(self.device)

    def posterior(self, chains: int) -> Tensor:
        """Return exact draws of p(z|x) as e, (N, C, D)."""
        noise = np.random.default_rng(1).normal(size=(len(self.z), chains, 3))
        z = self.centre[:, None] + noise @ np.linalg.cholesky(self.covariance).T
        return self.whiten(z)


def uneven(temperatures: int, step: float = 0.5) -> Path:
    """Return a path whose increments and steps all differ."""
    betas = np.linspace(0, 1, temperatures + 1) ** 1.5
    return Path(betas, step * np.linspace(1.1, 0.9, temperatures - 1))


def excess(values: NDArray[np.float64]) -> float:
    """How many standard errors the mean is above zero."""
    return float(values.mean() / (values.std(ddof=1) / math.sqrt(values.size)))


def test_weights_are_unbiased_for_the_closed_form(
    draws: Callable[..., Draws], device: torch.device
) -> None:
    """E[W] = p(x) forward and E[1 / W] = 1 / p(x) in reverse, with few and large steps."""
    model = LinearGaussian(50, device)
    shape = (50, 200, 3)
    for temperatures in (1, 2, 6):
        path = uneven(temperatures, step=1.3)
        near = draws(*shape)
        forward, accepted = run_chains(model.route, path, 2, near, near.normal())
        reverse, _ = run_chains(
            model.route, path, 2, draws(*shape, "back"), model.posterior(200), reverse=True
        )
        assert accepted.shape == (temperatures - 1,)
        assert (accepted < 0.95).all()  # so that the correction matters
        for sign, log_w in ((1, forward), (-1, reverse)):
            assert log_w.dtype == torch.float64
            ratio = np.exp(sign * (log_w.cpu().numpy() - model.evidence[:, None]))
            assert ratio.std() / math.sqrt(ratio.size) < 0.03
            assert abs(excess(ratio - 1)) < 4


def test_bounds_close_on_the_closed_form(
    draws: Callable[..., Draws], device: torch.device
) -> None:
    model, gaps = LinearGaussian(100, device), {}
    start = model.whiten(model.z[:, None].repeat(8, axis=1))
    for temperatures in (1, 10, 100):
        path = uneven(temperatures)
        near, back = draws(100, 8, 3), draws(100, 8, 3, "back")
        forward, _ = run_chains(model.route, path, 3, near, near.normal())
        reverse, _ = run_chains(model.route, path, 3, back, start, reverse=True)
        below = model.evidence - forward.logsumexp(1).cpu().numpy() + math.log(8)
        above = -(-reverse).logsumexp(1).cpu().numpy() + math.log(8) - model.evidence
        gaps[temperatures] = [below.mean(), above.mean()]
    assert min(gaps[1]) > 0.03
    np.testing.assert_array_less(gaps[10], 0.5 * np.array(gaps[1]))
    np.testing.assert_allclose(gaps[100], 0, atol=0.02)


def test_kernel_leaves_a_gaussian_invariant(
    draws: Callable[..., Draws], device: torch.device
) -> None:
    model, beta = LinearGaussian(1, device), 0.6
    precision = (1 - beta) * np.eye(3) + beta * model.precision
    offset = (model.centre - model.mean)[0] / model.std
    centre = np.linalg.solve(precision, beta * model.precision @ offset)
    rng, size = np.random.default_rng(2), 40_000
    covariance = np.linalg.inv(precision)
    e = rng.multivariate_normal(centre, covariance, size)
    at = point(model.route, torch.from_numpy(e)[None].to(device))
    stream = draws(1, size, 3)
    for _ in range(3):
        at, rate = transition(model.route, at, beta, 1.0, 3, stream)
    assert 0.5 < rate.mean() < 0.95
    moved = at.e[0].cpu().numpy()
    assert (abs(moved - e).mean(axis=0) > 0.2).all()
    deviation = moved - centre
    for values in deviation.T:
        assert abs(excess(values)) < 4
    for i, j in np.ndindex(3, 3):
        assert abs(excess(deviation[:, i] * deviation[:, j] - covariance[i, j])) < 4


def test_kernel_leaves_two_modes_invariant_and_is_reversible(
    draws: Callable[..., Draws], device: torch.device
) -> None:
    """On a lopsided double well, with steps so long that much is refused."""

    def log_weight(e: Tensor) -> Tensor:
        return (-2 * (e.square() - 1).square() + 0.5 * e + 0.5 * e.square()).sum(dim=-1)

    beta, size = 0.8, 40_000
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    log_density = beta * log_weight(grid[None, :, None])[0] - 0.5 * grid.square()
    cdf = log_density.exp().cumsum(0)
    cdf = ((cdf - cdf[0]) / (cdf[-1] - cdf[0])).numpy()
    exact = np.interp(np.random.default_rng(3).random(size), cdf, grid)
    route = Route(log_weight)
    at = point(route, torch.from_numpy(exact)[None, :, None].to(device))
    stream = draws(1, size, 1)
    at, rate = transition(route, at, beta, 0.45, 3, stream)
    before, after = exact, at.e[0, :, 0].cpu().numpy()
    assert 0.3 < rate.mean() < 0.9
    assert scipy.stats.kstest(after, lambda e: np.interp(e, grid, cdf)).pvalue > 1e-3
    flow = before * after**2 - before**2 * after  # detailed balance: zero in the mean
    assert flow.std() > 0.3
    assert abs(excess(flow)) < 4


def test_refused_chains_stay_and_far_steps_are_refused(
    draws: Callable[..., Draws], device: torch.device
) -> None:
    model = LinearGaussian(3, device)
    here = point(model.route, draws(3, 5, 3, "start").normal())
    there, rate = transition(model.route, here, 0.5, 1e200, 4, draws(3, 5, 3))
    assert (rate == 0).all()
    for old, new in zip(here, there, strict=True):
        assert torch.equal(old, new)
    there, _ = transition(model.route, here, 0.5, 1.2, 4, draws(3, 5, 3))
    again = point(model.route, there.e)  # value and gradient travel with the point
    for travelled, computed in zip(there, again, strict=True):
        torch.testing.assert_close(travelled, computed)
    stayed = (there.e == here.e).all(dim=-1)
    assert stayed.any()
    assert not stayed.all()


def test_tuning_meets_the_acceptance_and_spreads_the_temperatures(
    draws: Callable[..., Draws],
) -> None:
    """With w = exp(-s |e|^2 / 2), Var log w under g_b is D s^2 / 2 / (1 + b s)^2."""
    scale = 50.0

    def log_weight(e: Tensor) -> Tensor:
        return -0.5 * scale * e.square().sum(dim=-1)

    route, stream = Route(log_weight), draws(30, 20, 4)
    path = tune(route, 40, 3, stream, stream.normal())
    assert path.betas[[0, -1]].tolist() == [0, 1]
    assert (np.diff(path.betas) > 0).all()
    expected = np.expm1(np.linspace(0, math.log1p(scale), 41)) / scale
    np.testing.assert_allclose(np.log1p(scale * path.betas), np.log1p(scale * expected), atol=0.25)
    unit = path.steps * np.sqrt(1 + scale * path.betas[1:-1])  # in deviations of g_b
    assert unit.max() / unit.min() < 1.4
    stream = draws(30, 20, 4, "run")
    log_w, accepted = run_chains(route, path, 3, stream, stream.normal())
    np.testing.assert_allclose(accepted, hmc.ACCEPTANCE, atol=0.1)
    exact = -2 * math.log1p(scale)
    assert -0.4 < log_w.logsumexp(1).mean() - math.log(20) - exact < 0.1


@pytest.mark.parametrize(
    ("name", "latent"),
    [("maf", 1), *((name, 2) for name in ("gauss", "gmm", "vamp", "maf", "nsf"))],  # of each kind
)
def test_bounds_are_the_evidence_by_quadrature(
    name: str, latent: int, digits: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """From the fitted proposal, and from the encoder where its chains reach the posterior's mass.

    A reverse bound rests on one exact draw: of two modes far apart it sees one.
    """
    vae, seen = fitted(narrow(name), digits, device, latent=latent), []
    real = annealing.evaluate
    monkeypatch.setattr(annealing, "evaluate", lambda *a, **k: seen.append(a[1]) or real(*a, **k))
    audit = Audit(images=50, chains=16, temperatures=25, leapfrogs=2, samples=10)
    bounds = anneal(vae, digits.test, audit, seed=0, device=device)
    simulated, taken = seen
    assert torch.equal(taken.cpu(), digits.test[bounds.index])
    x = torch.cat([simulated, taken]).cpu()
    exact = quadrature(vae, x)
    whole = quadrature(vae, x, within=8) > exact - 1e-3
    for part in (whole[:50], whole[50:]):
        assert part.mean() > 0.4
    own = bounds.lower, bounds.upper, bounds.real_lower
    encoder = bounds.encoder_lower, bounds.encoder_upper, bounds.encoder_real_lower
    truth = exact[:50], exact[:50], exact[50:]
    reached = whole[:50], whole[:50], whole[50:]
    for some in (own, encoder):
        for bound, log_p, near in zip(some, truth, reached, strict=True):
            error = (bound - log_p)[near]
            noise = 0.0 if some is encoder else 2 * error.std() / math.sqrt(len(error))
            assert abs(error.mean()) < max(0.02, noise)
    for bound, log_p in ((own[0], truth[0]), (own[2], truth[2])):  # forward: every mode
        assert abs((bound - log_p).mean()) < 0.02
    elbo = evaluate(
        vae,
        x,
        Evaluation(samples=50, estimator="encoder", precision="float64"),
        seed=0,
        device=device,
    ).elbo
    assert (exact - elbo)[whole].mean() > 0.08  # what annealing had to close
    assert bounds.acceptance.shape == (3, 24)
    np.testing.assert_allclose(bounds.acceptance.mean(axis=1), hmc.ACCEPTANCE, atol=0.12)


@pytest.fixture(scope="module")
def vae(small: Dataset, device: torch.device) -> VAE:
    return fitted("maf[hidden=8]", small, device)


@pytest.fixture(scope="module")
def bounds(vae: VAE, small: Dataset, device: torch.device) -> Bounds:
    return anneal(vae, small.test, TINY, seed=0, device=device)


def close(a: Bounds, b: Bounds) -> None:
    both = ("lower", "upper", "real_lower")
    for name in (*both, *(f"encoder_{name}" for name in both), "acceptance", "steps", "betas"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, err_msg=name)


def test_bounds_are_ordered_and_one_value_an_image(bounds: Bounds) -> None:
    assert bounds.lower.mean() < bounds.upper.mean()
    for values in (bounds.lower, bounds.upper, bounds.real_lower):
        assert values.shape == (12,)
        assert values.dtype == np.float64
        assert len(np.unique(values)) == 12
    assert list(bounds.iw) == list(bounds.real_iw) == [20]
    assert len(set(bounds.index)) == 12
    assert bounds.betas.shape == (7,)
    assert bounds.failed == 0


def test_the_encoder_alone_gives_its_bounds_and_its_ladder(
    bounds: Bounds, vae: VAE, small: Dataset, device: torch.device
) -> None:
    alone = replace(TINY, start="encoder", estimator="encoder")
    found = anneal(vae, small.test, alone, seed=0, device=device)
    assert list(found.iw) == list(found.real_iw) == [1, 10, 20]
    for name in ("lower", "upper", "real_lower"):
        np.testing.assert_array_equal(getattr(found, name), getattr(found, f"encoder_{name}"))
        np.testing.assert_allclose(getattr(found, name), getattr(bounds, f"encoder_{name}"))
        assert not np.isclose(getattr(found, name), getattr(bounds, name), rtol=1e-9).any()


def test_seed_decides_the_draws(
    bounds: Bounds, vae: VAE, small: Dataset, device: torch.device
) -> None:
    torch.manual_seed(7)
    close(anneal(vae, small.test, TINY, seed=0, device=device), bounds)
    other = anneal(vae, small.test, TINY, seed=1, device=device)
    assert not np.isclose(other.real_lower, bounds.real_lower, rtol=1e-9).any()
    assert np.array_equal(other.index, bounds.index)  # the same real images for every seed


@pytest.mark.parametrize("images", [1, 5])
def test_tiles_change_nothing(
    bounds: Bounds,
    vae: VAE,
    small: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    device: torch.device,
) -> None:
    monkeypatch.setattr(annealing, "TILE_ROWS", images * TINY.chains + 1)
    close(anneal(vae, small.test, TINY, seed=0, device=device), bounds)


def test_real_images_do_not_depend_on_those_beside(
    bounds: Bounds, vae: VAE, small: Dataset, device: torch.device
) -> None:
    fewer = Audit(images=5, chains=4, temperatures=6, leapfrogs=2, samples=20)
    found = anneal(vae, small.test, fewer, seed=0, device=device)
    assert np.array_equal(found.index, bounds.index[:5])
    np.testing.assert_allclose(found.real_lower, bounds.real_lower[:5], rtol=1e-9)


def test_steps_are_frozen_for_both_directions(
    vae: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    taken: list[tuple[float, float]] = []
    real = hmc.transition

    def spy(f: object, at: object, beta: float, step: float, *rest: object) -> object:
        taken.append((beta, step))
        return real(f, at, beta, step, *rest)

    monkeypatch.setattr(hmc, "transition", spy)
    found = anneal(vae, small.test, TINY, seed=0, device=device)
    forward, reverse, onward = taken[-15:-10], taken[-10:-5], taken[-5:]  # of the later start
    frozen = list(zip(found.betas[1:-1], found.steps, strict=True))
    assert forward == onward == reverse[::-1] == frozen


def test_the_model_stays_as_it_was(vae: VAE, small: Dataset, device: torch.device) -> None:
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    grads = [p.grad for p in vae.parameters()]
    anneal(vae, small.test, TINY, seed=0, device=device)
    assert all(torch.equal(p, before[name]) for name, p in vae.state_dict().items())
    assert all(p.requires_grad for p in vae.parameters())
    for p, grad in zip(vae.parameters(), grads, strict=True):
        assert p.grad is grad


def test_progress_is_reported(
    vae: VAE, small: Dataset, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(annealing, "TILE_ROWS", 20)  # tiles of 5, 5 and 2 images
    calls: list[tuple[str, int, int]] = []
    anneal(vae, small.test, TINY, seed=0, device=device, on_step=lambda *call: calls.append(call))
    for phase in ("forward", "reverse", "real"):
        done = [d for name, d, total in calls if name == phase]
        assert done == 2 * [*range(5, 26, 5), *range(30, 51, 5), *range(52, 61, 2)]
    assert {total for name, _, total in calls if "weights" not in name} == {60}
    assert ("weights", 12, 12) in calls
    assert calls[-1] == ("real weights", 12, 12)


class Failing(nn.Module):
    """A prior of which a share of the draws is NaN."""

    def __init__(self, prior: nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = prior, share

    def forward(self) -> Failing:
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        return self.inner().log_prob(z)

    def sample(self, shape: tuple[int]) -> Tensor:
        z = self.inner().sample(shape)
        z[: int(self.share * len(z)), 0] = math.nan
        return z


def test_a_failing_sampler_is_passed_over_or_refused(
    vae: VAE, small: Dataset, device: torch.device
) -> None:
    def failing(share: float) -> VAE:
        return VAE(
            vae.encoder, vae.decoder, Failing(vae.prior, share),
            shape=vae.shape, latent=2, precision="float64",
        )  # fmt: skip

    found = anneal(failing(0.02), small.test, TINY, seed=0, device=device)
    assert found.failed == pytest.approx(0.02, abs=1e-3)
    assert np.isfinite(found.upper).all()
    with pytest.raises(InputError, match=r"6.0% of the prior's draws are not finite"):
        anneal(failing(0.06), small.test, TINY, seed=0, device=device)


def test_what_cannot_be_audited_is_refused(vae: VAE, small: Dataset, device: torch.device) -> None:
    with pytest.raises(InputError, match="cannot audit 12 images: there are 11"):
        anneal(vae, small.test[:11], TINY, seed=0, device=device)
    with pytest.raises(InputError, match="uint8 in"):
        anneal(vae, small.test.float(), TINY, seed=0, device=device)
    broken = fitted("gauss", small, device)
    with torch.no_grad():
        broken.decoder[-1].bias[0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        anneal(broken, small.test, TINY, seed=0, device=device)
