"""The cells that `flowvae.quadrature` sums over: narrow at the centre, wide far out.

Each axis is z = centre + scale * sinh(u), with cells of equal width in u, of which a division
makes two. The volume of a cell is taken at its midpoint, as a density in u is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

__all__ = ["Axes"]

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

    @cached_property
    def bits(self) -> Tensor:
        """Which half of a cell each of its parts is in along each axis, (2^D, D)."""
        halves = list(product((0, 1), repeat=len(self.low)))
        return torch.tensor(halves, device=self.low.device)

    def index(self, key: Tensor, level: int) -> Tensor:
        """Returns the index of cells along each axis, (*, D), by their key, (*,).

        A cell's key is the place of its coarse cell, then which part it is of each division, so
        that cells with near keys are near each other.
        """
        features = len(self.low)
        place = key >> features * level
        axes = range(features - 1, -1, -1)
        index = torch.stack([place // self.cells**axis % self.cells for axis in axes], dim=-1)
        for division in range(level - 1, -1, -1):
            part = (key >> features * division) & (2**features - 1)
            index = 2 * index + self.bits[part]
        return index

    def edge(self, index: Tensor, level: int) -> Tensor:
        """Returns z at the lower edge of cells, (*, D), by their index on each axis."""
        return self.centre + self.scale * torch.sinh(self._u(index, level))

    def middle(self, index: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Returns the midpoints in z, (*, D), and the log of the cells' volumes, (*,)."""
        u = self._u(index + 0.5, level)
        length = self.scale * torch.cosh(u) * self.width / 2**level
        return self.centre + self.scale * torch.sinh(u), length.log().sum(dim=-1)

    def _u(self, index: Tensor, level: int) -> Tensor:
        return self.low + index * (self.width / 2**level)


def _quantiles(values: Tensor, *shares: float) -> Tensor:
    """Returns quantiles along each axis, (q, D), of values (n, D)."""
    return torch.quantile(values, values.new_tensor(shares), dim=0)
