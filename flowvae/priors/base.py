"""Base of the priors: their registry, the latent space, distributions given by two formulae."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints
from zuko.lazy import LazyDistribution

from flowvae.posteriors import DiagonalGaussian, Posterior
from flowvae.specs.registry import Registry

__all__ = ["PRIORS", "Density", "Latent"]


@dataclass(frozen=True)
class Latent:
    """The latent space that a prior is built for.

    Arguments:
        features: The number of latent features D.
        encoder: The encoder's body, (N, P) -> (N, 2 D), for priors that are made of posteriors. It
            is the model's: a prior borrows it.
        images: The training images as uint8 in 0..levels, (N, P), for the same; absent in a model
            that is loaded, whose weights hold what the prior took from them.
        levels: The intensity in `images` that stands for one.
        pixels: The number of pixels P.
        posterior: Returns the posteriors that the encoder's outputs stand for.
    """

    features: int
    encoder: nn.Module | None = None
    images: Tensor | None = None
    levels: int = 1
    pixels: int = 0
    posterior: Callable[[Tensor], Posterior] = DiagonalGaussian.of_outputs


PRIORS: Registry[LazyDistribution] = Registry("prior")


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
