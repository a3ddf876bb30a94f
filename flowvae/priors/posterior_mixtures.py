"""Priors made of posteriors: mixtures of the encoder's posteriors of some images.

    p(z) = (1/K) sum_k q(z | u_k)

The encoder is the model's and is borrowed: its weights are no part of the prior's, but the prior's
gradient reaches them. Its posteriors of these images are in float32, also where the precision of
its products with the batch is bfloat16.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from zuko.lazy import LazyDistribution

from flowvae.errors import InputError
from flowvae.posteriors import DiagonalGaussian, Posterior
from flowvae.priors.base import PRIORS, Density, Latent
from flowvae.specs.values import Count

__all__ = ["EqualMixture", "exemplar", "vamp"]


class EqualMixture(Density):
    """Equal mixture of posteriors.

    Arguments:
        posterior: The posteriors, K.
    """

    def __init__(self, posterior: Posterior) -> None:
        super().__init__(posterior.mean.shape[-1])
        self.posterior, self._count = posterior, len(posterior.mean)
        self._log_prob = posterior.pairs()

    def log_density(self, z: Tensor) -> Tensor:
        """Returns log p(z), (n,), nats, for latents (n, D)."""
        return self._log_prob(z).logsumexp(dim=-1) - math.log(self._count)

    def draw(self, count: int) -> Tensor:
        """Draws latents, (count, D)."""
        which = torch.randint(self._count, (count,), device=self.posterior.mean.device)
        chosen = self.posterior.map(lambda t: t[which])
        return chosen.sample(torch.randn_like(chosen.mean))


class _Posteriors(LazyDistribution):
    """An equal mixture of posteriors of images that a subclass holds."""

    def __init__(self, space: Latent) -> None:
        super().__init__()
        assert space.encoder is not None, "these priors need the model's encoder"
        self._borrowed = (space.encoder,)  # a tuple keeps it from being a module of the prior's
        self._posterior = space.posterior

    def encode(self, x: Tensor) -> Posterior:
        """Returns the posteriors of intensities (K, P) in [0, 1]."""
        return self._posterior(self._borrowed[0](x))


def _chosen(space: Latent, count: int) -> Tensor:
    """Returns intensities of training images, (K, P), in [0, 1]; zeros where there are none."""
    if space.images is None:
        return torch.zeros(count, space.pixels)
    if count > len(space.images):
        raise InputError(
            f"cannot draw {count} images out of the {len(space.images)} of the training set: take "
            "fewer"
        )
    return space.images[torch.randperm(len(space.images))[:count]] / space.levels


class _Vamp(_Posteriors):
    def __init__(self, space: Latent, start: Tensor) -> None:
        super().__init__(space)
        self.pseudo_inputs = nn.Parameter(start)

    def forward(self, c: Tensor | None = None) -> Distribution:
        return EqualMixture(self.encode(self.pseudo_inputs.clamp(0, 1)))


@PRIORS.register("vamp", source="Tomczak and Welling, 2018, arXiv 1705.07120")
def vamp(
    space: Latent,
    *,
    components: Count = 500,
    start: Literal["noise", "images"] = "noise",
) -> LazyDistribution:
    """VampPrior: equal mixture of the posteriors of K learned pseudo-inputs, clamped to [0, 1].

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120

    Arguments:
        space: The latent space.
        components: The number of pseudo-inputs K.
        start: Whether the pseudo-inputs start as `noise`, pixel by pixel N(0.5, 0.1^2), or as
            training `images`.

    Raises:
        InputError: There are fewer training images than pseudo-inputs that start from them.
    """
    if start == "images":
        images = _chosen(space, components)
    else:
        images = 0.5 + 0.1 * torch.randn(components, space.pixels)
    return _Vamp(space, images)


class _Exemplar(_Posteriors):
    exemplars: Tensor

    def __init__(self, space: Latent, count: int) -> None:
        super().__init__(space)
        self.register_buffer("exemplars", _chosen(space, count))
        self.log_std = nn.Parameter(torch.zeros(()))

    def forward(self, c: Tensor | None = None) -> Distribution:
        mean = self.encode(self.exemplars).mean
        return EqualMixture(DiagonalGaussian(mean, self.log_std.expand_as(mean)))


@PRIORS.register(
    "exemplar",
    source="Norouzi et al., 2020, arXiv 2004.04795",
    caveat="a training image may be its own exemplar",
)
def exemplar(space: Latent, *, exemplars: Count = 500) -> LazyDistribution:
    """Exemplar prior: p(z) = (1/K) sum_k N(z; mean of q(z|x_k), s^2 I) over training images x_k.

    The K exemplars are drawn once, by the seed; the width s is learned.

    Warning:
        The published prior uses all training images, a random part of them at each step, finds
        the nearest of them, and leaves an image out of its own prior. This one keeps its
        exemplars and leaves none out: of N training images the share K / N meets itself in its
        prior, which flatters the training ELBO, never the test scores.

    References:
        Exemplar VAE: Linking Generative Models, Nearest Neighbor Retrieval, and Data Augmentation
        (Norouzi et al., 2020), https://arxiv.org/abs/2004.04795

    Arguments:
        space: The latent space.
        exemplars: The number of exemplars K.

    Raises:
        InputError: There are fewer training images than exemplars.
    """
    return _Exemplar(space, exemplars)
