"""Likelihoods p(x|z): the distributions over images that a decoder's outputs stand for.

Takes the decoder's outputs, (N, P), and images; returns log-probabilities, means and draws.
"""

from __future__ import annotations

from flowvae.likelihoods.base import Likelihood
from flowvae.likelihoods.bernoulli import Bernoulli

__all__ = ["Bernoulli", "Likelihood"]
