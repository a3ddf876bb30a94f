"""The parts of the bound: rate, information, marginal divergence, and where the latents lie.

With q(z) = (1/N) sum_n q(z|x_n), the aggregate posterior of the N scored images, the ELBO parts as

    ELBO = -distortion - rate,    rate = E[log q(z|x) - log p(z)] = index code + marginal KL
    index code  = E[log q(z|x) - log q(z)] = I(n; z)      what z tells about which image it was
    marginal KL = E[log q(z) - log p(z)] = KL(q(z) || p(z))      what a better prior can remove

means over the images and z ~ q(z|x_n). The first depends on the encoder alone, only the second on
the prior. log q(z) sums over *all* N encodings, exactly; the outer mean is Monte Carlo.

How to read them:

- n has N values, so that the index code is at most log N, whatever the encoder does. Where
  posteriors hardly overlap it is log N and nothing else, and the marginal KL is the rate less
  log N, a number that a larger N lowers: see `Surgery.saturated` and `Surgery.caveat`.
- As statements about all images and not just these N, the two sums are the two sides of a bracket:
  in expectation over sets of N images, the information lies above `index_code` and below
  `index_code_out`, which leaves an image's own encoding out of the sum (Poole et al., 2019). The
  marginal KL hence lies below `marginal_kl` and above `marginal_kl_out`. The latter can be
  negative, which no divergence is: then the other images say nothing about q(z) there.
- Two models' marginal KLs are comparable at the same images and N, and only where neither is
  saturated.
- Var(E[z|x]) > 0.01 is not scale-free: under a learned prior the latent space has no unit of its
  own, and a halved z with a decoder to match is the same model. The relative activity
  Var(mu) / (Var(mu) + E[sigma^2]) is the share of a dimension's variance under q(z) that the image
  decides, whatever the scale; where q(z) has unit variance, as it would match a standard Gaussian,
  the two are equal, and so the threshold is the same.
- The generalisation gap compares different images: beside the seed's, its standard error is that
  of two means over images.

References:
    ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman and
    Johnson, 2016), http://approximateinference.org/2016/accepted/HoffmanJohnson2016.pdf

    On Variational Bounds of Mutual Information (Poole et al., 2019),
    https://arxiv.org/abs/1905.06922

    Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519,
    for active units
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowvae.data import Dataset, check_pixels, draw_binary
from flowvae.errors import InputError
from flowvae.evaluation.importance_weighting import freeze_prior, log_weights
from flowvae.evaluation.passes import TILE_IMAGES, TILE_SAMPLES
from flowvae.evaluation.spline_boxes import outside_box
from flowvae.models.vae import VAE
from flowvae.numerics.precision import DTYPES, matrix_products
from flowvae.numerics.streams import generator, global_stream
from flowvae.posteriors import Posterior

__all__ = ["ACTIVE", "NEAR", "PRIOR_SAMPLES", "Surgery", "dissect", "log_aggregate"]


ACTIVE = 0.01
"""Above it a unit is active, in either definition."""
NEAR, FAR = 0.9, 1.5
"""Saturated: an index code of at least 0.9 log N at a rate of at least 1.5 log N."""
PAIRS = 2**20
"""Pairs of a latent and an encoding held at once: 8 MiB in float64."""
POSTERIOR_SAMPLES, PRIOR_SAMPLES = 10_000, 2_000
"""Latents that are held against the splines' boxes; a prior's cost D passes of the flow each."""
CHUNK = 1_000
"""Latents that pass a flow at once: a spline's knots take some 100 numbers a dimension."""


