"""Gaussian priors and their mixtures."""

from __future__ import annotations

from typing import Literal

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal
from zuko.lazy import LazyDistribution, UnconditionalDistribution

from flowvae.priors.base import PRIORS, Latent
from flowvae.specs.values import Count

__all__ = ["diagonal", "gauss", "gmm"]


@PRIORS.register("gauss", source="Kingma and Welling, 2014, arXiv 1312.6114")
def gauss(space: Latent) -> LazyDistribution:
    """Standard Gaussian, p(z) = N(z; 0, I), with nothing to learn.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), https://arxiv.org/abs/1312.6114
    """
    return UnconditionalDistribution(
        zuko.distributions.DiagNormal,
        torch.zeros(space.features),
        torch.ones(space.features),
        buffer=True,
    )


def _diagonal(mean: Tensor, log_std: Tensor) -> Distribution:
    return zuko.distributions.DiagNormal(mean, log_std.exp())


@PRIORS.register("diagonal", source="Kingma and Welling, 2014, arXiv 1312.6114, its scale learned")
def diagonal(space: Latent) -> LazyDistribution:
    """Learned diagonal Gaussian, p(z) = N(z; m, diag(s^2)).

    The encoder and the decoder can take up any shift and scale: it models nothing that the
    standard Gaussian cannot, and a gain on it is one of optimisation.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), https://arxiv.org/abs/1312.6114
    """
    zeros = torch.zeros(space.features)
    return UnconditionalDistribution(_diagonal, zeros, zeros.clone())


class _Mixture(zuko.mixtures.GMM):
    """zuko's mixture, its triangles filled by an operation that `vmap` takes as it is."""

    def _forward_full(
        self, logits: Tensor, loc: Tensor, diag: Tensor, tril: Tensor
    ) -> Distribution:
        features = loc.shape[-1]
        row, column = torch.tril_indices(features, features, -1, device=loc.device)
        scale = torch.diag_embed(diag.exp() + self.epsilon).flatten(-2)
        scale = scale.index_add(-1, row * features + column, tril).unflatten(-1, (features, -1))
        components = MultivariateNormal(loc, scale_tril=scale)
        return zuko.distributions.Mixture(components, logits)


@PRIORS.register("gmm", source="Dilokthanakul et al., 2016, arXiv 1611.02648")
def gmm(
    space: Latent,
    *,
    components: Count = 32,
    covariance: Literal["full", "diagonal"] = "full",
) -> LazyDistribution:
    """Mixture of Gaussians, p(z) = sum_k w_k N(z; m_k, S_k).

    The means start as draws of N(0, I), the covariances as I.

    References:
        Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders (Dilokthanakul
        et al., 2016), https://arxiv.org/abs/1611.02648

    Arguments:
        space: The latent space.
        components: The number of components K.
        covariance: Whether the covariances S_k are full or diagonal.
    """
    mixture = _Mixture(space.features, components=components, covariance_type=covariance)
    for scale in list(mixture.phi)[2:]:  # zuko draws their logarithms at random
        nn.init.zeros_(scale)
    return mixture
