"""Quadrature: against closed forms, SciPy's integrals and an independent grid."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import torch
import zuko
from numpy.typing import NDArray
from support.oracles import fitted, quadrature
from support.small_priors import narrow
from torch import Tensor, nn

from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.evaluation import quadrature as module
from flowvae.evaluation import quadrature_cells
from flowvae.evaluation.quadrature import evidence
from flowvae.models.vae import VAE

LogPrior = Callable[[float], float]
ON = torch.ones(1, 1, dtype=torch.uint8)
"""One image of one pixel, which is on: p(x|z) = sigmoid(l(z)), and log p(x|z) ~ l(z) if l << 0."""


class Logit(nn.Module):
    """A decoder of one pixel: a function of z."""

    def __init__(self, logit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, z: Tensor) -> Tensor:
        return self.logit(z)[:, None]


class Encoder(nn.Module):
    """An encoder that says the same of each image."""

    def __init__(self, mean: list[float], std: float) -> None:
        super().__init__()
        phi = torch.tensor([*mean, *[math.log(std)] * len(mean)], dtype=torch.float64)
        self.phi = nn.Parameter(phi)

    def forward(self, x: Tensor) -> Tensor:
        return self.phi.expand(len(x), -1)


def made(
    logit: Callable[[Tensor], Tensor], mean: list[float], std: float = 1.0, prior: object = None
) -> VAE:
    """A float64 model of one pixel, with a standard Gaussian prior if none is given."""
    features = len(mean)
    return VAE(
        Encoder(mean, std),
        Logit(logit),
        prior or zuko.lazy.UnconditionalDistribution(
            zuko.distributions.DiagNormal, torch.zeros(features), torch.ones(features), buffer=True
        ),
        shape=(1, 1),
        latent=features,
        precision="float64",
    )  # fmt: skip


def bump(z: Tensor, at: float, width: float) -> Tensor:
    """A Gaussian in z, as a probability far below one."""
    return torch.exp(-0.5 * ((z - at) / width).square().sum(dim=-1) - 9)


def logit_of(probability: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.logit(probability(z) + 1e-290)


def of_bump(at: float, width: float, features: int) -> float:
    """Returns log int N(z; 0, 1) bump(z) dz in closed form, for a bump at (at, ..., at)."""
    spread = 1 + width**2
    one = math.log(width) - 0.5 * math.log(spread) - 0.5 * at**2 / spread
    return features * one - 9


@pytest.fixture
def coarser(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse grid with few cells, so that tests take no time and cells are wide."""
    monkeypatch.setattr(quadrature_cells, "AXIS", {1: 64, 2: 32})


def test_a_decoder_that_ignores_z_has_its_own_likelihood(device: torch.device) -> None:
    logits = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(logits)

        def forward(self, z: Tensor) -> Tensor:
            return self.logits.expand(len(z), -1)

    vae = made(lambda z: z[:, 0], [0.3, -0.2])
    vae.decoder, vae.shape = Constant(), (1, 3)
    x = torch.tensor([[0, 0, 1], [1, 1, 0]], dtype=torch.uint8)
    found = evidence(vae, x, device=device)
    exact = torch.distributions.Bernoulli(logits=logits).log_prob(x.double()).sum(dim=1)
    np.testing.assert_allclose(found.log_p, exact, atol=1e-6)
    assert (found.error < 1e-3).all()
    assert found.log_p.dtype == np.float64


@pytest.mark.parametrize("features", [1, 2])
@pytest.mark.parametrize("width", [0.3, 3e-2, 3e-3, 1e-4])
def test_a_peak_is_found_and_resolved(width: float, features: int) -> None:
    """Also where it is far narrower than a coarse cell, and its neighbours see nothing of it."""
    at = 1.2345
    vae = made(logit_of(lambda z: bump(z, at, width)), [at + width / 2] * features, width)
    found = evidence(vae, ON)
    assert found.log_p == pytest.approx(of_bump(at, width, features), abs=2e-3)
    assert found.error < 1e-3


