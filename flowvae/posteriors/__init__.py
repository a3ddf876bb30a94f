"""Posteriors q(z|x): the distributions over latents that an encoder's outputs stand for.

Takes the encoder's outputs, (N, 2 D); returns a `Posterior`, with draws and log-densities.
"""

from __future__ import annotations

from flowvae.posteriors.base import Posterior
from flowvae.posteriors.gaussian import DiagonalGaussian

__all__ = ["DiagonalGaussian", "Posterior"]
