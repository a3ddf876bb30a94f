"""Many diagonal Gaussians at many points: all pairs of densities as one matrix product.

    log N(z; mu_k, s_k^2) = [z^2, z] . [-1 / (2 s_k^2), mu_k / s_k^2] + c_k

in float64 about the common mean of the mu_k. Rounding costs eps (z / s)^2 in the exponents, 1e-7
nats at z / s = 1e4: in float32 it would cost whole nats. Where a posterior has shrunk to a point
even float64 does not do, and `by_differences` takes (z - mu_k) / s_k pair by pair.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gaussians", "by_differences", "gaussians"]


MAX_FINITE = 1e290
"""What stands for infinity where numbers are summed afterwards."""


class Gaussians(NamedTuple):
    """K diagonal Gaussians, as the matrix that their log-densities are a product with.

    Arguments:
        origin: Their common mean, (D,).
        weights: The coefficients of [z^2, z], (2 D, K).
        constant: The coefficients of 1, (K,).
    """

    origin: Tensor
    weights: Tensor
    constant: Tensor

    def log_prob(self, z: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Returns the log-density of each point under each Gaussian, (n, K), float64, nats.

        Arguments:
            z: The points, (n, D).
            out: Where to write, (n, K), or none.
        """
        z = z.double() - self.origin
        features = torch.cat([z.square(), z], dim=-1)
        return torch.addmm(self.constant, features, self.weights, out=out)

    def rounding(self, z: Tensor) -> float:
        """Returns the order of the largest error of `log_prob` at these points, (n, D), nats."""
        size = (z.double() - self.origin).square().amax(dim=0)  # (D,)
        precision = -2 * self.weights[: len(size)].amin(dim=1)
        return torch.finfo(torch.float64).eps * float((size * precision).sum())


def gaussians(mean: Tensor, log_std: Tensor) -> Gaussians:
    """Prepares diagonal Gaussians of means and log standard deviations (K, D).

    Example:
        >>> pair = gaussians(torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1))
        >>> [round(v, 4) for v in pair.log_prob(torch.zeros(1, 1))[0].tolist()]
        [-0.9189, -1.4189]
    """
    mean, log_std = mean.double(), log_std.double()
    origin = mean.mean(dim=0)
    mean = mean - origin
    precision = (-2 * log_std).exp()
    weights = torch.cat([-0.5 * precision, mean * precision], dim=1).T.contiguous()
    constant = -(0.5 * mean.square() * precision + log_std).sum(dim=1)
    constant = constant - 0.5 * mean.shape[1] * math.log(2 * math.pi)
    return Gaussians(origin, weights, constant)


def by_differences(z: Tensor, mean: Tensor, log_std: Tensor, *, out: Tensor) -> Tensor:
    """Returns the same without cancellation, (n, K), float64, nats.

    It takes D passes over all pairs where `Gaussians.log_prob` takes one matrix product.

    Arguments:
        z: The points, (n, D).
        mean: The means, (K, D).
        log_std: The log standard deviations, (K, D).
        out: Where to write, (n, K), float64.

    Example:
        >>> mean, log_std = torch.tensor([[0.0], [1.0]]), torch.full((2, 1), -50.0)
        >>> both = torch.empty(2, 2, dtype=torch.float64)
        >>> [f"{v:.4g}" for v in by_differences(mean, mean, log_std, out=both)[0]]
        ['49.08', '-1.344e+43']
    """
    mean, log_std, z = mean.double(), log_std.double(), z.double()
    out.copy_((-log_std - 0.5 * math.log(2 * math.pi)).sum(dim=1).expand_as(out))
    for d, inverse in enumerate((-log_std).exp().clamp(max=MAX_FINITE).T):
        out -= 0.5 * ((z[:, d, None] - mean[:, d]) * inverse).square().clamp(max=MAX_FINITE)
    return out