@pytest.mark.parametrize("width", [0.1, 0.01])
def test_a_mode_far_from_the_encoder_is_found_by_slopes(width: float, coarser: None) -> None:
    """Its coarse cells are about 0.2 wide."""
    wrong = made(logit_of(lambda z: bump(z, 1.2345, width)), [-1.5, -1.5], 0.1)
    found = evidence(wrong, ON)
    assert found.log_p == pytest.approx(of_bump(1.2345, width, 2), abs=2e-3)
    assert found.error < 1e-3


def test_both_of_two_modes_are_found(coarser: None) -> None:
    def both(z: Tensor) -> Tensor:
        return bump(z, -1.5, 0.02) + bump(z, 1.0, 0.1)

    found = evidence(made(logit_of(both), [-1.5, -1.5], 0.02), ON)
    one, other = of_bump(-1.5, 0.02, 2), of_bump(1.0, 0.1, 2)
    assert found.log_p == pytest.approx(np.logaddexp(one, other), abs=2e-3)
    assert abs(found.log_p - one) > 1  # the encoder's mode alone would not do


def test_a_kinked_decoder_is_as_scipy_integrates_it() -> None:
    def logit(z: Tensor) -> Tensor:
        return 30 * (z[:, 0] - 0.4).abs() - 12 * (z[:, 0] + 0.3).relu() - 8

    def integrand(z: float) -> float:
        value = float(logit(torch.tensor([[z]], dtype=torch.float64)))
        return math.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) / (1 + math.exp(-value))

    exact, _ = scipy.integrate.quad(integrand, -12, 12, points=[-0.3, 0.4], limit=500)
    found = evidence(made(logit, [0.0]), ON, tolerance=1e-6)
    assert found.log_p == pytest.approx(math.log(exact), abs=1e-6)
    assert found.error < 1e-6


@pytest.mark.parametrize(
    ("name", "latent"),
    [("maf", 1), *((name, 2) for name in ("gauss", "gmm", "vamp", "lars", "iaf", "bpf"))],
)
def test_it_agrees_with_an_independent_grid(
    name: str, latent: int, digits: Dataset, device: torch.device
) -> None:
    vae = fitted(narrow(name), digits, device, latent=latent)
    images = digits.test[:40]
    found = evidence(vae, images)
    np.testing.assert_allclose(found.log_p, quadrature(vae, images), atol=2e-3)
    assert (found.error < 1e-3).all()
    single = copy.deepcopy(vae).float()
    single.precision = "bf16"  # densities are float32 for each precision but float64
    np.testing.assert_allclose(evidence(single, images).log_p, found.log_p, atol=1e-3)


