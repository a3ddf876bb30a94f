"""How heavy the tail of importance weights is, image by image: Pareto smoothing's k-hat.

The M largest of K weights, less the largest weight below them, are fitted by a generalised Pareto
distribution with density proportional to (1 + k w / s)^(-1/k - 1). Moments of the weights exist up
to order 1/k: above k = 1/2 their variance is infinite, and above 0.7 an average over any practical
number of samples, and so an estimate of log p(x), is unreliable.

References:
    Pareto Smoothed Importance Sampling (Vehtari et al., 2024), https://arxiv.org/abs/1507.02646
    A New and Efficient Estimation Method for the Generalized Pareto Distribution
    (Zhang and Stephens, 2009), https://doi.org/10.1198/tech.2009.08017
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["RELIABLE", "pareto_khat", "share_unreliable"]


RELIABLE = 0.7
"""The k-hat above which an estimate is unreliable (Vehtari et al., 2024)."""
MIN_TAIL = 5
"""The fewest weights that a tail is fitted to."""
NARROW = 1e-3
"""The range of log weights, nats, below which a tail counts as constant.

Its weights differ by less than one part in a thousand, so that the average does not depend on its
shape, and the shape may be that of rounding: in float32 log weights near -600 nats are 6e-5 apart,
and such steps, with ties between them, look like a heavy tail.
"""
PRIOR_MEAN, PRIOR_SIZE = 0.5, 10
"""The weak prior on k, in units of weights (Vehtari et al., 2024, appendix C)."""


def _tail(samples: int) -> int:
    """The number M of weights in the tail: K / 5, and at most 3 sqrt(K)."""
    return math.floor(3 * math.sqrt(samples)) if samples > 225 else samples // 5


def pareto_khat(log_w: Tensor) -> Tensor:
    """Estimates the shape k of the generalised Pareto tail of each row of weights.

    The profile of the likelihood over theta = k / s on a grid of 30 + sqrt(M) points, averaged by
    its weight (Zhang and Stephens, 2009), all rows at once.

    Arguments:
        log_w: Log importance weights, (N, K), of any scale.

    Returns:
        k-hat, (N,), in float64: NaN where K is below 25, so that no tail can be fitted, and where
        a weight is not finite; -inf where the tail is constant, which it is where its log weights
        span less than `NARROW`.

    Example:
        >>> u = torch.rand(4, 1000, generator=torch.Generator().manual_seed(0))
        >>> k = pareto_khat(-0.5 * u.log())  # w = u^(-1/2) has a Pareto tail with k = 1/2
        >>> bool(((k - 0.5).abs() < 0.2).all())
        True
    """
    size = _tail(log_w.shape[-1])
    if size < MIN_TAIL:
        return torch.full(log_w.shape[:1], math.nan, dtype=torch.float64, device=log_w.device)
    top = log_w.double().topk(size + 1, dim=-1).values.flip(-1)  # (N, M + 1), increasing
    w = (top - top[:, -1:]).exp()
    excess = w[:, 1:] - w[:, :1]  # (N, M)
    points = 30 + math.floor(math.sqrt(size))
    j = torch.arange(1, points + 1, dtype=torch.float64, device=log_w.device)
    quartile = excess[:, math.floor(size / 4 + 0.5) - 1, None]
    # A quartile of zero (ties) leaves the grid at its limit from above.
    step = (1 - (points / (j - 0.5)).sqrt()) / (3 * quartile.clamp(min=1e-300))
    theta = step + 1 / excess[:, -1:]  # (N, J); minus theta = k / s
    k = torch.log1p(-theta[..., None] * excess[:, None]).mean(dim=-1)  # (N, J)
    profile = size * ((-theta / k).log() - k - 1)
    weight = profile.softmax(dim=-1)
    weight = torch.where(weight >= 10 * torch.finfo(torch.float64).eps, weight, 0.0)
    mean = (weight * theta).sum(dim=-1, keepdim=True) / weight.sum(dim=-1, keepdim=True)
    khat = torch.log1p(-mean * excess).mean(dim=-1)
    khat = (size * khat + PRIOR_SIZE * PRIOR_MEAN) / (size + PRIOR_SIZE)
    return torch.where(top[:, -1] - top[:, 0] < NARROW, -math.inf, khat)


def share_unreliable(khat: NDArray[np.float64]) -> float:
    """Returns the share of images, (N,), with k-hat above 0.7 or without; NaN if none has any."""
    if np.isnan(khat).all():
        return math.nan
    return float((~(khat <= RELIABLE)).mean())