@dataclass(frozen=True)
class Surgery:
    """The parts of the bound for N images, in the order of the data set.

    Means are over S draws z ~ q(z|x_n) an image; densities are in nats.

    Arguments:
        distortion: -log p(x|z), (N,), nats.
        log_posterior: log q(z|x), (N,), nats; minus the posterior's entropy.
        log_prior: log p(z), (N,), nats.
        log_q: log q(z), q the mean of all N posteriors, (N,), nats.
        log_q_out: The same without the image's own posterior, the mean of N - 1, (N,), nats.
        mean_variance: Var_x(E[z_d|x]), (D,), squared units of z.
        noise_variance: E_x[Var(z_d|x)], (D,), squared units of z; the two add up to q(z)'s.
        train_elbo: The ELBO of training images, by the same estimator, (N',), nats.
        outside_posterior: The share of inputs outside the box of each spline layer, in the order
            of the flow from z, for posterior samples, (L,), in 0..1; L = 0 without splines.
        outside_prior: The same for prior samples, the bad ones left out, (L,).
        bad_samples: The number of prior samples that are not finite: the prior's sampler failed.
        prior_samples: The number of prior samples.
        log_z_error: The standard error of the prior's log normalising constant, nats, where that
            is an estimate; else NaN.
    """

    distortion: NDArray[np.float64]
    log_posterior: NDArray[np.float64]
    log_prior: NDArray[np.float64]
    log_q: NDArray[np.float64]
    log_q_out: NDArray[np.float64]
    mean_variance: NDArray[np.float64]
    noise_variance: NDArray[np.float64]
    train_elbo: NDArray[np.float64]
    outside_posterior: NDArray[np.float64]
    outside_prior: NDArray[np.float64]
    bad_samples: int
    prior_samples: int
    log_z_error: float = math.nan

    @property
    def rate(self) -> NDArray[np.float64]:
        """The rate log q(z|x) - log p(z), (N,), nats."""
        return self.log_posterior - self.log_prior

    @property
    def elbo(self) -> NDArray[np.float64]:
        """The ELBO, (N,), nats."""
        return -self.distortion - self.rate

    @property
    def log_images(self) -> float:
        """The most that `index_code` can be, log N, nats."""
        return math.log(len(self.log_q))

    @property
    def marginal_kl(self) -> float:
        """KL(q(z) || p(z)), nats; of all images' aggregate posterior an upper bound."""
        return float((self.log_q - self.log_prior).mean())

    @property
    def marginal_kl_out(self) -> float:
        """The same with each image's own posterior left out, nats; a lower bound."""
        return float((self.log_q_out - self.log_prior).mean())

    @property
    def index_code(self) -> float:
        """I(n; z) <= log N, nats; of the information about all images a lower bound."""
        return float((self.log_posterior - self.log_q).mean())

    @property
    def index_code_out(self) -> float:
        """The same with each image's own posterior left out, nats; an upper bound, no ceiling."""
        return float((self.log_posterior - self.log_q_out).mean())

    @property
    def saturated(self) -> bool:
        """Whether `index_code` is near log N while the rate is far above: it then tells N."""
        return self._at_ceiling(NEAR * self.log_images, self.index_code)

    @property
    def saturated_out(self) -> bool:
        """Whether `index_code_out` exceeds log N while the rate is far above log N.

        An image's own posterior then outweighs the N - 1 others together at its own latents, where
        their sum is made of tails.
        """
        return self._at_ceiling(self.log_images, self.index_code_out)

    def _at_ceiling(self, ceiling: float, index_code: float) -> bool:
        far = float(self.rate.mean()) >= FAR * self.log_images
        return far and index_code >= ceiling

    @property
    def caveat(self) -> str:
        """Describes what the index code and the marginal KL do not show; empty where nothing."""
        if not (self.saturated or self.saturated_out):
            return ""
        ceiling, rate, count = self.log_images, float(self.rate.mean()), len(self.log_q)
        parts = []
        if self.saturated:
            parts.append(
                f"the index code, {self.index_code:.2f}, is near its ceiling log N = "
                f"{ceiling:.2f} for {count} images: it is a lower bound on the information, and "
                f"the marginal KL, {self.marginal_kl:.2f}, only an upper bound"
            )
        if self.saturated_out:
            negative = ", which no divergence is" if self.marginal_kl_out < 0 else ""
            parts.append(
                f"without an image's own posterior the index code, {self.index_code_out:.2f}, "
                f"exceeds log N = {ceiling:.2f}: an upper bound made of tails, and the marginal "
                f"KL, {self.marginal_kl_out:.2f}{negative}, only a lower bound"
            )
        return f"at a rate of {rate:.2f} nats, " + "; ".join(parts)

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which dimensions have Var_x(E[z_d|x]) > 0.01, (D,)."""
        return self.mean_variance > ACTIVE

    @property
    def relative_activity(self) -> NDArray[np.float64]:
        """Var(mu) / (Var(mu) + E[sigma^2]), (D,), in 0..1."""
        return self.mean_variance / (self.mean_variance + self.noise_variance)

    @property
    def active_units(self) -> int:
        """The number of active units by Burda et al. (2016)."""
        return int(self.active.sum())

    @property
    def active_units_relative(self) -> int:
        """The number of dimensions whose relative activity exceeds 0.01."""
        return int((self.relative_activity > ACTIVE).sum())

    @property
    def elbo_gap(self) -> float:
        """The mean train ELBO less the mean ELBO of the scored images, nats."""
        with np.errstate(invalid="ignore"):  # NaN where both are minus infinity
            return float(self.train_elbo.mean() - self.elbo.mean())


@torch.no_grad()
def dissect(
    vae: VAE,
    data: Dataset,
    *,
    seed: int,
    split: Literal["valid", "test"] = "test",
    samples: int = 5,
    device: str | torch.device = "cpu",
) -> Surgery:
    """Takes a fitted model's bound apart.

    The training images are a fixed draw, as many as the scored ones or all; grey ones are
    binarised once, from a fixed stream, as those of the test split are.

    Arguments:
        vae: The model; a copy is used, on `device` and in float32, or float64 if it was so fitted.
        data: The data set it was fitted to.
        seed: The seed of the draws; at one seed all priors share the posterior's noise.
        split: The images that are scored.
        samples: The number S of draws an image.
        device: Where to compute; the prior is sampled on the CPU.

    Raises:
        InputError: There are fewer than two images, or no draws.

    Example:
        >>> from flowvae import Trial, build, load_data
        >>> trial = Trial(prior="nsf[hidden=8]", latent=2, net="mlp[hidden=8]")
        >>> data = load_data(trial.dataset)
        >>> surgery = dissect(build(trial, data.shape), data, seed=0)
        >>> surgery.log_q.shape, surgery.outside_posterior.shape
        ((360,), (3,))
        >>> surgery.index_code < surgery.log_images, surgery.caveat
        (True, '')
    """
    if split not in ("valid", "test"):
        raise InputError(f"unknown split '{split}': expected valid or test")
    images = getattr(data, split)
    if len(images) < 2:
        raise InputError(f"expected two {split} images or more to compare; got {len(images)}")
    if samples < 1:
        raise InputError(f"expected one draw an image or more; got samples={samples}")
    device = torch.device(device)
    model = copy.deepcopy(vae)
    model.precision = "float64" if vae.precision == "float64" else "float32"
    dtype = DTYPES[model.precision]
    model.to(device, dtype)

    drawn = _prior_samples(model, seed)
    with matrix_products(model.precision, device):
        freeze_prior(model)
        posterior, scored = _draw(model, images, samples, seed, f"surgery/{split}")
        of_train = _train_images(data, len(images))
        _, trained = _draw(model, of_train, samples, seed, "surgery/train")
        good = drawn.isfinite().all(dim=-1)
        latents = scored.z.transpose(0, 1).flatten(0, 1)  # each image's first draw comes first
        density = model.prior()
        outside = outside_box(density, latents[:POSTERIOR_SAMPLES].to(dtype))
        outside_prior = outside_box(density, drawn[good])
    log_q, log_q_out = log_aggregate(scored.z, scored.log_posterior, posterior)
    return Surgery(
        distortion=_array(scored.distortion.mean(dim=1)),
        log_posterior=_array(scored.log_posterior.mean(dim=1)),
        log_prior=_array((scored.log_posterior - scored.rate).mean(dim=1)),
        log_q=_array(log_q.mean(dim=1)),
        log_q_out=_array(log_q_out.mean(dim=1)),
        mean_variance=_array(posterior.mean.var(dim=0, correction=0)),
        noise_variance=_array(posterior.variance.mean(dim=0)),
        train_elbo=_array((-trained.distortion - trained.rate).mean(dim=1)),
        outside_posterior=outside,
        outside_prior=outside_prior,
        bad_samples=int((~good).sum()),
        prior_samples=len(drawn),
        log_z_error=float(getattr(density, "log_z_error", math.nan)),
    )


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.cpu().numpy()


def _prior_samples(vae: VAE, seed: int) -> Tensor:
    """Draws from the prior, (n, D); on the CPU, whose stream all devices share."""
    density = vae.prior_on_cpu()
    sizes = [min(CHUNK, PRIOR_SAMPLES - first) for first in range(0, PRIOR_SAMPLES, CHUNK)]
    with global_stream(seed, "surgery/prior"):
        samples = [density.sample((size,)) for size in sizes]
    return torch.cat(samples).to(next(vae.parameters()).device)


class _Draws(NamedTuple):
    """S draws of each image, and their log-densities and terms, float64."""

    z: Tensor  # (N, S, D)
    log_posterior: Tensor  # (N, S)
    rate: Tensor  # (N, S)
    distortion: Tensor  # (N, S)


def _draw(
    vae: VAE, images: Tensor, samples: int, seed: int, purpose: str
) -> tuple[Posterior, _Draws]:
    """Draws from the posterior of each image; an image's noise depends on its place alone.

    The posteriors are float64, so that log q(z|x) is the density of this very z.
    """
    check_pixels(images)
    weight = next(vae.parameters())
    posteriors, tiles = [], []
    for first in range(0, len(images), TILE_IMAGES):
        x = images[first : first + TILE_IMAGES].to(weight.device)
        shape = (TILE_IMAGES, samples, vae.latent)
        noise = torch.randn(shape, generator=generator(seed, f"{purpose}/{first}"))
        noise = noise[: len(x)].to(weight)  # (n, S, D)
        posterior = vae.encode(x)
        chunks = [
            torch.stack(log_weights(vae, x, part, posterior=posterior))
            for part in noise.split(TILE_SAMPLES, dim=1)
        ]
        _, rate, distortion = torch.cat(chunks, dim=-1).double()
        posteriors.append(posterior.map(Tensor.double))
        each = posteriors[-1].map(lambda t: t[:, None])
        tiles.append(_Draws(*each.sample_with_log_prob(noise.double()), rate, distortion))
    return posteriors[0].join(posteriors[1:]), _Draws(*map(torch.cat, zip(*tiles, strict=True)))


def _train_images(data: Dataset, count: int) -> Tensor:
    """Returns a fixed choice of training images, the same for all models and seeds."""
    chosen = torch.randperm(len(data.train), generator=generator(0, "surgery/train images"))
    x = data.train[chosen[:count]]
    if data.levels == 1:
        return x
    return draw_binary(x, data.levels, generator(0, "surgery/binarise"))


def log_aggregate(
    z: Tensor, log_posterior: Tensor, posterior: Posterior, *, pairs: int = PAIRS
) -> tuple[Tensor, Tensor]:
    """Returns log q(z) for draws of N posteriors under their mean q.

    All N^2 S pairs are summed, block by block of draws; the largest term, a draw's own, is taken
    from `log_posterior` instead, which is free of the others' rounding.

    Arguments:
        z: S draws of each posterior, (N, S, D).
        log_posterior: The log-density of each draw under its own posterior, (N, S), nats.
        posterior: The posteriors, N.
        pairs: The number of pairs held at once; memory and not the result depends on it.

    Returns:
        log q(z), and the same without the posterior that z was drawn from, each (N, S), nats.

    Example:
        >>> from flowvae.posteriors import DiagonalGaussian
        >>> posterior = DiagonalGaussian(torch.zeros(3, 2), torch.zeros(3, 2))
        >>> each = posterior.map(lambda t: t[:, None])
        >>> z, own = each.sample_with_log_prob(torch.zeros(3, 1, 2))
        >>> log_q, log_q_out = log_aggregate(z, own, posterior)
        >>> bool(torch.allclose(log_q, own.double()) and torch.allclose(log_q_out, own.double()))
        True
    """
    count, samples, _ = z.shape
    assert count > 1, "no other posterior"
    own = log_posterior.double()
    z = z.flatten(0, 1).double()
    log_prob = posterior.pairs(at=z)

    rows = max(1, pairs // count)
    table = z.new_empty(rows, count)  # one for all blocks: freed and claimed anew, they pile up
    other = z.new_empty(len(z))
    for first in range(0, len(z), rows):
        block = z[first : first + rows]
        terms = table[: len(block)]
        log_prob(block, out=terms)
        own_column = torch.arange(first, first + len(block), device=z.device) // samples
        terms.scatter_(1, own_column[:, None], -math.inf)
        top = terms.amax(dim=1, keepdim=True)
        # exp is 25 times slower where it underflows; N terms of e^-60 are below the rounding.
        total = terms.sub_(top).clamp_(min=-60).exp_().sum(dim=1)
        other[first : first + rows] = total.log() + top[:, 0]
    other = other.view_as(own)
    return torch.logaddexp(own, other) - math.log(count), other - math.log(count - 1)