def test_chunks_change_nothing(
    digits: Dataset, coarser: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = fitted(narrow("gauss"), digits, torch.device("cpu"))
    images = digits.test[:9]
    whole, seen = evidence(vae, images, tolerance=1e-4), []
    for name, size in {"POINTS": 500, "BLOCK": 3, "BUDGET": 2**15, "PAIRS": 500}.items():
        monkeypatch.setattr(module, name, size)
    decode = module._Integral._decode
    monkeypatch.setattr(
        module._Integral, "_decode", lambda self, z: seen.append(len(z)) or decode(self, z)
    )
    parts = evidence(vae, images, tolerance=1e-4)
    np.testing.assert_allclose(parts.log_p, whole.log_p, rtol=0, atol=1e-10)
    np.testing.assert_allclose(parts.error, whole.error, rtol=0, atol=1e-10)
    assert max(seen) <= 500


def test_a_limit_is_told_and_all_steps_are(digits: Dataset, coarser: None) -> None:
    vae = fitted(narrow("gauss"), digits, torch.device("cpu"))
    images, steps = digits.test[:20], []
    full = evidence(vae, images, tolerance=1e-4, on_step=lambda *step: steps.append(step))
    few = evidence(vae, images, tolerance=1e-4, most_points=0)
    assert (full.error < 1e-4).all()
    late = few.error >= 1e-4
    assert late.any()
    off = np.abs(few.log_p - full.log_p)
    assert (off <= few.error + 1e-4).mean() > 0.9
    np.testing.assert_array_equal(few.log_p[~late], full.log_p[~late])
    assert steps[0] == ("grid", 20, 20)
    assert steps[-1] == ("division", 20, 20)
    # a peak that nothing but the encoder's mean has seen is hidden, and told
    vae = made(logit_of(lambda z: bump(z, 1.0, 1e-4)), [1.0, 1.0], 1e-4)
    assert evidence(vae, ON, most_points=0).error > 10


def test_mass_beyond_the_grid_is_told(monkeypatch: pytest.MonkeyPatch, coarser: None) -> None:
    monkeypatch.setattr(quadrature_cells, "REACH", 0.3)
    found = evidence(made(lambda z: z[:, 0] * 0, [0.0, 0.0], 0.01), ON)
    lost = math.log(0.5) - found.log_p.item()
    assert lost > 0.01
    assert lost / 3 < found.error.item() < 30 * lost


@pytest.mark.parametrize(("low", "high"), [(-0.7, 1.3), (0.0, 0.35)])
@pytest.mark.parametrize(("features", "mean"), [(1, 0.3), (1, -0.2), (2, -0.2)])
def test_the_end_of_a_support_is_resolved(
    features: int, mean: float, low: float, high: float, coarser: None
) -> None:
    """Where it cuts coarse cells, also those whose midpoints are outside."""
    ends = torch.full((features,), low), torch.full((features,), high)
    box = zuko.lazy.UnconditionalDistribution(zuko.distributions.BoxUniform, *ends, buffer=True)
    vae = made(lambda z: 0 * z[:, 0], [mean] * features, 0.5, box)
    tolerance = 1e-3 if features == 1 else 3e-2
    found = evidence(vae, ON, tolerance=tolerance)
    assert found.log_p == pytest.approx(math.log(0.5), abs=tolerance)
    assert found.error < tolerance


class Banana(torch.distributions.Distribution):
    """A density without a sampler, which is infinite beyond a radius."""

    arg_constraints: dict[str, object] = {}

    def log_prob(self, z: Tensor) -> Tensor:
        far = z.square().sum(dim=-1) > 9
        return (-0.5 * z.square().sum(dim=-1) - math.log(2 * math.pi)).where(~far, math.nan)


class Lazy(zuko.lazy.LazyDistribution):
    def forward(self, c: object = None) -> Banana:
        return Banana(validate_args=False)


def refused() -> list[tuple[VAE, Tensor, str]]:
    def zero(z: Tensor) -> Tensor:
        return 0 * z[:, 0]

    grey = torch.full((1, 1), 2, dtype=torch.uint8)
    return [
        (made(zero, [0.0, 0.0, 0.0]), ON, "cannot integrate over 3 latent features: .* at most 2"),
        (made(zero, [0.0, 0.0]), ON[:0], "there are no images"),
        (made(zero, [0.0, 0.0]), grey, "must be uint8 in 0..1"),
        (made(zero, [0.0]), ON.expand(1, 2), r"shape \(1, 2\): this model takes \(N, 1\), flat"),
        (made(zero, [0.0]), ON[:, None], r"shape \(1, 1, 1\): this model takes \(N, 1\)"),
        (made(zero, [0.0, 0.0], prior=Lazy()), ON, r"log p\(x, z\) is not a number at z = \("),
    ]


@pytest.mark.parametrize("case", range(6))
def test_what_cannot_be_integrated_is_refused(case: int, coarser: None) -> None:
    vae, images, expected = refused()[case]
    with pytest.raises(InputError, match=expected):
        evidence(vae, images)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, math.nan])
def test_a_tolerance_that_nothing_meets_is_refused(tolerance: float) -> None:
    vae = made(lambda z: z[:, 0], [0.0])
    with pytest.raises(InputError, match=f"bad tolerance {tolerance}: expected nats above 0"):
        evidence(vae, ON, tolerance=tolerance)


def test_the_model_is_left_as_it_was(digits: Dataset, coarser: None) -> None:
    vae = fitted(narrow("vamp"), digits, torch.device("cpu"), precision="float32")
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    first: NDArray[np.float64] = evidence(vae, digits.test[:3]).log_p
    assert vae.precision == "float32"
    assert all(value.requires_grad for value in vae.parameters())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    np.testing.assert_array_equal(evidence(vae, digits.test[:3]).log_p, first)
