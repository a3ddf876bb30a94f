"""The cells of the quadrature, narrow at the centre and wide far out, and sums over them.

Each axis is z = centre + scale * sinh(u), with cells of equal width in u, of which a division
makes two. The volume of a cell is taken at its midpoint, as a density in u is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

__all__ = ["AXIS", "Axes", "beyond_axes", "log_sum", "shares"]


AXIS = {1: 2**12, 2: 2**8}
"""Coarse cells along an axis, by D; even."""
REACH = 4.0
"""How much farther from the centre the grid goes than the prior's draws and the posteriors."""


@dataclass(frozen=True)
class Axes:
    """The axes of the grid: z = centre + scale * sinh(u), u in equal cells.

    Arguments:
        centre: (D,), float64.
        scale: (D,).
        low: Where u begins, (D,).
        width: The width of a coarse cell in u, (D,).
        cells: The number of coarse cells along each.
    """

    centre: Tensor
    scale: Tensor
    low: Tensor
    width: Tensor
    cells: int

    @classmethod
    def around(cls, drawn: Tensor, mean: Tensor, std: Tensor) -> Axes:
        """Returns axes that reach what the prior draws, (n, D), and the posteriors, (N, D)."""
        cloud = torch.cat([drawn, mean - std, mean, mean + std])
        below, centre, above = _quantiles(cloud, 0.16, 0.5, 0.84)
        scale = ((above - below) / 2).clamp(min=1e-6)
        ends = torch.cat([mean - 8 * std, mean + 8 * std])
        if len(drawn):
            ends = torch.cat([ends, _quantiles(drawn, 0.001, 0.999)])
        low, high = (REACH * (end - centre) / scale for end in torch.aminmax(ends, dim=0))
        low, high = torch.asinh(low), torch.asinh(high)
        cells = AXIS[drawn.shape[1]]
        return cls(centre, scale, low, (high - low) / cells, cells)

    def edge(self, index: Tensor, level: int) -> Tensor:
        """Returns z at the lower edge of cells, (*, D), by their index on each axis."""
        return self.centre + self.scale * torch.sinh(self._u(index, level))

    def middle(self, index: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Returns the midpoints in z, (*, D), and the log of the cells' volumes, (*,)."""
        u = self._u(index + 0.5, level)
        length = self.scale * torch.cosh(u) * self.width / 2**level
        return self.centre + self.scale * torch.sinh(u), length.log().sum(dim=-1)

    def index(self, key: Tensor, level: int) -> Tensor:
        """Returns the index of cells along each axis, (*, D), by their key, (*,).

        A key is the place of the coarse cell, then a digit for each division, so that neighbours
        are near each other.
        """
        features = len(self.width)
        place = key >> features * level
        index = torch.stack(
            [place // self.cells**axis % self.cells for axis in reversed(range(features))], dim=-1
        )
        for division in reversed(range(level)):
            digit = (key >> features * division) & (2**features - 1)
            index = 2 * index + self.parts[digit]
        return index

    @cached_property
    def parts(self) -> Tensor:
        """The index of a cell's parts within it, (2^D, D), by their digit."""
        bits = product((0, 1), repeat=len(self.width))
        return torch.tensor(list(bits), device=self.width.device)

    def _u(self, index: Tensor, level: int) -> Tensor:
        return self.low + index * (self.width / 2**level)


def beyond_axes(mass: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns what log masses of coarse cells, (n, cells), leave beyond the grid, (n,).

    As if it went on to fall from ring to ring as from the last but one to the last, or by a
    hundredth if it fell by less; but no less than the last.
    """
    depth = torch.zeros(axes, dtype=torch.int64, device=mass.device)
    for ring in (1, 2):
        depth[(slice(ring, -ring),) * len(axes)] = ring
    last, before = (log_sum(mass[:, depth.flatten() == ring]) for ring in (0, 1))
    fall = (before - last).nan_to_num(nan=0).clamp(min=0.01)
    return last - fall.expm1().log().clamp(max=0)


def _quantiles(values: Tensor, *shares: float) -> Tensor:
    """Returns quantiles along each axis, (q, D), of values (n, D)."""
    return torch.quantile(values, values.new_tensor(shares), dim=0)


def shares(values: Tensor, top: Tensor) -> Tensor:
    """Returns exponentials of log values relative to the largest.

    None is below e^-80: to compute with numbers of fewer digits is ten times as slow.
    """
    return (values - top).clamp_(min=-80).exp_()


def log_sum(values: Tensor) -> Tensor:
    """Returns the log of the sum of exponentials over the last axis, float64."""
    top = values.amax(dim=-1, keepdim=True)
    total = shares(values, top).sum(dim=-1, dtype=torch.float64)
    return (top[..., 0] + total.log()).where(top[..., 0] > -math.inf, -math.inf)
