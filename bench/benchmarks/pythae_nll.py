"""Pythae's `get_nll`, rewritten: the baseline of the NLL timings only.

    log p(x) >= log (1/K) sum_k exp( log p(x|z_k) + log p(z_k) - log q(z_k|x) ),   z_k ~ q(z|x)

with a standard Gaussian prior, as in Pythae's `VAE.get_nll` (0.1.2): image after image, and for
each image batch after batch of samples. Every batch encodes as many copies of its image, the
decoder's sigmoid is followed by the binary cross-entropy of probabilities, and each image's
estimate is read from the device before the next begins. Constants that cancel are left out of both
Gaussians. It runs without gradients, as Pythae's own scripts call it. The model here is the
tutorial's (`bench/benchmarks/tutorial_loop.py`); no code is shared with `flowvae`.

References:
    Pythae: Unifying Generative Autoencoders in Python (Chadebec, Vincent and Allassonniere, 2022),
    https://arxiv.org/abs/2206.08309, pythae/models/vae/vae_model.py in
    https://github.com/clementchadebec/benchmark_VAE
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bench.benchmarks.tutorial_loop import NegativeELBO

__all__ = ["nll"]


@torch.no_grad()
def nll(model: NegativeELBO, images: Tensor, samples: int, batch: int) -> float:
    """Returns the mean estimate of -log p(x), nats.

    Arguments:
        model: The tutorial's model, on the images' device; its prior is replaced by the Gaussian.
        images: The images in {0, 1}, floating point, (N, P).
        samples: The number of importance samples K, a multiple of `batch`.
        batch: The number of samples drawn and decoded together.

    Raises:
        ValueError: `batch` does not divide `samples`; Pythae would draw another number.
    """
    if samples % batch:
        raise ValueError(
            f"expected samples that are a multiple of the batch {batch}; got {samples}"
        )
    estimates = []
    for image in images:
        weights = []
        for _ in range(samples // batch):
            copies = torch.cat(batch * [image[None]])  # (batch, P)
            mean, log_std = model.encoder.hyper(copies).chunk(2, dim=-1)
            log_var = 2 * log_std
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
            log_q = -0.5 * (log_var + (z - mean) ** 2 / torch.exp(log_var)).sum(dim=-1)
            log_prior = -0.5 * (z**2).sum(dim=-1)
            pixels = torch.sigmoid(model.decoder.hyper(z))
            entropy = F.binary_cross_entropy(pixels, copies, reduction="none")
            weights.append(log_prior - log_q - entropy.sum(dim=-1))
        log_weights = torch.cat(weights)
        estimates.append((log_weights.logsumexp(0) - math.log(samples)).item())
    return -sum(estimates) / len(estimates)
