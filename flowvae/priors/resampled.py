"""The learned accept/reject prior, whose normalising constant is an estimate.

A proposal z ~ N(0, I) is accepted with a learned probability a(z); the T-th in a row is accepted
whatever it is:

    p(z) = N(z; 0, I) [ (1 - r) a(z) / Z + r ],    Z = E[a(z)],    r = (1 - Z)^(T - 1)

Z is an integral over the latent space. While the prior is trained it is estimated from proposals
that are drawn afresh for every step, so that a cannot learn where they lie; when it is scored,
from a fixed quasi-random set of many points that training never saw.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import zuko
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F  # noqa: N812
from zuko.lazy import LazyDistribution

from flowvae.priors.base import PRIORS, Density, Latent
from flowvae.specs.values import AtLeast, Widths

__all__ = ["POINTS", "REPLICATES", "Resampled", "lars"]


REPLICATES, POINTS = 8, 2**13
"""The fixed set: independent scramblings of a Sobol sequence, and the points of each."""
PROPOSALS = 4
"""Fresh proposals for each image of a batch."""


class Resampled(Density):
    """N(0, I), resampled by a learned acceptance probability.

    Arguments:
        accept: The logit of a(z), (n, D) -> (n, 1).
        proposals: Points of N(0, I), (R, S, D), that Z is estimated from.
        truncation: The number T of proposals of which the last is accepted whatever it is.
    """

    def __init__(self, accept: torch.nn.Module, proposals: Tensor, truncation: int) -> None:
        super().__init__(proposals.shape[-1])
        self.accept, self.truncation = accept, truncation
        log_a = F.logsigmoid(accept(proposals.flatten(0, 1)).squeeze(-1))
        self.log_z_each = log_a.unflatten(0, proposals.shape[:2]).logsumexp(dim=1)
        self.log_z_each = self.log_z_each - math.log(proposals.shape[1])  # (R,)
        log_z = self.log_z_each.logsumexp(dim=0) - math.log(len(proposals))
        self.log_z = log_z.clamp(max=-1e-6)  # a is below one

    @property
    def log_z_error(self) -> Tensor:
        """The standard error of log Z, from its spread over the replicates, nats."""
        return self.log_z_each.std() / math.sqrt(len(self.log_z_each))

    def log_density(self, z: Tensor) -> Tensor:
        """Returns log p(z), (n,), nats, for latents (n, D)."""
        base = -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=-1)
        log_a = F.logsigmoid(self.accept(z).squeeze(-1))
        log_rest = (self.truncation - 1) * torch.log1p(-self.log_z.exp())  # log r
        log_kept = torch.log(-torch.expm1(log_rest))
        return base + torch.logaddexp(log_kept + log_a - self.log_z, log_rest)

    def draw(self, count: int) -> Tensor:
        """Draws latents, (count, D), in at most T rounds."""
        drawn = torch.randn_like(self.log_z.new_empty(count, *self.event_shape))
        left = torch.arange(count, device=drawn.device)
        for _ in range(self.truncation - 1):
            chance = torch.sigmoid(self.accept(drawn[left]).squeeze(-1))
            left = left[torch.rand_like(chance) >= chance]
            if not len(left):
                break
            drawn[left] = torch.randn_like(drawn[left])
        return drawn


class _Lars(LazyDistribution):
    draws = PROPOSALS
    points: Tensor

    def __init__(self, features: int, truncation: int, hidden: Widths) -> None:
        super().__init__()
        self.truncation = truncation
        self.accept = zuko.nn.MLP(features, 1, hidden_features=hidden, activation=torch.nn.Tanh)
        self.register_buffer("points", _sobol(features), persistent=False)

    def forward(self, c: Tensor | None = None) -> Resampled:
        proposals = self.points if c is None else c[None]
        return Resampled(self.accept, proposals, self.truncation)


def _sobol(features: int) -> Tensor:
    """Returns the fixed points of N(0, I), (R, S, D)."""
    engines = [
        torch.quasirandom.SobolEngine(features, scramble=True, seed=seed)
        for seed in range(REPLICATES)
    ]
    uniform = torch.stack([engine.draw(POINTS, dtype=torch.float64) for engine in engines])
    half = 2.0**-31  # the sequence has steps of 2^-30, zero among them
    return Normal(0.0, 1.0).icdf(uniform + half).float()


@PRIORS.register(
    "lars",
    source="Bauer and Mnih, 2019, arXiv 1810.11428",
    caveat="its normalising constant is an estimate",
)
def lars(
    space: Latent,
    *,
    truncation: Annotated[int, AtLeast(2)] = 100,
    hidden: Widths = (100, 100),
) -> LazyDistribution:
    """Learned accept/reject sampling: N(z; 0, I) [(1 - r) a(z) / Z + r], r = (1 - Z)^(T - 1).

    Warning:
        Z is estimated. In training from four fresh proposals for each image of a batch, so that
        the training ELBO is high by about Var(a) / (2 S Z^2) nats with S proposals; in scores from
        65,536 fixed quasi-random points, the same for all images: its error, `test/log_z_error`
        in nats, shifts the NLL of all images alike and lies outside every interval and every
        bracket of an audit. The published estimate also counts a posterior sample and smooths
        over steps; this one does neither.

    References:
        Resampled Priors for Variational Autoencoders (Bauer and Mnih, 2019),
        https://arxiv.org/abs/1810.11428

    Arguments:
        space: The latent space.
        truncation: The number T of proposals of which the last is accepted whatever it is.
        hidden: The numbers of hidden features of the acceptance network, with tanh between.
    """
    return _Lars(space.features, truncation, hidden)
