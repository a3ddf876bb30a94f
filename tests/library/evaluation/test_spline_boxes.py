"""The splines' boxes: against the tail of a normal and transforms applied by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
import zuko
from numpy.typing import NDArray
from support.random_inputs import normal, scramble
from torch import Tensor, nn
from zuko.distributions import NormalizingFlow
from zuko.lazy import LazyDistribution

from flowvae.evaluation.spline_boxes import outside_box
from flowvae.priors import PRIORS, Latent


def shares(inputs: list[Tensor], bound: float) -> NDArray[np.float64]:
    return np.array([(x.abs() > bound).double().mean().item() for x in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_share_outside_is_the_tail_of_a_normal(dtype: torch.dtype, device: torch.device) -> None:
    flow = PRIORS.build("nsf[hidden=8,bound=0.5]", Latent(2)).to(device, dtype)
    found = outside_box(flow(), normal(50_000, 2).to(device, dtype))
    assert found.shape == (3,)
    tail = 2 * scipy.stats.norm.sf(0.5)
    assert found[0] == pytest.approx(tail, abs=4 * math.sqrt(0.25 / 100_000))
    corners = torch.tensor([[0.4, 0.6], [-0.6, -0.4]], dtype=dtype, device=device)
    np.testing.assert_array_equal(outside_box(flow(), corners), [0.5, 0.5, 0.5])


@pytest.mark.parametrize("options", ["", ",affine=true", ",randperm=true", ",affine=true,bins=1"])
def test_later_layers_see_what_the_earlier_ones_leave(options: str, device: torch.device) -> None:
    """Splines alone map their box onto itself and leave the share; an affine map changes it."""
    lazy = PRIORS.build(f"nsf[hidden=8,bound=1.5,transforms=4{options}]", Latent(3)).double()
    affine = PRIORS.build("maf[hidden=8,transforms=1]", Latent(3)).double()
    for between in (False, True):
        if between:
            lazy.transform.transforms.insert(2, affine.transform)
        flow, z, inputs = scramble(lazy).to(device)(), normal(2500, 3).to(device), []
        x = z
        for transform in flow.transform.transforms:
            inputs.append(x)
            x = transform(x)
        splines = [i for i, layer in enumerate(lazy.transform.transforms) if is_spline(layer)]
        expected = shares([inputs[i] for i in splines], 1.5)
        assert len(expected) == 4
        assert (np.ptp(expected) > 0) == between
        np.testing.assert_allclose(outside_box(flow, z), expected, rtol=1e-12)


def is_spline(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "univariate", None), partial)  # it binds the bound


def coupling(features: int, bound: float) -> LazyDistribution:
    """A coupling flow of splines, with an affine coupling after the first of the same features."""
    flow = zuko.flows.NICE(
        features,
        transforms=3,
        univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=bound),
        shapes=[(4,), (4,), (3,)],
    )
    twist = zuko.flows.GeneralCouplingTransform(features, mask=torch.arange(features) % 2 == 0)
    flow.transform.transforms.insert(1, twist)
    return scramble(flow.double())


def test_coupling_counts_what_it_transforms(device: torch.device) -> None:
    flow, z = coupling(5, 1.0).to(device), normal(2500, 5).to(device)
    inputs, x = [], z
    for i, transform in enumerate(flow().transform.transforms):
        if i != 1:
            inputs.append(x[:, transform.idx_b])
        x = transform(x)
    assert [x.shape[1] for x in inputs] == [2, 3, 2]
    expected = shares(inputs, 1.0)
    assert len(set(expected)) == 3
    np.testing.assert_allclose(outside_box(flow(), z), expected, rtol=1e-12)


def test_a_flow_on_a_flow_and_no_latents(device: torch.device) -> None:
    inner = PRIORS.build("nsf[hidden=8,bound=1,transforms=1]", Latent(2)).to(
        device, torch.float64
    )()
    outer = PRIORS.build("nsf[hidden=8,bound=2,transforms=2]", Latent(2)).to(
        device, torch.float64
    )()
    z = torch.tensor([[1.5, 0.5]], dtype=torch.float64, device=device)
    stacked = NormalizingFlow(outer.transform, inner)
    np.testing.assert_array_equal(outside_box(stacked, 10 * z), [1, 1, 1])
    assert np.isnan(outside_box(stacked, z[:0])).all()
    for plain in ("gauss", "maf[hidden=8]"):
        assert outside_box(PRIORS.build(plain, Latent(2)).to(device)(), z.float()).shape == (0,)
