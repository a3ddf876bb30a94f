"""Test scores, image by image: nothing is averaged before it is stored.

The evidence of an image is estimated by importance sampling from a proposal r(z),

    log p(x) >= E[ log (1/K) sum_k w_k ],    w_k = p(x|z_k) p(z_k) / r(z_k),   z_k ~ r,

a bound that rises to log p(x) as K grows; its gap is about Var(w / p(x)) / (2 K), where that
variance exists: the effective sample size and k-hat say whether it does. The proposal is fitted
to each image (`flowvae.evaluation.fitted_proposal`), or it is the encoder's q(z|x), whose gap is
large and differs between priors: there one pass over K samples gives the estimate for every
smaller number too. The ELBO and its terms are means over draws of q(z|x).

References:
    Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution
from zuko.lazy import LazyDistribution

from flowvae.checkpoint import Checkpoint, State
from flowvae.data import check_pixels
from flowvae.errors import InputError
from flowvae.estimator import ENCODER
from flowvae.evaluation.fitted_proposal import (
    PILOT_SAMPLES,
    Noise,
    draw_noise,
    fit_proposal,
    make_bank,
    rotations,
    weigh,
)
from flowvae.evaluation.pareto import pareto_khat
from flowvae.evaluation.passes import TILE_IMAGES, TILE_SAMPLES, Passes
from flowvae.models.vae import VAE, Terms
from flowvae.numerics.precision import DTYPES, matrix_products
from flowvae.numerics.prefetch import ahead
from flowvae.numerics.streams import generator, pinned
from flowvae.posteriors import Posterior
from flowvae.trial import Evaluation, Precision

__all__ = [
    "Scores",
    "evaluate",
    "freeze_prior",
    "log_weights",
    "sharp",
]


MAX_NOISE_BYTES = 2**31
"""The memory of the noise that is drawn ahead for a GPU, bytes."""


@dataclass(frozen=True)
class Scores:
    """Scores of N images, in the order of the data set, nats.

    Arguments:
        elbo: The ELBO, mean over the samples of q(z|x), (N,): all, or of a fitted proposal one
            in twenty.
        rate: Its rate, (N,).
        distortion: Its distortion, (N,).
        loglik: The estimate of log p(x), (N,), by number of samples.
        ess: The effective sample size of the weights, (N,), in 1..K.
        khat: The shape of the weights' tail, (N,); see `flowvae.evaluation.pareto`.
        outside: How many samples of a fitted proposal are outside the prior's support, (N,); their
            weights are 0.
    """

    elbo: NDArray[np.float64]
    rate: NDArray[np.float64]
    distortion: NDArray[np.float64]
    loglik: dict[int, NDArray[np.float64]]
    ess: NDArray[np.float64]
    khat: NDArray[np.float64]
    outside: NDArray[np.float64]


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

    rows: list[Tensor] = []
    part = _part(model, images, evaluation, seed) if checkpoint else ""
    if checkpoint and (state := checkpoint.get(part)):
        rows += state.tensors.values()  # none if it was ended in its first tile

    def pause() -> None:
        if checkpoint and checkpoint.due():
            checkpoint.keep(part, State({"rows": _table(rows)} if rows else {}, {}))

    done = sum(row.shape[1] for row in rows)
    tiles = range(done, len(images), TILE_IMAGES)
    with matrix_products(evaluation.precision, device):
        freeze_prior(model)
        kind: type[_Scorer] = {"fitted": _Fitted, "encoder": _Encoder}[evaluation.estimator]
        tile = kind(model, images, evaluation.samples, seed, Passes(model, device, pause))
        with closing(
            ahead(tile.draw, tiles, workers=_drawers(model, evaluation, device))
        ) as drawn:
            for first, noise in zip(tiles, drawn, strict=True):
                x = images[first : first + TILE_IMAGES].to(device)
                rows.append(tile.score(x, noise))
                if on_chunk:
                    on_chunk(first + len(x), len(images))
    table = _table(rows)
    if checkpoint:  # written with its next saving
        checkpoint.put(part, State({"rows": table}, {}))
    elbo, rate, distortion, ess, khat, outside, *loglik = table.numpy()
    ladder = dict(zip(evaluation.ladder, loglik, strict=True))
    return Scores(elbo, rate, distortion, ladder, ess, khat, outside)


def _drawers(vae: VAE, evaluation: Evaluation, device: torch.device) -> int:
    """Returns how many threads draw noise: a GPU is faster than one core can draw for it."""
    if device.type == "cpu":
        return 1
    tile = 4 * TILE_IMAGES * evaluation.samples * vae.latent  # bytes
    return max(1, min(torch.get_num_threads(), MAX_NOISE_BYTES // tile))


def _table(rows: Sequence[Tensor]) -> Tensor:
    """Joins the scores of tiles, (6 + R, N), on the host."""
    return torch.cat([row.cpu() for row in rows], dim=1)


def _part(vae: VAE, images: Tensor, evaluation: Evaluation, seed: int) -> str:
    """Names the part of a checkpoint that holds these scores, by all that decides them."""
    content = hashlib.sha256(f"{evaluation.id}/{seed}".encode())
    for tensor in (*vae.state_dict().values(), images):
        content.update(tensor.detach().cpu().contiguous().numpy())
    return f"scores/{content.hexdigest()[:16]}"


class _Scorer:
    """Scores tiles of images.

    Arguments:
        vae: The model, its prior frozen.
        images: All images, (N, P).
        samples: The number K of draws of an image.
        seed: The seed of the draws.
        passes: How many draws a pass takes.
    """

    def __init__(self, vae: VAE, images: Tensor, samples: int, seed: int, passes: Passes) -> None:
        self.vae, self.count, self.samples = vae, len(images), samples
        self.seed, self.passes = seed, passes
        self.device = next(vae.parameters()).device
        self.dtype = DTYPES[vae.precision]

    def draw(self, first: int) -> Any:  # noqa: ANN401
        """Draws the noise of the tile that begins with an image."""
        raise NotImplementedError

    def score(self, x: Tensor, noise: Any) -> Tensor:  # noqa: ANN401
        """Returns elbo, rate, distortion, ess, k-hat, outside, log p by rung, (6 + R, n)."""
        raise NotImplementedError


class _Encoder(_Scorer):
    """Scores by draws of q(z|x)."""

    def draw(self, first: int) -> Tensor:
        """Draws the noise of a tile, (n, K, D)."""
        shape = (TILE_IMAGES, TILE_SAMPLES, self.vae.latent)
        stream = generator(self.seed, f"evaluation/{first}")
        blocks = range(0, self.samples, TILE_SAMPLES)
        draws = [torch.randn(shape, generator=stream, dtype=torch.float32) for _ in blocks]
        noise = torch.cat(draws, dim=1)
        return pinned(noise[: self.count - first, : self.samples], self.device)

    def score(self, x: Tensor, noise: Tensor) -> Tensor:
        """Returns the scores of images (n, P); see `_Scorer`."""
        noise = noise.to(self.device, non_blocking=True).to(self.dtype)
        posterior = self.vae.encode(x)

        def part(some: slice) -> Tensor:
            return torch.stack(log_weights(self.vae, x, noise[:, some], posterior=posterior))

        terms = torch.cat(self.passes.over(part, self.samples), dim=-1).double()  # (3, n, K)
        outside = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return _scores(terms, terms[0], outside, ENCODER.ladder(self.samples))


class _Fitted(_Scorer):
    """Scores by draws of a proposal that is fitted to each image."""

    def __init__(self, vae: VAE, images: Tensor, samples: int, seed: int, passes: Passes) -> None:
        super().__init__(vae, images, samples, seed, passes)
        self.turns = rotations(seed, vae.latent).to(self.device, self.dtype)
        self.bank = make_bank(vae, images, seed, passes)

    def draw(self, first: int) -> tuple[Noise, Noise]:
        """Draws the noise of a tile: of the pilot set, and of the K draws that are scored."""
        count = min(TILE_IMAGES, self.count - first)

        def numbers(purpose: str, samples: int) -> Noise:
            purpose = f"fitted/{purpose}/{first}"
            noise = draw_noise(self.seed, purpose, TILE_IMAGES, samples, self.vae.latent)
            return noise.of_images(slice(count)).map(lambda t: pinned(t, self.device))

        return numbers("pilot", PILOT_SAMPLES), numbers("score", self.samples)

    def score(self, x: Tensor, noise: tuple[Noise, Noise]) -> Tensor:
        """Returns the scores of images (n, P); see `_Scorer`."""
        pilot, scored = (
            some.map(lambda t: t.to(self.device, non_blocking=True).to(self.dtype))
            for some in noise
        )
        x = x.to(self.dtype)
        proposal = fit_proposal(self.vae, x, self.bank, self.turns, pilot, self.passes)
        weights = weigh(self.vae, x, proposal, scored, self.passes)
        elbo = -weights.rate - weights.distortion
        terms = torch.stack([elbo, weights.rate, weights.distortion])
        return _scores(terms, weights.log_w, weights.outside.double(), (self.samples,))


def _scores(terms: Tensor, log_w: Tensor, outside: Tensor, ladder: Sequence[int]) -> Tensor:
    """Returns the means of the terms, (3, n, E), and what log weights, (n, K), say, (6 + R, n)."""
    log_sum = log_w.logsumexp(dim=-1)
    ess = (2 * log_sum - (2 * log_w).logsumexp(dim=-1)).exp()
    rungs = [log_w[:, :k].logsumexp(dim=-1) - math.log(k) for k in ladder]
    return torch.stack([*terms.mean(dim=-1), ess, pareto_khat(log_w), outside, *rungs])
