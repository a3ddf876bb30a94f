"""Test scores, image by image: nothing is averaged before it is stored.

The evidence of an image is estimated by importance weighting with the encoder as proposal,

    log p(x) >= E[ log (1/K) sum_k w_k ],    w_k = p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x),

a bound that rises to log p(x) as K grows; its gap is about Var(w / p(x)) / (2 K), where that
variance exists: the effective sample size and k-hat say whether it does. One pass over K samples
gives the estimate for every smaller number too, and the ELBO and its terms as means.

References:
    Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution
from zuko.lazy import LazyDistribution

from flowvae.checkpoint import Checkpoint, State
from flowvae.data import check_pixels
from flowvae.errors import InputError, out_of_memory
from flowvae.evaluation.pareto import pareto_khat
from flowvae.models.vae import VAE, Terms
from flowvae.numerics.precision import DTYPES, matrix_products
from flowvae.numerics.prefetch import ahead
from flowvae.numerics.streams import generator, pinned
from flowvae.posteriors import Posterior
from flowvae.trial import Evaluation, Precision

__all__ = [
    "TILE_IMAGES",
    "TILE_SAMPLES",
    "Scores",
    "evaluate",
    "freeze_prior",
    "log_weights",
    "sharp",
]


TILE_IMAGES = 100
TILE_SAMPLES = 50
"""Images and samples of one draw of noise: fixed, so that no chunk size changes the numbers, and a
larger K continues the draws of a smaller one."""
PASS_BYTES = {"cpu": 2**27, "cuda": 2**32}
"""The memory of one pass, bytes: near a CPU's caches, and enough rows to fill a GPU."""
MAX_NOISE_BYTES = 2**31
"""The memory of the noise that is drawn ahead for a GPU, bytes."""


@dataclass(frozen=True)
class Scores:
    """Scores of N images, in the order of the data set, nats.

    Arguments:
        elbo: The ELBO, mean over all samples, (N,).
        rate: Its rate, (N,).
        distortion: Its distortion, (N,).
        loglik: The importance-weighted estimate of log p(x), (N,), by number of samples.
        ess: The effective sample size of the weights, (N,), in 1..K.
        khat: The shape of the weights' tail, (N,); see `flowvae.evaluation.pareto`.
    """

    elbo: NDArray[np.float64]
    rate: NDArray[np.float64]
    distortion: NDArray[np.float64]
    loglik: dict[int, NDArray[np.float64]]
    ess: NDArray[np.float64]
    khat: NDArray[np.float64]


class _Settled(LazyDistribution):
    """A lazy distribution around one that was built before."""

    def __init__(self, density: Distribution) -> None:
        super().__init__()
        self.density = density

    def forward(self, c: Tensor | None = None) -> Distribution:
        return self.density


def freeze_prior(vae: VAE) -> None:
    """Builds the distribution of a model's prior once for all calls; its weights must not change.

    Some priors take their time to build one: their encoder sees hundreds of images first, or they
    estimate a constant.
    """
    with torch.no_grad():
        vae.prior = _Settled(vae.prior())


def sharp(vae: VAE, device: torch.device) -> VAE:
    """Returns a copy of a model whose densities are float64 if its weights are, else float32."""
    precision: Precision = "float64" if vae.precision == "float64" else "float32"
    model = copy.deepcopy(vae).to(device, DTYPES[precision]).requires_grad_(False)
    model.precision = precision
    return model


def log_weights(
    vae: VAE, x: Tensor, noise: Tensor, *, posterior: Posterior | None = None
) -> Terms:
    """Returns the log importance weights and their parts.

    The decoder sees (N K, D) latents; the images are encoded once.

    Arguments:
        vae: The model.
        x: The images in {0, 1}, (N, P).
        noise: Standard Gaussian draws, (N, K, D).
        posterior: q(z|x) of these images, where it is known; else they are encoded.

    Returns:
        The terms, each (N, K), nats; `elbo` is the log weight.
    """
    posterior = vae.encode(x) if posterior is None else posterior
    z, log_q = posterior.map(lambda t: t[:, None]).sample_with_log_prob(noise)  # (N, K, D)
    flat = z.flatten(0, 1)  # (N K, D)
    rate = log_q - vae.prior().log_prob(flat).view(log_q.shape)
    outputs = vae.decode(flat).view(*log_q.shape, -1)  # (N, K, P)
    products = vae.likelihood.products(x, outputs)
    distortion = vae.likelihood.log_normaliser(outputs) - products
    return Terms(-distortion - rate, rate, distortion)


