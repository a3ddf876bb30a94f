"""The contract of every prior, and what the options of the flows do.

Densities are held against grids, samples and the autograd Jacobian in float64, never against
themselves.
"""

from __future__ import annotations

import copy
import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
import zuko
from support.small_priors import narrow
from torch import Tensor, nn
from torch.distributions import Distribution
from zuko.distributions import NormalizingFlow
from zuko.lazy import LazyDistribution

from flowvae.data import load_data
from flowvae.numerics.streams import generator, global_stream
from flowvae.priors import PRIORS, Latent
from flowvae.priors.flows import BISECTION
from flowvae.specs.registry import Spec

CPU = torch.device("cpu")
NARROW = [narrow(name) for name in PRIORS]
VARIANTS = [
    "gmm[components=3,covariance=diagonal]",
    "vamp[components=6,start=images]",
    "lars[truncation=2]",
    "nsf[hidden=16x16,coupling=true]",
    "maf[hidden=16,randperm=true]",
    "maf[hidden=16,transforms=1]",
    "nsf[hidden=16,affine=true]",
    "nsf[hidden=16,bound=3,bins=4]",
    "nsf[hidden=16,affine=true,randperm=true,bins=1]",
]


def make(
    spec: str,
    features: int,
    dtype: torch.dtype = torch.float64,
    device: torch.device = CPU,
) -> LazyDistribution:
    """Build a prior with a latent space that also serves priors made of posteriors."""
    with global_stream(0, "test"):
        encoder = nn.Linear(64, 2 * features).to(device, dtype)
        images = load_data("digits").train
        return PRIORS.build(spec, Latent(features, encoder, images, pixels=64)).to(device, dtype)


def scramble(prior: LazyDistribution, seed: int = 0) -> LazyDistribution:
    """Draw random weights, far from the initial ones, where a flow is nearly affine."""
    stream = generator(seed, "scramble")
    with torch.no_grad():
        for p in prior.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=stream, dtype=p.dtype))
    return prior


def mixture(count: int, features: int) -> Tensor:
    """Draw from three Gaussians, two narrow ones and a correlated one, (n, D)."""
    rng = np.random.default_rng(0)
    parts = [
        rng.multivariate_normal(mean, cov, count)
        for mean, cov in [
            ([-2.0, 0.0], [[0.1, 0.0], [0.0, 0.3]]),
            ([1.5, 2.0], [[0.2, 0.0], [0.0, 0.1]]),
            ([1.0, -1.5], [[0.8, 0.5], [0.5, 0.6]]),
        ]
    ]
    rows = np.stack(parts)[rng.integers(3, size=count), np.arange(count)]
    return torch.from_numpy(rows[:, :features])


def fitted(spec: str, features: int, device: torch.device) -> LazyDistribution:
    """Fit a prior to the mixture for a little while."""
    prior = make(spec, features, device=device)
    if not list(prior.parameters()):
        return prior
    data = mixture(256, features).to(device)
    adam = torch.optim.Adam(prior.parameters(), lr=2e-2)
    draws = getattr(prior, "draws", 0) * len(data)
    for _ in range(30):
        adam.zero_grad()
        own = torch.randn_like(data.new_empty(draws, features)) if draws else None
        prior(own).log_prob(data).mean().neg().backward()
        adam.step()
    return prior


def on_cpu(prior: LazyDistribution) -> Distribution:
    """Return the distribution of a copy on the CPU, with the encoder that it may borrow."""
    parts = nn.ModuleList([prior, *getattr(prior, "_borrowed", ())])
    return copy.deepcopy(parts).cpu()[0]()


def is_slow(spec: str) -> bool:
    """Whether samples or densities take their time; such a density has no kinks."""
    name = Spec.parse(spec).name
    return name == "cnf" or PRIORS[name].caveat == BISECTION


