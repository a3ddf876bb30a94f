"""What a prior is built for, and the registry of priors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from zuko.lazy import LazyDistribution

from ..registry import Registry

__all__ = ["PRIORS", "Latent"]


@dataclass(frozen=True)
class Latent:
    """The latent space that a prior is built for.

    Arguments:
        features: The number of latent features D.
        encoder: The encoder's body, (N, P) -> (N, 2 D), mean and log standard deviation, for
            priors that are made of posteriors. It is the model's: a prior borrows it.
        images: The training images as uint8 in 0..levels, (N, P), for the same; absent in a model
            that is loaded, whose weights hold what the prior took from them.
        levels: The intensity in `images` that stands for one.
        pixels: The number of pixels P.
    """

    features: int
    encoder: nn.Module | None = None
    images: Tensor | None = None
    levels: int = 1
    pixels: int = 0


PRIORS: Registry[LazyDistribution] = Registry("prior")
