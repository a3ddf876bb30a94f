"""Priors p(z) over the latent space, each one short registered function.

A builder takes the latent space and keyword-only options, and returns a
`zuko.lazy.LazyDistribution` whose distribution has a normalised `log_prob`, (N, D) -> (N,), and a
`sample`. To add a prior, write such a function and decorate it; the command line, the tables and
the contract test find it by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform
from zuko.lazy import LazyDistribution, LazyTransform, UnconditionalDistribution

from .options import Count, Positive, Widths
from .registry import Registry
from .splines import RationalQuadraticSpline

__all__ = ["PRIORS", "Latent", "gauss", "maf", "nsf"]


@dataclass(frozen=True)
class Latent:
    """The latent space that a prior is built for.

    Arguments:
        features: The number of latent features D.
        encoder: The encoder's body, (N, P) -> (N, 2 D), for priors that are made of posteriors.
        images: The training images as uint8, (N, P), for the same; absent in a model that is
            loaded, whose weights hold what the prior took from them.
    """

    features: int
    encoder: nn.Module | None = None
    images: Tensor | None = None


PRIORS: Registry[LazyDistribution] = Registry("prior")


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


@PRIORS.register("maf", source="Papamakarios et al., 2017, arXiv 1705.07057")
def maf(
    space: Latent,
    *,
    transforms: Count = 3,
    hidden: Widths = (256, 256),
    randperm: bool = False,
) -> LazyDistribution:
    """Masked autoregressive flow: u_i = a_i(z_<i) + b_i(z_<i) z_i, u ~ N(0, I), composed.

    Density in one pass, samples in D passes. The scales b_i lie in [1e-3, 1e3] for each transform.

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017),
        https://arxiv.org/abs/1705.07057

    Arguments:
        space: The latent space.
        transforms: The number of autoregressive transformations.
        hidden: The numbers of hidden features of each transformation's network.
        randperm: Whether the features are permuted at random between transformations; otherwise
            their order is reversed.
    """
    return _quick(
        zuko.flows.MAF(
            space.features, transforms=transforms, hidden_features=hidden, randperm=randperm
        )
    )


def _quick(flow: LazyDistribution) -> LazyDistribution:
    """Turns the masks into numbers: zuko's are booleans, and a product casts them at each call."""
    for layer in flow.modules():
        if isinstance(layer, zuko.nn.MaskedLinear):
            layer.mask = layer.mask.to(layer.weight.dtype)
        elif isinstance(layer, nn.ReLU):
            layer.inplace = True
    return flow


class _Affine(LazyTransform):
    """A learnable elementwise affine map, u = a(s) * z + t, the identity at the start.

    a(s) = exp(s / (1 + |s| / log 1000)): zuko clips the scale softly to [1e-3, 1e3].
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))

    def forward(self, c: Tensor | None = None) -> Transform:
        return zuko.transforms.DependentTransform(
            zuko.transforms.MonotonicAffineTransform(self.shift, self.log_scale), 1
        )


@PRIORS.register("nsf", source="Durkan et al., 2019, arXiv 1906.04032")
def nsf(
    space: Latent,
    *,
    transforms: Count = 3,
    hidden: Widths = (256, 256),
    bins: Count = 8,
    bound: Positive = 5.0,
    affine: bool = False,
    randperm: bool = False,
) -> LazyDistribution:
    """Neural spline flow: autoregressive monotonic rational-quadratic splines on [-B, B].

    Warning:
        Outside [-B, B] each transform is the identity, so there the prior is a plain Gaussian; a
        prior is free to rescale the latent space and the posterior can drift out of the box. A
        wider `bound` or `affine` brings it back.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Arguments:
        space: The latent space.
        transforms: The number of autoregressive transformations.
        hidden: The numbers of hidden features of each transformation's network.
        bins: The number of the spline's bins K.
        bound: The half-width B of the spline's box.
        affine: Whether a learnable elementwise affine map comes before the splines.
        randperm: Whether the features are permuted at random between transformations; otherwise
            their order is reversed.
    """
    apart = [(bins,), (bins,), (bins - 1,)]  # a single feature has them as parameters of their own
    flow = zuko.flows.MAF(
        space.features,
        transforms=transforms,
        hidden_features=hidden,
        randperm=randperm,
        univariate=partial(RationalQuadraticSpline, bound=bound),
        shapes=[(3 * bins - 1,)] if space.features > 1 else apart,
    )
    if affine:
        flow.transform.transforms.insert(0, _Affine(space.features))
    return _quick(flow)
