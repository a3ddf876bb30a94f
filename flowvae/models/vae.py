"""The variational autoencoder and its evidence lower bound.

    log p(x) >= E_q(z|x) [ log p(x|z) + log p(z) - log q(z|x) ] = ELBO(x) = -distortion - rate

with q(z|x) a diagonal Gaussian, p(x|z) a product of Bernoullis, and p(z) any prior. The same Monte
Carlo estimate serves every prior: none gets an analytic Kullback-Leibler divergence. Noise is an
argument, so that the bound is a pure function, which `torch.func.vmap` takes as it is.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F  # noqa: N812
from zuko.lazy import LazyDistribution

from flowvae.errors import InputError
from flowvae.nets import NETS
from flowvae.numerics.precision import DTYPES
from flowvae.numerics.streams import global_stream
from flowvae.numerics.vmap import leading
from flowvae.priors import PRIORS, Latent
from flowvae.trial import Precision, Trial

__all__ = ["VAE", "Terms", "build", "gaussian_log_prob", "softplus"]


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
        encoder: The body (N, P) -> (N, 2 D), mean and log standard deviation of q(z|x).
        decoder: The body (N, D) -> (N, P), logits of p(x|z).
        prior: The prior p(z).
        shape: The height and width of an image, pixels.
        latent: The number of latent features D.
        precision: See `Trial`.
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

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation of q(z|x), each (N, D), for x (N, P)."""
        x = x.to(DTYPES[self.precision])
        with self._products(x):
            phi = self.encoder(x)
        mean, log_std = phi.to(x.dtype).chunk(2, dim=-1)
        return mean, log_std

    def decode(self, z: Tensor) -> Tensor:
        """Returns the logits of p(x|z), (N, P), for z (N, D)."""
        with self._products(z):
            logits = self.decoder(z)
        return logits.to(z.dtype)

    def elbo(self, x: Tensor, noise: Tensor, proposals: Tensor | None = None) -> Terms:
        """Estimates the bound with one sample z = mean + std * noise an image.

        Arguments:
            x: The images in {0, 1}, (N, P).
            noise: Standard Gaussian draws, (N, D).
            proposals: The same for a prior that has `draws` of its own, (N * draws, D), or none.

        Returns:
            The terms, each (N,), nats.
        """
        x = x.to(DTYPES[self.precision])
        mean, log_std = self.encode(x)
        z = mean + log_std.exp() * noise
        log_q = gaussian_log_prob(noise, log_std)
        log_p = self.prior(proposals).log_prob(z)
        distortion = _Distortion.apply(self.decode(z), x)
        rate = log_q - log_p
        return Terms(-distortion - rate, rate, distortion)

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
        probabilities = torch.sigmoid(self.decode(z.to(next(self.parameters()).device)))
        return probabilities.unflatten(-1, self.shape).cpu()


class _Distortion(torch.autograd.Function):
    """-log p(x|z) = sum_i softplus(l_i) - x_i l_i, (*,), of logits l and pixels x, (*, P).

    Its gradient is sigmoid(l) - x, in fewer passes over the pixels than autograd makes.
    """

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:
        return softplus(logits).addcmul(x, logits, value=-1).sum(dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        logits, x = ctx.saved_tensors
        return (torch.sigmoid(logits) - x) * grad[..., None], None

    @staticmethod
    def vmap(
        info: Any,  # noqa: ANN401
        dims: tuple[int | None, int | None],
        *arguments: Tensor,
    ) -> tuple[Tensor, int]:
        """Takes the axis that is mapped over as one more of examples."""
        return _Distortion.apply(*leading(info.batch_size, dims, arguments)), 0


def softplus(logits: Tensor) -> Tensor:
    """Returns log(1 + exp(l)), (*,), to rounding in float64 too."""
    return F.softplus(logits, threshold=40.0)  # torch's own threshold, 20, is off by 2e-9


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Returns log N(mean + std * noise; mean, std^2), (*,), for arguments (*, D), nats."""
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


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
