"""The variational autoencoder and its evidence lower bound.

    log p(x) >= E_q(z|x) [ log p(x|z) + log p(z) - log q(z|x) ] = ELBO(x) = -distortion - rate

with q(z|x) a diagonal Gaussian, p(x|z) a product of Bernoullis, and p(z) any prior. The same Monte
Carlo estimate serves every prior: none gets an analytic Kullback-Leibler divergence. Noise is an
argument, so that the bound is a pure function, which `torch.func.vmap` takes as it is. The
distributions of the outputs are in `flowvae.posteriors` and `flowvae.likelihoods`.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from zuko.lazy import LazyDistribution

from flowvae.errors import InputError
from flowvae.likelihoods import Bernoulli, Likelihood
from flowvae.nets import NETS
from flowvae.numerics.precision import DTYPES
from flowvae.numerics.streams import global_stream
from flowvae.posteriors import DiagonalGaussian, Posterior
from flowvae.priors import PRIORS, Latent
from flowvae.trial import Precision, Trial

__all__ = ["VAE", "Terms", "build"]


class Terms(NamedTuple):
    """One-sample estimates of the bound and its parts, each (*,), nats.

    Arguments:
        elbo: log p(x|z) + log p(z) - log q(z|x); also the log importance weight of z.
        rate: log q(z|x) - log p(z).
        distortion: -log p(x|z).
    """

    elbo: Tensor
    rate: Tensor
    distortion: Tensor


class VAE(nn.Module):
    """A variational autoencoder over binary images.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), https://arxiv.org/abs/1312.6114

    Arguments:
        encoder: The body (N, P) -> (N, 2 D), whose outputs stand for q(z|x).
        decoder: The body (N, D) -> (N, P), whose outputs stand for p(x|z).
        prior: The prior p(z).
        shape: The height and width of an image, pixels.
        latent: The number of latent features D.
        precision: See `Trial`.

    Example:
        >>> vae = build(Trial(prior="gauss", latent=2, net="mlp[hidden=8]"), shape=(8, 8))
        >>> terms = vae.elbo(torch.zeros(5, 64), noise=torch.zeros(5, 2))
        >>> torch.equal(terms.elbo, -terms.distortion - terms.rate)
        True
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: LazyDistribution,
        *,
        shape: tuple[int, int],
        latent: int,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.likelihood: Likelihood = Bernoulli()
        self.shape = shape
        self.latent = latent
        self.precision: Precision = precision
        self.to(DTYPES[precision])

    def _products(self, x: Tensor) -> AbstractContextManager[object]:
        """The precision of the bodies' matrix products."""
        if self.precision == "bf16":
            # Each weight is used once in a block: kept casts would be of no use, and a CUDA graph
            # must not hold them.
            return torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def encode(self, x: Tensor) -> Posterior:
        """Returns q(z|x) for images (N, P)."""
        x = x.to(DTYPES[self.precision])
        with self._products(x):
            outputs = self.encoder(x)
        return DiagonalGaussian.of_outputs(outputs.to(x.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """Returns the outputs that stand for p(x|z), (N, P), for latents (N, D)."""
        with self._products(z):
            outputs = self.decoder(z)
        return outputs.to(z.dtype)

    def elbo(self, x: Tensor, noise: Tensor, proposals: Tensor | None = None) -> Terms:
        """Estimates the bound with one sample z of q(z|x) an image.

        Arguments:
            x: The images in {0, 1}, (N, P).
            noise: Standard Gaussian draws, (N, D).
            proposals: The same for a prior that has `draws` of its own, (N * draws, D), or none.

        Returns:
            The terms, each (N,), nats.
        """
        x = x.to(DTYPES[self.precision])
        z, log_q = self.encode(x).sample_with_log_prob(noise)
        rate = log_q - self.prior(proposals).log_prob(z)
        log_likelihood = self.likelihood.log_prob(x, self.decode(z))
        return Terms(log_likelihood - rate, rate, -log_likelihood)

    forward = elbo

    @torch.no_grad()
    def prior_on_cpu(self) -> Distribution:
        """Returns the prior's distribution on the CPU, whose random stream all devices share."""
        return copy.deepcopy(self).cpu().prior()  # all of it: a prior may borrow the encoder

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Draws latents from the prior and decodes them.

        Warning:
            An autoregressive prior takes D passes.

        Arguments:
            count: The number of images n.
            seed: The seed of the draws.

        Returns:
            The pixels' probabilities of being 1, (n, H, W), on the CPU.
        """
        with global_stream(seed, "sample"):
            z = self.prior_on_cpu().sample((count,))
        images = self.likelihood.mean(self.decode(z.to(next(self.parameters()).device)))
        return images.unflatten(-1, self.shape).cpu()


def build(
    trial: Trial, shape: tuple[int, int], images: Tensor | None = None, levels: int = 1
) -> VAE:
    """Builds a trial's model with its initial weights, on the CPU.

    Encoder, decoder and prior are initialised from streams of their own: at one seed all priors
    share the encoder's and the decoder's initial weights.

    Arguments:
        trial: The description.
        shape: The height and width of an image, pixels.
        images: The training images as uint8 in 0..levels, (N, P), for priors that start from them.
        levels: The intensity that stands for one.

    Example:
        >>> vae = build(Trial(prior="gauss", latent=2, net="mlp[hidden=8]"), shape=(8, 8))
        >>> vae.sample(3).shape
        torch.Size([3, 8, 8])
    """
    bodies = NETS.build(trial.net, shape, trial.latent)
    with global_stream(trial.seed, "initial encoder"):
        encoder = bodies.encoder()
    with global_stream(trial.seed, "initial decoder"):
        decoder = bodies.decoder()
    with global_stream(trial.seed, "initial prior"):
        space = Latent(trial.latent, encoder, images, levels, math.prod(shape))
        prior = PRIORS.build(trial.prior, space)
    if not isinstance(prior, LazyDistribution):
        raise InputError(
            f"the prior '{trial.prior}' returned a {type(prior).__name__}: expected a "
            "zuko.lazy.LazyDistribution, such as a zuko flow"
        )
    return VAE(
        encoder, decoder, prior, shape=shape, latent=trial.latent, precision=trial.precision
    )