@torch.no_grad()
def evaluate(
    vae: VAE,
    images: Tensor,
    evaluation: Evaluation,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    on_chunk: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Scores:
    """Scores a fitted model.

    Arguments:
        vae: The model; a copy is scored, on `device` and in the evaluation's precision.
        images: The images as uint8 in {0, 1}, (N, P).
        evaluation: The estimator.
        seed: The seed of the draws; at one seed all priors share them.
        device: Where to compute.
        on_chunk: Called with the number of images done and N.
        checkpoint: Where the scoring begins if it holds scores of this model, and keeps them.

    Raises:
        InputError: There are no images, their pixels are not 0 and 1, or the device does not have
            the precision.
        KeyboardInterrupt: The checkpoint was asked to stop; the scores so far are saved.
        torch.OutOfMemoryError: Not even one sample an image fits into the device's memory.

    Example:
        >>> from flowvae import Trial, build, load_data
        >>> trial = Trial(prior="gauss", latent=2, net="mlp[hidden=8]")
        >>> data = load_data(trial.dataset)
        >>> scores = evaluate(build(trial, data.shape), data.test, Evaluation(samples=10), seed=0)
        >>> bool(scores.elbo.mean() < scores.loglik[10].mean()), scores.loglik[10].shape
        (True, (360,))
    """
    if not len(images):
        raise InputError(f"there are no {evaluation.split} images to score")
    check_pixels(images)
    device = torch.device(device)
    model = copy.deepcopy(vae).to(device, DTYPES[evaluation.precision])
    model.precision = evaluation.precision

    def draw(first: int) -> Tensor:
        shape = (TILE_IMAGES, TILE_SAMPLES, model.latent)
        stream = generator(seed, f"evaluation/{first}")
        blocks = range(0, evaluation.samples, TILE_SAMPLES)
        draws = [torch.randn(shape, generator=stream, dtype=torch.float32) for _ in blocks]
        noise = torch.cat(draws, dim=1)
        return pinned(noise[: len(images) - first, : evaluation.samples], device)

    rows: list[Tensor] = []
    part = _part(model, images, evaluation, seed) if checkpoint else ""
    if checkpoint and (state := checkpoint.get(part)):
        rows += state.tensors.values()  # none if it was ended in its first tile

    def pause() -> None:
        if checkpoint and checkpoint.due():
            checkpoint.keep(part, State({"rows": _table(rows)} if rows else {}, {}))

    done = sum(row.shape[1] for row in rows)
    tiles = range(done, len(images), TILE_IMAGES)
    passes = _Passes(min(_samples_at_once(model, device), evaluation.samples), pause)
    noises = ahead(draw, tiles, workers=_drawers(model, evaluation, device))
    with matrix_products(evaluation.precision, device), closing(noises):
        freeze_prior(model)
        for first, noise in zip(tiles, noises, strict=True):
            x = images[first : first + TILE_IMAGES].to(device)
            rows.append(_score_tile(model, x, evaluation, noise, passes))
            if on_chunk:
                on_chunk(first + len(x), len(images))
    table = _table(rows)
    if checkpoint:  # written with its next saving
        checkpoint.put(part, State({"rows": table}, {}))
    elbo, rate, distortion, ess, khat, *loglik = table.numpy()
    ladder = dict(zip(evaluation.ladder, loglik, strict=True))
    return Scores(elbo, rate, distortion, ladder, ess, khat)


def _drawers(vae: VAE, evaluation: Evaluation, device: torch.device) -> int:
    """Returns how many threads draw noise: a GPU is faster than one core can draw for it."""
    if device.type == "cpu":
        return 1
    tile = 4 * TILE_IMAGES * evaluation.samples * vae.latent  # bytes
    return max(1, min(torch.get_num_threads(), MAX_NOISE_BYTES // tile))


def _samples_at_once(vae: VAE, device: torch.device) -> int:
    """Returns how many draws of a tile one pass takes, by memory; a multiple of TILE_SAMPLES."""
    maps = [m.in_channels for m in vae.decoder.modules() if isinstance(m, nn.Conv2d)]
    row = max(16, 4 * sum(maps[-1:]))  # numbers a pixel: several full-size maps are alive at once
    row *= math.prod(vae.shape) * torch.finfo(DTYPES[vae.precision]).bits // 8  # bytes, ample
    return TILE_SAMPLES * max(1, PASS_BYTES[device.type] // (row * TILE_IMAGES * TILE_SAMPLES))


def _table(rows: Sequence[Tensor]) -> Tensor:
    """Joins the scores of tiles, (5 + R, N), on the host."""
    return torch.cat([row.cpu() for row in rows], dim=1)


def _part(vae: VAE, images: Tensor, evaluation: Evaluation, seed: int) -> str:
    """Names the part of a checkpoint that holds these scores, by all that decides them."""
    content = hashlib.sha256(f"{evaluation.id}/{seed}".encode())
    for tensor in (*vae.state_dict().values(), images):
        content.update(tensor.detach().cpu().contiguous().numpy())
    return f"scores/{content.hexdigest()[:16]}"


class _Passes:
    """How many samples one pass through the decoder takes: fewer where memory ran out.

    Arguments:
        size: How many are tried first.
        pause: Called before each pass.
    """

    def __init__(self, size: int, pause: Callable[[], None]) -> None:
        self.size, self.pause = size, pause

    def over(self, vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
        """Returns the terms of all samples, (3, N, K)."""
        posterior = vae.encode(x)
        chunks: list[Tensor] = []
        done = 0
        while done < noise.shape[1]:
            self.pause()
            try:
                terms = log_weights(vae, x, noise[:, done : done + self.size], posterior=posterior)
                chunks.append(torch.stack(terms))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.size == 1:
                    raise
            else:
                done += self.size
                continue
            self.size //= 2  # after the error, which holds the tensors of its pass, is let go of
            if x.is_cuda:
                torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory in scoring: goes on with {self.size} samples an image at a time",
                RuntimeWarning,
                stacklevel=2,
            )
        return torch.cat(chunks, dim=-1)


def _score_tile(
    vae: VAE, x: Tensor, evaluation: Evaluation, noise: Tensor, passes: _Passes
) -> Tensor:
    """Returns elbo, rate, distortion, effective sample size, k-hat, log p by rung, (5 + R, N)."""
    noise = noise.to(x.device, non_blocking=True).to(DTYPES[evaluation.precision])
    terms = passes.over(vae, x, noise).double()  # (3, N, K)
    log_w = terms[0]
    log_sum = log_w.logsumexp(dim=-1)
    ess = (2 * log_sum - (2 * log_w).logsumexp(dim=-1)).exp()
    rungs = [log_w[:, :k].logsumexp(dim=-1) - math.log(k) for k in evaluation.ladder]
    return torch.stack([*terms.mean(dim=-1), ess, pareto_khat(log_w), *rungs])
