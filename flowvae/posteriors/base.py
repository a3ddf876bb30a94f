"""The interface of a posterior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self

from torch import Tensor

__all__ = ["Posterior"]


class Posterior(Protocol):
    """Distributions q(z|x) over latents, one for each of (*) images.

    Noise is an argument, standard Gaussian numbers: all models share it at one seed, and a bound
    is a pure function of it.
    """

    @property
    def mean(self) -> Tensor:
        """E[z], (*, D)."""

    @property
    def std(self) -> Tensor:
        """The standard deviation of each latent feature, (*, D)."""

    @property
    def variance(self) -> Tensor:
        """The variance of each latent feature, (*, D)."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Returns the posteriors with a function applied to the tensors that describe them.

        Arguments:
            function: Selects from, adds to or expands the leading axes, or changes the type.
        """

    def join(self, others: Sequence[Self]) -> Self:
        """Returns these posteriors and, after them along the first axis, those of others."""

    def sample(self, noise: Tensor) -> Tensor:
        """Returns the latents, (*, D), that noise, (*, D), is turned into."""

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `sample(noise)` and its log-densities log q(z|x), (*,), nats."""

    def noise(self, z: Tensor) -> Tensor:
        """Returns the noise, (*, D), that is turned into the latents z, (*, D)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log q(z|x), (*,), nats, for latents (*, D)."""

    def pairs(self, at: Tensor | None = None) -> Callable[..., Tensor]:
        """Prepares the log-densities of latents under every one of K posteriors.

        Arguments:
            at: Latents, (n, D), at which rounding has to stay below 1e-3 nats, whatever the cost;
                none for the fastest way.

        Returns:
            A function of latents (n, D), and of `out=` to write to, that returns the
            log-densities, (n, K), float64, nats.
        """
