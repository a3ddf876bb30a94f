"""The posterior of the first VAEs: a Gaussian with a diagonal covariance.

    q(z|x) = N(z; mean(x), std(x)^2),    z = mean + std * noise

References:
    Auto-Encoding Variational Bayes (Kingma and Welling, 2014), https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flowvae.numerics.mixtures import by_differences, gaussians

__all__ = ["DiagonalGaussian"]


MAX_ROUNDING = 1e-3
"""The rounding error of a log-density, nats, above which pairs are computed one by one."""


class DiagonalGaussian(NamedTuple):
    """Diagonal Gaussians, one for each of (*) images; a `Posterior`.

    Arguments:
        mean: The means, (*, D).
        log_std: The log standard deviations, (*, D).

    Example:
        >>> posterior = DiagonalGaussian.of_outputs(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
        >>> z, log_q = posterior.sample_with_log_prob(torch.tensor([[0.0, 1.0]]))
        >>> z, bool(torch.isclose(log_q, posterior.log_prob(z)))
        (tensor([[1., 3.]]), True)
    """

    mean: Tensor
    log_std: Tensor

    @classmethod
    def of_outputs(cls, outputs: Tensor) -> DiagonalGaussian:
        """Reads an encoder's outputs, (*, 2 D): the means, then the log standard deviations."""
        return cls(*outputs.chunk(2, dim=-1))

    @property
    def outputs(self) -> Tensor:
        """The encoder's outputs that stand for them, (*, 2 D)."""
        return torch.cat(self, dim=-1)

    @property
    def std(self) -> Tensor:
        """The standard deviation of each latent feature, (*, D)."""
        return self.log_std.exp()

    @property
    def variance(self) -> Tensor:
        """The variance of each latent feature, (*, D)."""
        return (2 * self.log_std).exp()

    def map(self, function: Callable[[Tensor], Tensor]) -> DiagonalGaussian:
        """Returns the Gaussians with a function applied to both tensors."""
        return DiagonalGaussian(function(self.mean), function(self.log_std))

    def join(self, others: Sequence[DiagonalGaussian]) -> DiagonalGaussian:
        """Returns these Gaussians and, after them along the first axis, those of others."""
        return DiagonalGaussian(*map(torch.cat, zip(self, *others, strict=True)))

    def sample(self, noise: Tensor) -> Tensor:
        """Returns z = mean + std * noise, (*, D), for noise (*, D)."""
        return self.mean + self.log_std.exp() * noise

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the same, and log q(z|x), (*,), nats."""
        return self.sample(noise), self._log_prob_of_noise(noise)

    def noise(self, z: Tensor) -> Tensor:
        """Returns (z - mean) / std, (*, D), for latents (*, D)."""
        return (z - self.mean) / self.std

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log q(z|x), (*,), nats, for latents (*, D)."""
        return self._log_prob_of_noise(self.noise(z))

    def _log_prob_of_noise(self, noise: Tensor) -> Tensor:
        """Returns log q(mean + std * noise|x), (*,), nats, free of the rounding of z."""
        return (-0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def pairs(self, at: Tensor | None = None) -> Callable[..., Tensor]:
        """Prepares the log-densities of latents under every one of K Gaussians.

        One matrix product, or differences pair by pair, D times as slow, where its rounding at
        the latents `at`, (n, D), would exceed 1e-3 nats; see `flowvae.numerics.mixtures`.
        """
        product = gaussians(self.mean, self.log_std)
        if at is not None and not product.rounding(at) < MAX_ROUNDING:
            return partial(by_differences, mean=self.mean, log_std=self.log_std)
        return product.log_prob
