"""The interface of a likelihood."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Likelihood"]


class Likelihood(Protocol):
    """Distributions p(x|z) over images of P pixels, by the decoder's outputs l for z.

    A pixel's outputs are the natural parameter of an exponential family,

        log p(x|z) = x . l - A(l),

    so that many images at many latents are one matrix product; A(l) is `log_normaliser`.
    """

    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Returns log p(x|z), (*,), nats, for images and outputs (*, P)."""

    def log_normaliser(self, outputs: Tensor) -> Tensor:
        """Returns A(l), (*,), nats, for outputs (*, P)."""

    def products(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Returns x . l, (N, K), nats, for images (N, P) and K outputs of each, (N, K, P)."""

    def all_products(self, x: Tensor, outputs: Tensor, offset: Tensor) -> Tensor:
        """Returns x . l + offset, (N, n), nats, of all pairs of an image and a latent.

        Arguments:
            x: The images, (N, P).
            outputs: The decoder's outputs, (n, P).
            offset: What is added for each latent, (n,), nats; with -A(l) it is log p(x|z).
        """

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns the pixels' means E[x|z], (*, P), for outputs (*, P)."""

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Draws images, uint8, (*, P), from outputs and noise, uniform in [0, 1), (*, P)."""

    def curvature(self, outputs: Tensor) -> Tensor:
        """Returns the diagonal of minus the Hessian of log p(x|z) in the outputs, (*, P), nats."""