@pytest.mark.parametrize("features", [1, 2, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_is_finite_and_shaped(
    prior: str, features: int, dtype: torch.dtype, device: torch.device
) -> None:
    density = make(prior, features, dtype, device)()
    corners = torch.tensor([0.0, 5.0, -5.0, 50.0, -50.0], dtype=dtype)[:, None]
    z = torch.cat([corners.expand(-1, features), torch.randn(8, features, dtype=dtype)])
    log_prob = density.log_prob(z.to(device))
    assert log_prob.shape == (13,)
    assert log_prob.dtype == dtype
    assert log_prob.isfinite().all()
    drawn = density.sample((7,))
    assert drawn.shape == (7, features)
    assert drawn.dtype == dtype
    assert drawn.isfinite().all()


def test_gradients_reach_every_parameter_and_the_latent(prior: str, device: torch.device) -> None:
    built = make(prior, 2, device=device)
    z = mixture(64, 2).to(device).requires_grad_()
    built().log_prob(z).sum().backward()
    assert z.grad.isfinite().all()
    assert (z.grad != 0).any(dim=1).all()
    for name, p in built.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


def test_no_example_touches_another(prior: str, device: torch.device) -> None:
    density = make(prior, 3, device=device)()
    z = torch.randn(5, 3, dtype=torch.float64).to(device)
    alone = torch.cat([density.log_prob(row[None]) for row in z])
    torch.testing.assert_close(density.log_prob(z), alone, rtol=1e-12, atol=1e-12)


def mass_with_tails(density: Distribution, features: int, device: torch.device = CPU) -> float:
    """Integrate over latents up to 5,000: midpoints in t, z = sinh(t)."""
    step = 0.06
    t = torch.arange(-9.21 + step / 2, 9.21, step, dtype=torch.float64)
    points = torch.cartesian_prod(*[t] * features).reshape(-1, features)
    with torch.no_grad():
        parts = [
            density.log_prob(p.sinh()) + p.cosh().log().sum(dim=1)
            for p in points.to(device).split(50_000)
        ]
    return torch.cat(parts).exp().sum().item() * step**features


@pytest.mark.parametrize("features", [1, 2])
@pytest.mark.parametrize("spec", NARROW + VARIANTS)
def test_density_integrates_to_one_and_samples_agree(
    spec: str, features: int, device: torch.device
) -> None:
    """Midpoint rule on a box, D <= 2, after a short fit; the samples' histogram by chi-square.

    Samples are the CPU's, as those of a model are.
    """
    prior = fitted(spec, features, device)
    density = prior()
    slow = is_slow(spec)
    half, per_cell = 8, {1: 400, 2: 16}[features] // (2 if slow else 1)  # cells of width 1
    step = 1 / per_cell
    axis = torch.arange(-half + step / 2, half, step, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * features).reshape(-1, features)
    with torch.no_grad():
        mass = torch.cat([density.log_prob(z) for z in points.to(device).split(50_000)])
        mass = mass.exp().cpu()
        mass *= step**features
        torch.manual_seed(0)
        drawn = on_cpu(prior).sample((1_000 if slow else 20_000,))
    inside = mass.sum().item()
    total = inside if inside > 0.999 else mass_with_tails(density, features, device)
    assert total == pytest.approx(1, abs=1e-3)

    cells = 2 * half
    expected = mass.reshape(*[cells, per_cell] * features)
    expected = expected.sum(dim=tuple(range(1, 2 * features, 2))).flatten().numpy()
    expected *= len(drawn) / total
    counts = np.histogramdd(drawn.numpy(), bins=[np.arange(-half, half + 1)] * features)[0]
    often = expected >= 10
    found = np.append(counts.flatten()[often], len(drawn) - counts.flatten()[often].sum())
    wanted = np.append(expected[often], len(drawn) - expected[often].sum())
    assert scipy.stats.chisquare(found, wanted).pvalue > 1e-3


@pytest.mark.xfail(reason="zuko's Gaussianization flow loses mass, so it is not registered")
@pytest.mark.parametrize("features", [1, 2])
def test_gaussianization_is_normalised(features: int) -> None:
    with global_stream(0, "test"):
        density = zuko.flows.GF(features).double()()
    assert mass_with_tails(density, features) == pytest.approx(1, abs=1e-2)


BISECTED = [name for name, entry in PRIORS.items() if entry.caveat == BISECTION]


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize(
    "spec", [s for s in NARROW + VARIANTS if isinstance(make(s, 2)(), NormalizingFlow)]
)
def test_flow_density_is_the_base_times_the_jacobian(
    spec: str, features: int, device: torch.device
) -> None:
    """By autograd: log p(z) = log N(f(z); 0, I) + log |det df/dz|."""
    density = scramble(make(spec, features)).to(device)()
    z = 2 * torch.randn(20, features, dtype=torch.float64, generator=generator(0, "z")).to(device)
    u = density.transform(z)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(density.transform, row) for row in z]
    )
    base = -0.5 * u.square().sum(dim=1) - 0.5 * features * math.log(2 * math.pi)
    expected = base + jacobian.det().abs().log()
    integrated = "unaf" in spec  # by quadrature, whose sum is not differentiated but its integrand
    precise = 1e-3 if integrated else 1e-9
    torch.testing.assert_close(density.log_prob(z), expected, rtol=precise, atol=precise)
    assert (u - z).abs().max() > 0.1  # the transform is no identity
    if Spec.parse(spec).name not in BISECTED:
        torch.testing.assert_close(density.transform.inv(u), z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", BISECTED)
def test_bisection_finds_where_a_density_was_asked(name: str, device: torch.device) -> None:
    transform = fitted(narrow(name), 2, device)().transform
    z = torch.randn(20, 2, dtype=torch.float64, generator=generator(0, "z")).to(device)
    with torch.no_grad():
        torch.testing.assert_close(transform.inv(transform(z)), z, rtol=1e-3, atol=1e-3)


def test_gauss_is_the_standard_gaussian(device: torch.device) -> None:
    z = mixture(50, 2)
    expected = scipy.stats.multivariate_normal(np.zeros(2), np.eye(2)).logpdf(z.numpy())
    found = make("gauss", 2, device=device)().log_prob(z.to(device))
    np.testing.assert_allclose(found.cpu(), expected, rtol=1e-12)
    assert list(make("gauss", 2).parameters()) == []


def dependence(spec: str, features: int, seed: int = 0) -> Tensor:
    """Tell which of a flow's outputs depend on which inputs, (D, D)."""
    with global_stream(seed, "test"):
        flow = PRIORS.build(spec, Latent(features)).double()
    transform = scramble(flow)().transform
    z = torch.randn(8, features, dtype=torch.float64, generator=generator(0, "z"))
    jacobian = torch.stack([torch.autograd.functional.jacobian(transform, row) for row in z])
    return (jacobian != 0).any(dim=0)


@pytest.mark.parametrize("name", ["maf", "nsf"])
def test_one_transform_is_autoregressive(name: str) -> None:
    """u_i = a_i(z_<i) + b_i(z_<i) z_i: a full lower triangle, and nothing above it."""
    triangle = torch.ones(5, 5).tril().bool()
    assert torch.equal(dependence(f"{name}[transforms=1,hidden=64]", 5), triangle)
    assert dependence(f"{name}[transforms=2,hidden=64]", 5).all()  # the order is reversed


@pytest.mark.parametrize("name", ["maf", "nsf"])
def test_randperm_orders_the_features_at_random(name: str) -> None:
    spec = f"{name}[transforms=1,hidden=64,randperm=true]"
    found = [dependence(spec, 5, seed) for seed in range(4)]
    for depends in found:  # some permutation of a triangle
        assert Counter(depends.sum(dim=1).tolist()) == Counter(range(1, 6))
    assert len({tuple(depends.sum(dim=1).tolist()) for depends in found}) > 1


@pytest.mark.parametrize("bound", [3.0, 5.0, 8.0])
def test_nsf_is_gaussian_outside_its_box_only(bound: float, device: torch.device) -> None:
    density = scramble(make(f"nsf[hidden=16,bound={bound:g}]", 2)).to(device)()
    angles = torch.linspace(0, 2 * math.pi, 40, dtype=torch.float64, device=device)
    square = torch.stack([angles.cos(), angles.sin()], dim=1)
    square /= square.abs().amax(dim=1, keepdim=True)  # the boundary of [-1, 1]^2
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    corners = corners.to(device)

    def excess(z: Tensor) -> Tensor:
        return (density.log_prob(z) + 0.5 * z.square().sum(dim=1) + math.log(2 * math.pi)).abs()

    assert excess((bound + 0.01) * corners).max() < 1e-9
    assert excess(0.9 * bound * square).max() > 0.1


@pytest.mark.parametrize("bins", [2, 8, 16])
def test_nsf_bins_set_the_number_of_knots(bins: int) -> None:
    """Each feature has K widths, K heights and K - 1 inner slopes."""
    flow = make(f"nsf[hidden=16,bins={bins}]", 3)
    last = [m for m in flow.modules() if isinstance(m, nn.Linear)][-1]
    assert last.out_features == 3 * (3 * bins - 1)


def test_nsf_affine_comes_before_the_splines(device: torch.device) -> None:
    """p(z) = p'(exp(a) z + t) exp(sum a), with p' the same splines without it.

    zuko bounds the scale softly: a = s / (1 + |s| / log 1000).
    """
    plain, affine = (
        make(f"nsf[hidden=16,affine={on}]", 2, device=device) for on in ("false", "true")
    )
    z = 3 * torch.randn(50, 2, dtype=torch.float64, generator=generator(0, "z")).to(device)
    torch.testing.assert_close(affine().log_prob(z), plain().log_prob(z), rtol=0, atol=1e-12)
    sizes = [sum(p.numel() for p in prior.parameters()) for prior in (plain, affine)]
    assert sizes[1] == sizes[0] + 4
    shift, s = torch.tensor([[1.0, -2.0], [0.3, -0.5]], dtype=torch.float64, device=device)
    with torch.no_grad():
        layer = affine.transform.transforms[0]
        layer.shift.copy_(shift)
        layer.log_scale.copy_(s)
    log_scale = s / (1 + s.abs() / math.log(1000))
    expected = plain().log_prob(log_scale.exp() * z + shift) + log_scale.sum()
    torch.testing.assert_close(affine().log_prob(z), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["maf", "nsf"])
def test_transforms_and_hidden_set_the_sizes(name: str) -> None:
    flow = make(f"{name}[transforms=4,hidden=12x20]", 3)
    widths = [m.out_features for m in flow.modules() if isinstance(m, nn.Linear)]
    assert len(widths) == 12
    assert [(a, b) for a, b in zip(widths[::3], widths[1::3], strict=True)] == [(12, 20)] * 4
