"""Priors p(z) over the latent space, each one short registered function.

A builder takes the latent space and keyword-only options, and returns a
`zuko.lazy.LazyDistribution` whose distribution has a normalised `log_prob`, (*, D) -> (*,), and a
`sample`. To add a prior, write such a function and decorate it; the command line, the tables and
the contract test find it by its name.

A prior that needs random numbers of its own for its density says how many points of N(0, I) each
image of a batch brings it, as an attribute `draws`; in training it is then called with these,
(B * draws, D), and in all else without.
"""

from __future__ import annotations

# Priors are listed in the order in which they are imported here.
# ruff: isort: off
from flowvae.priors.base import PRIORS, Latent
from flowvae.priors.gaussians import diagonal, gauss, gmm
from flowvae.priors.posterior_mixtures import exemplar, vamp
from flowvae.priors.resampled import lars
from flowvae.priors.flows import bpf, iaf, maf, naf, nice, nsf, realnvp, sospf, unaf
from flowvae.priors.continuous import cnf

__all__ = [
    "PRIORS",
    "Latent",
    "bpf",
    "cnf",
    "diagonal",
    "exemplar",
    "gauss",
    "gmm",
    "iaf",
    "lars",
    "maf",
    "naf",
    "nice",
    "nsf",
    "realnvp",
    "sospf",
    "unaf",
    "vamp",
]
