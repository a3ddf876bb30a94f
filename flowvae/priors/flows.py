"""Normalizing flows: p(z) = N(f(z); 0, I) |det df/dz| with f a chain of learned bijections.

The autoregressive ones share one conditioner, a masked perceptron for each transform, and differ
in the bijection of one feature, so that what is compared is the bijection.

Not among them is zuko's Gaussianization flow (Meng et al., 2020, arXiv 2003.01941): its density
is not normalised. It keeps quantiles below 1 - 1e-6, so that each of its transforms maps into
(-4.9, 4.9), and the next one that interval into a shorter one yet, which misses part of the base.
On a grid its mass is 0.48 at D = 1 and 0.38 at D = 2 with initial weights, 0.98 and 0.90 after a
short fit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform
from zuko.lazy import Flow, LazyDistribution, LazyTransform

from flowvae.numerics.splines import RationalQuadraticSpline
from flowvae.priors.base import PRIORS, Latent
from flowvae.specs.values import Count, Positive, Widths

__all__ = ["bpf", "iaf", "maf", "naf", "nice", "nsf", "realnvp", "sospf", "unaf"]


BISECTION = "samples by D bisections"
"""A bijection without a closed inverse: zuko finds it by bisection, feature after feature."""


class _Split(zuko.transforms.CouplingTransform):
    """zuko's coupling with the places of the halves known: to find them a GPU would be waited for.

    Arguments:
        meta: From the half that stays to the transform of the other.
        stays: The places of the half that stays, (D',).
        moves: Those of the other, (D'',).
    """

    def __init__(self, meta: Callable[[Tensor], Transform], stays: Tensor, moves: Tensor) -> None:
        Transform.__init__(self)
        self.meta, self.idx_a, self.idx_b = meta, stays, moves


class _Coupling(zuko.flows.GeneralCouplingTransform):
    def forward(self, c: Tensor | None = None) -> Transform:
        return _Split(partial(self.meta, c), self.stays, self.moves)


def _quick(flow: LazyDistribution) -> LazyDistribution:
    """Prepares once what zuko would at each call: masks as numbers, the places of halves."""
    for layer in flow.modules():
        if isinstance(layer, zuko.nn.MaskedLinear):
            layer.mask = layer.mask.to(layer.weight.dtype)
        elif isinstance(layer, nn.ReLU):
            layer.inplace = True
        elif isinstance(layer, zuko.flows.GeneralCouplingTransform):
            layer.__class__ = _Coupling
            for name, half in (("stays", layer.mask), ("moves", ~layer.mask)):
                places = half.nonzero().squeeze(-1)
                layer.register_buffer(name, places, persistent=False)
    return flow


def _onto(flow: Flow) -> LazyDistribution:
    """Takes out the soft clips to (-11, 11) that zuko puts between some flows' transforms.

    What follows one is a bijection of that interval alone, so that its image, and with it the mass
    of the density, falls short of one: by 5 % after a short fit of a sum-of-squares flow at D = 1.
    """
    parts = flow.transform.transforms
    clip = zuko.transforms.SoftclipTransform
    flow.transform.transforms = nn.ModuleList(
        p for p in parts if getattr(p, "f", None) is not clip
    )
    return _quick(flow)


@PRIORS.register("nice", source="Dinh et al., 2014, arXiv 1410.8516")
def nice(space: Latent, *, transforms: Count = 4, hidden: Widths = (256, 256)) -> LazyDistribution:
    """Additive coupling: half of the features are shifted by a network of the other half.

    A shift keeps volumes: as published, a learned scale of each feature comes last; ours has a
    shift too.

    References:
        NICE: Non-linear Independent Components Estimation (Dinh et al., 2014),
        https://arxiv.org/abs/1410.8516

    Arguments:
        space: The latent space.
        transforms: The number of couplings; the halves change roles between them.
        hidden: The numbers of hidden features of each coupling's network.
    """
    flow = zuko.flows.NICE(
        space.features,
        transforms=transforms,
        hidden_features=hidden,
        univariate=zuko.transforms.AdditiveTransform,
        shapes=[()],
    )
    flow.transform.transforms.append(_Affine(space.features))
    return _quick(flow)


@PRIORS.register("realnvp", source="Dinh et al., 2017, arXiv 1605.08803")
def realnvp(
    space: Latent, *, transforms: Count = 4, hidden: Widths = (256, 256)
) -> LazyDistribution:
    """Affine coupling: half of the features are scaled and shifted by a network of the other half.

    References:
        Density Estimation Using Real NVP (Dinh et al., 2017), https://arxiv.org/abs/1605.08803

    Arguments:
        space: The latent space.
        transforms: The number of couplings; the halves change roles between them.
        hidden: The numbers of hidden features of each coupling's network.
    """
    return _quick(
        zuko.flows.RealNVP(space.features, transforms=transforms, hidden_features=hidden)
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


@PRIORS.register(
    "iaf", source="Kingma et al., 2016, arXiv 1606.04934", caveat="density in D passes"
)
def iaf(
    space: Latent,
    *,
    transforms: Count = 3,
    hidden: Widths = (256, 256),
    randperm: bool = False,
) -> LazyDistribution:
    """Inverse autoregressive flow: z_i = a_i(u_<i) + b_i(u_<i) u_i, u ~ N(0, I), composed.

    The masked autoregressive flow turned round: samples in one pass, density in D passes, and so
    each training step too.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
        https://arxiv.org/abs/1606.04934

    Arguments:
        space: The latent space.
        transforms: The number of autoregressive transformations.
        hidden: The numbers of hidden features of each transformation's network.
        randperm: Whether the features are permuted at random between transformations; otherwise
            their order is reversed.
    """
    flow = zuko.flows.MAF(
        space.features, transforms=transforms, hidden_features=hidden, randperm=randperm
    )
    return _quick(Flow(flow.transform.inv, flow.base))


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


@PRIORS.register("nsf", source="Durkan et al., 2019, arXiv 1906.04032", later=["coupling"])
def nsf(
    space: Latent,
    *,
    transforms: Count = 3,
    hidden: Widths = (256, 256),
    bins: Count = 8,
    bound: Positive = 5.0,
    affine: bool = False,
    randperm: bool = False,
    coupling: bool = False,
) -> LazyDistribution:
    """Neural spline flow: monotonic rational-quadratic splines on [-B, B], autoregressive.

    Warning:
        Outside [-B, B] each transform is the identity, so there the prior is a plain Gaussian; a
        prior is free to rescale the latent space and the posterior can drift out of the box. A
        wider `bound` or `affine` brings it back.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Arguments:
        space: The latent space.
        transforms: The number of transformations.
        hidden: The numbers of hidden features of each transformation's network.
        bins: The number of the spline's bins K.
        bound: The half-width B of the spline's box.
        affine: Whether a learnable elementwise affine map comes before the splines.
        randperm: Whether the features are permuted at random between transformations; otherwise
            their order is reversed.
        coupling: Whether a transformation is a coupling, RQ-NSF (C) in the paper: the splines of
            one half of the features depend on the other half, which has splines of its own, so
            that samples take two passes instead of D.
    """
    apart = [(bins,), (bins,), (bins - 1,)]  # a single feature has them as parameters of their own
    flow = zuko.flows.MAF(
        space.features,
        transforms=transforms,
        hidden_features=hidden,
        randperm=randperm,
        passes=2 if coupling else None,
        univariate=partial(RationalQuadraticSpline, bound=bound),
        shapes=[(3 * bins - 1,)] if space.features > 1 else apart,
    )
    if affine:
        flow.transform.transforms.insert(0, _Affine(space.features))
    return _quick(flow)


@PRIORS.register(
    "sospf", source="Jaini et al., 2019, arXiv 1905.02325", stackable=False, caveat=BISECTION
)
def sospf(
    space: Latent,
    *,
    transforms: Count = 1,
    hidden: Widths = (256, 256),
    degree: Count = 4,
    polynomials: Count = 3,
) -> LazyDistribution:
    """Sum-of-squares polynomial flow: u_i the integral of sum_k p_k(z_i; z_<i)^2, autoregressive.

    One transform is universal, and several overflow: three are a polynomial of degree 729.

    Warning:
        Samples are found by bisection in [-10, 10] at each transform: what lies beyond is lost.

    References:
        Sum-of-Squares Polynomial Flow (Jaini et al., 2019), https://arxiv.org/abs/1905.02325

    Arguments:
        space: The latent space.
        transforms: The number of autoregressive transformations.
        hidden: The numbers of hidden features of each transformation's network.
        degree: The degree of the polynomials p_k.
        polynomials: Their number.
    """
    return _onto(
        zuko.flows.SOSPF(
            space.features,
            transforms=transforms,
            hidden_features=hidden,
            degree=degree,
            polynomials=polynomials,
        )
    )


@PRIORS.register(
    "bpf", source="Sick et al., 2020, arXiv 2004.00464", stackable=False, caveat=BISECTION
)
def bpf(
    space: Latent,
    *,
    transforms: Count = 3,
    hidden: Widths = (256, 256),
    degree: Count = 16,
) -> LazyDistribution:
    """Bernstein polynomial flow: u_i a monotonic Bernstein polynomial of z_i, autoregressive.

    References:
        Deep Transformation Models: Tackling Complex Regression Problems with Neural Network Based
        Transformation Models (Sick et al., 2020), https://arxiv.org/abs/2004.00464

    Arguments:
        space: The latent space.
        transforms: The number of autoregressive transformations.
        hidden: The numbers of hidden features of each transformation's network.
        degree: The degree of the polynomials.
    """
    return _quick(
        zuko.flows.BPF(
            space.features, transforms=transforms, hidden_features=hidden, degree=degree
        )
    )


@PRIORS.register(
    "naf", source="Huang et al., 2018, arXiv 1804.00779", stackable=False, caveat=BISECTION
)
def naf(
    space: Latent,
    *,
    transforms: Count = 3,
    hidden: Widths = (256, 256),
    signal: Count = 16,
    network: Widths = (64, 64),
) -> LazyDistribution:
    """Neural autoregressive flow: u_i a monotonic network of z_i, modulated by z_<i.

    Warning:
        Samples are found by bisection in [-10, 10] at each transform: what lies beyond is lost.

    References:
        Neural Autoregressive Flows (Huang et al., 2018), https://arxiv.org/abs/1804.00779

    Arguments:
        space: The latent space.
        transforms: The number of autoregressive transformations.
        hidden: The numbers of hidden features of each transformation's conditioner.
        signal: The number of features by which the conditioner modulates the monotonic network.
        network: The numbers of hidden features of the monotonic network.
    """
    return _onto(
        zuko.flows.NAF(
            space.features,
            transforms=transforms,
            hidden_features=hidden,
            signal=signal,
            network={"hidden_features": network},
        )
    )


@PRIORS.register(
    "unaf", source="Wehenkel and Louppe, 2019, arXiv 1908.05164", stackable=False, caveat=BISECTION
)
def unaf(
    space: Latent,
    *,
    transforms: Count = 1,
    hidden: Widths = (256, 256),
    signal: Count = 16,
    network: Widths = (32, 32),
) -> LazyDistribution:
    """Unconstrained neural autoregressive flow: u_i the integral of a positive network over z_i.

    Each density takes 32 evaluations of the network a feature, and a sample some 25 times as many:
    hence one transform, which is universal, and a smaller network than the neural autoregressive
    flow's.

    Warning:
        Samples are found by bisection in [-10, 10] at each transform: what lies beyond is lost.

    References:
        Unconstrained Monotonic Neural Networks (Wehenkel and Louppe, 2019),
        https://arxiv.org/abs/1908.05164

    Arguments:
        space: The latent space.
        transforms: The number of autoregressive transformations.
        hidden: The numbers of hidden features of each transformation's conditioner.
        signal: The number of features by which the conditioner modulates the integrand.
        network: The numbers of hidden features of the integrand.
    """
    return _onto(
        zuko.flows.UNAF(
            space.features,
            transforms=transforms,
            hidden_features=hidden,
            signal=signal,
            network={"hidden_features": network},
        )
    )
