"""The share of a flow's inputs outside the boxes of its splines.

References:
    Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Transform
from zuko.distributions import NormalizingFlow
from zuko.transforms import (
    AutoregressiveTransform,
    ComposedTransform,
    CouplingTransform,
    DependentTransform,
    MonotonicRQSTransform,
)

from flowvae.numerics.splines import RationalQuadraticSpline

__all__ = ["outside_box"]


CHUNK = 1_000
"""Latents that pass through the flow at a time."""


def outside_box(density: Distribution, z: Tensor) -> NDArray[np.float64]:
    """Returns the share of inputs outside the box at each rational-quadratic spline of a flow.

    There a spline is the identity: the flow models nothing. Inputs are counted one by one, a
    coupling's only where it transforms them. A spline maps its box onto itself: between layers of
    one bound the share only changes where something else moves or selects the inputs.

    Arguments:
        density: The prior's distribution.
        z: Latents, (n, D).

    Returns:
        The shares, (L,), in the order of the flow from z; empty for a prior without splines, NaN
        without latents.

    Example:
        >>> import zuko
        >>> spline = zuko.flows.NSF(2, transforms=2)()
        >>> outside_box(spline, torch.tensor([[0.0, 5.1], [-6.0, 7.0]])).tolist()
        [0.75, 0.75]
    """
    counts = []
    for chunk in z.split(CHUNK):
        counts_by_spline: list[Tensor] = []
        part: Distribution | None = density
        while isinstance(part, NormalizingFlow):
            chunk, part = _walk(part.transform, chunk, counts_by_spline), part.base  # noqa: PLW2901
        counts.append(torch.stack(counts_by_spline) if counts_by_spline else z.new_zeros(0, 2))
    total = torch.stack(counts).double().sum(dim=0).cpu()  # (L, 2)
    return (total[:, 0] / total[:, 1]).numpy()


def _walk(transform: Transform, x: Tensor, counts_by_spline: list[Tensor]) -> Tensor:
    """Applies the transform, noting for each spline its inputs outside the box and in all."""
    match transform:
        case ComposedTransform():
            for part in transform.transforms:
                x = _walk(part, x, counts_by_spline)
            return x
        case DependentTransform():
            return _walk(transform.base, x, counts_by_spline)
        case AutoregressiveTransform():
            return _walk(transform.meta(x), x, counts_by_spline)
        case CouplingTransform():
            kept, moved = transform.split(x)
            return transform.merge(
                kept, _walk(transform.meta(kept), moved, counts_by_spline), x.shape
            )
        case RationalQuadraticSpline() | MonotonicRQSTransform():
            outside = _outside(transform, x)
            counts_by_spline.append(
                torch.stack([outside.sum(), outside.new_tensor(x.numel(), dtype=torch.int64)])
            )
    return transform(x)


def _outside(spline: RationalQuadraticSpline | MonotonicRQSTransform, x: Tensor) -> Tensor:
    if isinstance(spline, RationalQuadraticSpline):
        return x.abs() > spline.bound
    knots = spline.horizontal  # (..., K + 1), from -B to B but for rounding
    return (x <= knots[..., 0]) | (x > knots[..., -1])  # as its bins have it
