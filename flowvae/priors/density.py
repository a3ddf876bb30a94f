"""What torch asks of a distribution over latents, so that a prior need only give two formulae."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

__all__ = ["Density"]


class Density(Distribution):
    """A distribution over latents, by the density and the draws of n of them.

    Arguments:
        features: The number of latent features D.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, features: int) -> None:
        super().__init__(event_shape=torch.Size([features]), validate_args=False)

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Returns log p(z), (n,), nats, for latents (n, D)."""

    @abstractmethod
    def draw(self, count: int) -> Tensor:
        """Draws latents, (count, D)."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z), (*,), nats, for latents (*, D)."""
        flat = value.reshape(-1, value.shape[-1])
        return self.log_density(flat).to(value.dtype).view(value.shape[:-1])

    @torch.no_grad()
    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = Size()) -> Tensor:  # noqa: B008
        """Draws latents, (*, D)."""
        shape = torch.Size(sample_shape)
        return self.draw(shape.numel()).view(*shape, *self.event_shape)
