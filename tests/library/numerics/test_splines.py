"""Splines: zuko's function and its gradients in float64, by another route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zuko
from torch import Tensor

from flowvae.numerics.splines import RationalQuadraticSpline
from flowvae.numerics.streams import generator, global_stream
from flowvae.priors import PRIORS, Latent


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=generator(seed, "test"), dtype=torch.float64)


@pytest.fixture
def draw(device: torch.device) -> Callable[..., Tensor]:
    """Draw normal numbers that are the same on all devices."""
    return lambda *shape, **options: normal(*shape, **options).to(device)


def zukos(phi: Tensor, bound: float) -> zuko.transforms.MonotonicRQSTransform:
    bins = (phi.shape[-1] + 1) // 3
    return zuko.transforms.MonotonicRQSTransform(
        *phi.split([bins, bins, bins - 1], dim=-1), bound=bound
    )


def value_and_gradients(
    spline: Any,  # noqa: ANN401
    x: Tensor,
    phi: Tensor,
    bound: float,
) -> tuple[Tensor, ...]:
    x, phi = x.clone().requires_grad_(), phi.clone().requires_grad_()
    y, ladj = spline(phi, bound=bound).call_and_ladj(x)
    weights = normal(2, *y.shape, seed=1).to(y.device)
    gradients = torch.autograd.grad((weights[0] * y + weights[1] * ladj).sum(), (x, phi))
    return y.detach(), ladj.detach(), *gradients


@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize("bound", [1.0, 5.0])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_value_and_gradients_are_zukos(
    bins: int, bound: float, scale: float, draw: Callable[..., Tensor]
) -> None:
    x, phi = draw(400, 3, scale=bound), draw(400, 3, 3 * bins - 1, scale=scale)
    inside = (x.abs() < bound).double().mean()
    assert 0.3 < inside < 0.9
    expected = value_and_gradients(zukos, x, phi, bound)
    found = value_and_gradients(RationalQuadraticSpline, x, phi, bound)
    for name, a, b in zip(("y", "ladj", "grad x", "grad phi"), found, expected, strict=True):
        size = b.abs().clamp(min=1.0)  # gradients reach 1e6 where bins are narrow
        assert ((a - b).abs() / size).max() < 1e-10, name


def test_gradients_agree_with_finite_differences(draw: Callable[..., Tensor]) -> None:
    x, phi = draw(6, 2, scale=2).requires_grad_(), draw(6, 2, 11).requires_grad_()
    torch.autograd.gradcheck(
        lambda x, phi: RationalQuadraticSpline(phi, bound=3.0).call_and_ladj(x), (x, phi)
    )


def test_box_is_mapped_onto_itself_and_the_rest_is_left(
    draw: Callable[..., Tensor], device: torch.device
) -> None:
    spline = RationalQuadraticSpline(draw(5, 1, 23, scale=3), bound=4.0)
    x = torch.tensor([-4.0, 4.0, -4.0000001, 70.0, -torch.inf], dtype=torch.float64, device=device)
    x = x[:, None]
    y, ladj = spline.call_and_ladj(x)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(ladj, torch.zeros_like(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_inverse_undoes_it_and_is_zukos(scale: float, draw: Callable[..., Tensor]) -> None:
    phi, y = draw(300, 4, 23, scale=scale), draw(300, 4, seed=2, scale=4)
    spline = RationalQuadraticSpline(phi, bound=5.0)
    x = spline.inv(y)
    torch.testing.assert_close(spline(x), y, rtol=0, atol=1e-9)
    torch.testing.assert_close(x, zukos(phi, 5.0).inv(y), rtol=0, atol=1e-9)


def test_inverse_is_finite_in_float32_at_extreme_parameters(draw: Callable[..., Tensor]) -> None:
    phi, y = draw(50_000, 23, scale=100).float(), draw(50_000, seed=2, scale=3).float()
    x = RationalQuadraticSpline(phi, bound=5.0).inv(y)
    assert x.isfinite().all()
    inside = y.abs() <= 5
    assert (x[inside].abs() <= 5).all()
    assert torch.equal(x[~inside], y[~inside])


def test_gradients_of_one_output_alone(draw: Callable[..., Tensor]) -> None:
    x, phi = draw(20, scale=3).requires_grad_(), draw(20, 11).requires_grad_()
    for i in range(2):
        found, expected = (
            torch.autograd.grad(spline(phi, bound=5.0).call_and_ladj(x)[i].sum(), (x, phi))
            for spline in (RationalQuadraticSpline, zukos)
        )
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_not_a_number_stays_one(draw: Callable[..., Tensor]) -> None:
    y, ladj = RationalQuadraticSpline(draw(1, 23)).call_and_ladj(draw(1) * torch.nan)
    assert y.isnan().all()
    assert ladj.isnan().all()


def test_stacked_splines_are_the_splines(draw: Callable[..., Tensor]) -> None:
    """Under vmap, values and gradients, with either argument shared."""
    x, phi = draw(3, 20, 2, scale=3), draw(3, 20, 2, 14)

    def both(x: Tensor, phi: Tensor) -> Tensor:
        return torch.stack(RationalQuadraticSpline(phi, bound=5.0).call_and_ladj(x))

    for dims in ((0, 0), (None, 0), (0, None)):
        arguments = [
            (whole if d == 0 else whole[0]).clone().requires_grad_()
            for whole, d in zip((x, phi), dims, strict=True)
        ]
        stacked = torch.func.vmap(both, in_dims=dims)(*arguments)
        weights = draw(*stacked.shape, seed=1)
        found = torch.autograd.grad((weights * stacked).sum(), arguments)
        alone = torch.stack(
            [
                both(*(a[s] if d == 0 else a for a, d in zip(arguments, dims, strict=True)))
                for s in range(3)
            ]
        )
        expected = torch.autograd.grad((weights * alone).sum(), arguments)
        for a, b in zip((stacked, *found), (alone, *expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused(draw: Callable[..., Tensor]) -> None:
    x = draw(4).requires_grad_()
    y, _ = RationalQuadraticSpline(draw(4, 23)).call_and_ladj(x)
    with pytest.raises(NotImplementedError, match="neither create_graph nor"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("features", [1, 5])
def test_prior_is_zukos_flow(
    features: int, draw: Callable[..., Tensor], device: torch.device
) -> None:
    """The same weights give the same density and gradients as zuko's own neural spline flow."""
    with global_stream(0, "test"):
        theirs = zuko.flows.NSF(features, transforms=3, hidden_features=(16, 16), bins=8).double()
        ours = PRIORS.build("nsf[hidden=16x16]", Latent(features)).double()
    theirs.load_state_dict(ours.state_dict())
    stream = generator(0, "weights")
    with torch.no_grad():
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            p.copy_(torch.randn(p.shape, generator=stream, dtype=p.dtype))
            q.copy_(p)
    theirs, ours = theirs.to(device), ours.to(device)
    z = draw(64, features, scale=3)
    log_prob = theirs().log_prob(z)
    torch.testing.assert_close(ours().log_prob(z), log_prob, rtol=1e-10, atol=1e-10)
