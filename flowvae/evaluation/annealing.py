"""The evidence, bracketed by annealed importance sampling through any prior.

An importance-sampled estimate of log p(x) errs low by an amount it cannot see. Annealing goes from
a density r(z) to p(x, z) in T small steps instead of one. With w = p(x, z) / r(z), the importance
weight, the path

    g_b = r(z) w^b = r(z)^(1 - b) p(x, z)^b,    0 = b_0 < b_1 < ... < b_T = 1,

starts at a density that is sampled exactly and ends at p(x, z), whose integral is p(x). With
kernels k_t that leave g_(b_t) invariant, a *forward* chain draws e_0 from r and e_t from
k_t(. | e_(t-1)) for t = 1..T-1, and its log weight is

    log W = sum_t (b_t - b_(t-1)) log w(e_(t-1)),    t = 1..T.

E[W] = p(x) exactly, for whatever kernels and any T (T = 1 is importance sampling), so by Jensen's
inequality log (1/C) sum_c W_c of C chains is below log p(x) in the mean.

A *reverse* chain starts from an exact draw e_(T-1) of the true posterior p(z|x) and goes through
the same kernels (detailed balance makes each its own reversal) in the reverse order; there
E[1 / W] = 1 / p(x), so -log (1/C) sum_c 1 / W_c is above log p(x) in the mean. Exact draws exist
for images simulated from the model alone: z ~ p(z), x ~ p(x|z), and that z is a draw of p(z|x).
The C chains share this one start. The bound stands, since an expectation of a mean needs no
independence; they only narrow it less than C starts would. On simulated images the two bracket
log p(x) (bidirectional Monte Carlo), and an importance-sampled estimate of the same images is
held against the bracket. Real images have no such draw: they get the forward bound alone.

There are two starts. The near one is the proposal fitted to each image
(`flowvae.evaluation.fitted_proposal`), a mixture with heavy tails that has q(z|x) as one of its
components; z = m + L e, with m and L of its heaviest component. The other is q(z|x) itself, in
z = mean + std * e. Chains of both bound the same evidence: where one forward bound is lower beyond
its error, its chains want more temperatures, or miss posterior mass.

The kernels are Hamiltonian Monte Carlo in e with identity mass, Metropolis-corrected. They need
log p(z) and its gradient, not the prior's sampler, so that one method audits every prior. The
length of a leapfrog step is a function of b, found in a preliminary run on simulated images of its
own and then frozen, the same for both directions and all images. Each trajectory takes it times a
factor uniform on (0.5, 1], drawn apart from the state, without which trajectories near half a
period return to where they began. The same preliminary run places the temperatures at equal
thermodynamic length, of which d/db is the standard deviation of log w(e) under g_b.

Warning:
    Each bound holds in the mean, not for each image: a lower one can pass an upper one by chance.
    Chains do not cross from one mode of the posterior to another far away. The bounds stand, and
    the bracket is wide: mass that q misses draws the upper bound up.

References:
    Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
    MCMC Using Hamiltonian Dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901
    Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse et al., 2015),
    https://arxiv.org/abs/1511.02543
    On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017),
    https://arxiv.org/abs/1611.04273 . They anneal from the prior, by temperatures of a sigmoid;
    here the proposal and the encoder are nearer starts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowvae.data import check_pixels
from flowvae.errors import InputError
from flowvae.evaluation.fitted_proposal import (
    DEFENSIVE,
    PILOT_SAMPLES,
    Bank,
    Noise,
    draw_noise,
    fit_proposal,
    make_bank,
    prior_log_prob,
    rotations,
)
from flowvae.evaluation.hmc import Draws, Path, Route, run_chains, tune
from flowvae.evaluation.importance_weighting import evaluate, freeze_prior, log_weights, sharp
from flowvae.evaluation.passes import Passes
from flowvae.models.vae import VAE
from flowvae.numerics.precision import matrix_products
from flowvae.numerics.streams import generator, global_stream
from flowvae.trial import Audit, Evaluation

__all__ = ["Bounds", "anneal"]


TILE_ROWS = 2048
"""The chains that run at once, which bounds the memory: each image has a stream of its own, so
this changes nothing but rounding."""
TUNE_IMAGES, TUNE_CHAINS = 16, 4
"""The preliminary run: simulated images, and chains of each."""
POOL, FAILED = 1000, 0.05
"""How many latents are drawn beyond those needed, and the largest share that may not be finite."""


@dataclass(frozen=True)
class Bounds:
    """Bounds and estimates of log p(x), nats, of N simulated and N real images.

    Arguments:
        lower: The forward bound on simulated images, (N,).
        upper: The reverse bound on the same, (N,).
        iw: The audited estimate on the same, (N,), by number of samples.
        index: Which of the given images the real ones are, (N,).
        real_lower: The forward bound on real images, (N,).
        real_iw: The audited estimate on the same, (N,), by number of samples.
        encoder_lower: The forward bound on simulated images by chains from q(z|x), (N,).
        encoder_upper: The reverse bound on the same by chains to q(z|x), (N,).
        encoder_real_lower: The forward bound on real images by chains from q(z|x), (N,).
        betas: The path of the audit's start, b_0..b_T, (T + 1,).
        steps: The leapfrog steps' lengths at b_1..b_(T-1), (T - 1,), in units of e.
        acceptance: The mean probability of acceptance at each of these, (3, T - 1): of forward
            and reverse chains on simulated images, then of forward chains on real ones.
        failed: The share of the prior's draws that were not finite and were passed over.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    iw: dict[int, NDArray[np.float64]]
    index: NDArray[np.int64]
    real_lower: NDArray[np.float64]
    real_iw: dict[int, NDArray[np.float64]]
    encoder_lower: NDArray[np.float64]
    encoder_upper: NDArray[np.float64]
    encoder_real_lower: NDArray[np.float64]
    betas: NDArray[np.float64]
    steps: NDArray[np.float64]
    acceptance: NDArray[np.float64]
    failed: float


@torch.no_grad()
def anneal(
    vae: VAE,
    images: Tensor,
    audit: Audit,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    on_step: Callable[[str, int, int], None] | None = None,
) -> Bounds:
    """Brackets the evidence of a fitted model.

    Densities are float64 if the model is, else float32; log weights are summed in float64.

    Warning:
        Where a share f of the prior's draws is not finite, simulated images come from the rest
        and the upper bound holds up to -log(1 - f) nats.

    Arguments:
        vae: The model; a copy is audited, on `device`.
        images: Real images as uint8 in {0, 1}, (M, P); `audit.images` of them are taken, the same
            for every model and seed.
        audit: The estimator.
        seed: The seed of all draws but that of which real images are taken.
        device: Where to compute.
        on_step: Called with a phase's name and how much of it is done, of how much.

    Raises:
        InputError: There are fewer images than asked for, their pixels are not 0 and 1, the
            prior's sampler fails, or a density is not finite.

    Example:
        >>> from flowvae import Trial, build, load_data
        >>> trial = Trial(prior="gauss", latent=2, net="mlp[hidden=8]")
        >>> data = load_data(trial.dataset)
        >>> audit = Audit(images=5, chains=2, temperatures=3, leapfrogs=1, samples=10)
        >>> bounds = anneal(build(trial, data.shape), data.test, audit, seed=0)
        >>> bounds.lower.shape, bounds.upper.shape, bounds.encoder_lower.shape
        ((5,), (5,), (5,))
    """
    if len(images) < audit.images:
        raise InputError(f"cannot audit {audit.images} images: there are {len(images)}")
    check_pixels(images)
    device = torch.device(device)
    model = sharp(vae, device)
    index = torch.randperm(len(images), generator=generator(0, "audit/images"))[: audit.images]
    real = images[index].to(device)
    evaluation = Evaluation(
        samples=audit.samples, estimator=audit.estimator, precision=model.precision
    )

    def weigh(phase: str, x: Tensor) -> dict[int, NDArray[np.float64]]:
        def on_chunk(done: int, total: int) -> None:
            if on_step:
                on_step(phase, done, total)

        return evaluate(
            model, x.cpu(), evaluation, seed=seed, device=device, on_chunk=on_chunk
        ).loglik

    with matrix_products(model.precision, device):
        z, simulated, failed = _simulate(model, audit.images, seed, "audit/simulate")
        _, rehearsal, _ = _simulate(model, TUNE_IMAGES, seed, "audit/tune")
        frozen = copy.deepcopy(model)
        freeze_prior(frozen)
        passes = Passes(frozen, device)
        starts: dict[str, _Start] = {"encoder": _FromEncoder(frozen, seed)}
        if audit.start == "fitted":
            bank = make_bank(frozen, images, seed, passes)
            starts["fitted"] = _FromProposal(frozen, seed, bank, passes)
        found: dict[str, _Chains] = {}
        for name, start in starts.items():
            path = _tuned(start, rehearsal, audit, seed)
            chains = partial(_bound, start, audit=audit, path=path, seed=seed, on_step=on_step)
            lower, forward = chains(simulated, part="forward")
            upper, reverse = chains(simulated, part="reverse", z=z)
            real_lower, onward = chains(real, part="real")
            for kind, bound in (
                ("simulated", lower),
                ("simulated", upper),
                ("real", real_lower),
            ):
                if bad := int((~np.isfinite(bound)).sum()):
                    raise InputError(
                        f"log p(x, z) is not finite on {bad} of {len(bound)} {kind} images"
                    )
            acceptance = np.stack([forward, reverse, onward])
            found[name] = _Chains(path, lower, upper, real_lower, acceptance)
    chosen, encoder = found[audit.start], found["encoder"]
    return Bounds(
        lower=chosen.lower,
        upper=chosen.upper,
        iw=weigh("weights", simulated),
        index=index.numpy(),
        real_lower=chosen.real_lower,
        real_iw=weigh("real weights", real),
        encoder_lower=encoder.lower,
        encoder_upper=encoder.upper,
        encoder_real_lower=encoder.real_lower,
        betas=chosen.path.betas,
        steps=chosen.path.steps,
        acceptance=chosen.acceptance,
        failed=failed,
    )


class _Chains(NamedTuple):
    """What the chains of one start found; see `Bounds`."""

    path: Path
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    real_lower: NDArray[np.float64]
    acceptance: NDArray[np.float64]


class _Images(NamedTuple):
    """A tile of n images, ready for chains.

    Arguments:
        route: log r and log w.
        whiten: Returns e for latents z, (n, C, D) both.
        start: Returns C exact draws of r, (n, C, D), as e.
    """

    route: Route
    whiten: Callable[[Tensor], Tensor]
    start: Callable[[Draws], Tensor]


class _Start:
    """A density that chains start from.

    Arguments:
        vae: The model, its prior frozen.
        seed: The seed of all draws.
    """

    def __init__(self, vae: VAE, seed: int) -> None:
        self.vae, self.seed = vae, seed

    def prepare(self, x: Tensor, names: Sequence[str]) -> _Images:
        """Returns images (n, P) ready for chains; each has a name for its own draws."""
        raise NotImplementedError


class _FromEncoder(_Start):
    """Chains that start at q(z|x)."""

    def prepare(self, x: Tensor, names: Sequence[str]) -> _Images:
        """Returns images (n, P) ready for chains."""
        posterior = self.vae.encode(x)

        def log_weight(e: Tensor) -> Tensor:
            return log_weights(self.vae, x, e, posterior=posterior).elbo

        def whiten(z: Tensor) -> Tensor:
            return posterior.map(lambda t: t[:, None]).noise(z)

        return _Images(Route(log_weight), whiten, Draws.normal)


class _FromProposal(_Start):
    """Chains that start at a proposal fitted to each image.

    Arguments:
        vae: The model, its prior frozen.
        seed: The seed of all draws.
        bank: Encodings to find far modes with.
        passes: How many latents a pass takes.
    """

    def __init__(self, vae: VAE, seed: int, bank: Bank, passes: Passes) -> None:
        super().__init__(vae, seed)
        self.bank, self.passes = bank, passes
        self.turns = rotations(seed, vae.latent).to(bank.latents)
        self.pilot = self._noise("pilot", PILOT_SAMPLES)  # of all images, in both directions

    def _noise(self, name: str, samples: int) -> Noise:
        """Draws the numbers of an image from a stream of its own, (1, K, *)."""
        noise = draw_noise(self.seed, f"audit/{name}", 1, samples, self.vae.latent)
        return noise.map(lambda t: t.to(self.bank.latents))

    def prepare(self, x: Tensor, names: Sequence[str]) -> _Images:
        """Returns images (n, P) ready for chains."""
        x = x.to(self.bank.latents)
        pilot = self.pilot.map(lambda t: t.expand(len(x), *t.shape[1:]))
        proposal = fit_proposal(self.vae, x, self.bank, self.turns, pilot, self.passes)
        heaviest = proposal.log_shares.argmax(dim=-1)  # (n,)
        rows = torch.arange(len(x), device=x.device)
        mean, factor, inverse, log_det = (
            torch.stack([getattr(gaussian, name) for gaussian in proposal.gaussians])[
                heaviest, rows
            ]
            for name in ("mean", "factor", "inverse", "log_det")
        )

        def place(e: Tensor) -> Tensor:
            return torch.baddbmm(mean[:, None], e, factor.mT)

        def whiten(z: Tensor) -> Tensor:
            return torch.bmm(z - mean[:, None], inverse.mT)

        def log_start(e: Tensor) -> Tensor:
            return proposal.log_prob(place(e), 1 / DEFENSIVE) + log_det[:, None]

        def log_weight(e: Tensor) -> Tensor:
            z = place(e)
            flat = z.flatten(0, 1)
            outputs = self.vae.decode(flat).view(*z.shape[:2], -1)
            log_p = self.vae.likelihood.products(x, outputs)
            log_p = log_p - self.vae.likelihood.log_normaliser(outputs)
            log_p = log_p + prior_log_prob(self.vae, flat).view(z.shape[:2])
            return log_p.double() - proposal.log_prob(z, 1 / DEFENSIVE)

        def start(draws: Draws) -> Tensor:
            each = [self._noise(f"{name}/start", draws.chains) for name in names]
            noise = Noise(*map(torch.cat, zip(*each, strict=True)))
            return whiten(proposal.sample(noise, draws.uniform()[..., 0] < 1 / DEFENSIVE))

        return _Images(Route(log_weight, log_start), whiten, start)


def _tuned(start: _Start, x: Tensor, audit: Audit, seed: int) -> Path:
    """Returns the path, from simulated images (N, P) that serve nothing else."""
    names = [f"tune/{n}" for n in range(len(x))]
    images, draws = start.prepare(x, names), _streams(start.vae, names, TUNE_CHAINS, seed)
    return tune(images.route, audit.temperatures, audit.leapfrogs, draws, images.start(draws))


def _streams(vae: VAE, names: Sequence[str], chains: int, seed: int) -> Draws:
    """Returns the randomness of the chains of images, by name."""
    weights = next(vae.parameters())
    return Draws(
        streams=[generator(seed, f"audit/{name}") for name in names],
        chains=chains,
        features=vae.latent,
        dtype=weights.dtype,
        device=weights.device,
    )


def _bound(
    start: _Start,
    x: Tensor,
    audit: Audit,
    path: Path,
    seed: int,
    part: str,
    on_step: Callable[[str, int, int], None] | None,
    z: Tensor | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the bound of each image and the acceptance: reverse where there are exact draws z.

    The bounds are (N,), nats; x is (N, P), z (N, D).
    """
    tile = max(1, TILE_ROWS // audit.chains)
    transitions = audit.temperatures - 1
    bounds, accepted = [], np.zeros(transitions)
    for first in range(0, len(x), tile):
        some = x[first : first + tile]
        names = [f"{part}/{first + n}" for n in range(len(some))]
        images = start.prepare(some, names)
        draws = _streams(start.vae, names, audit.chains, seed)
        if z is None:
            e = images.start(draws)
        else:
            exact = z[first : first + tile, None]  # (n, 1, D)
            e = images.whiten(exact).expand(-1, audit.chains, -1)

        def report(done: int, before: int = first, now: int = len(some)) -> None:
            if on_step:
                on_step(part, before * transitions + now * done, len(x) * transitions)

        log_w, rates = run_chains(
            images.route, path, audit.leapfrogs, draws, e, reverse=z is not None, on_step=report
        )
        sign = 1 if z is None else -1
        bounds.append(sign * ((sign * log_w).logsumexp(dim=1) - math.log(audit.chains)))
        accepted += rates * len(some) / len(x)
    return torch.cat(bounds).cpu().numpy(), accepted


def _simulate(model: VAE, count: int, seed: int, purpose: str) -> tuple[Tensor, Tensor, float]:
    """Draws latents from the prior and images from the decoder.

    Returns:
        The latents, (N, D); the images as uint8, (N, P), on the model's device; and the share of
        the prior's draws that were not finite and were passed over.
    """
    with global_stream(seed, f"{purpose}/latents"):
        try:
            drawn = model.prior_on_cpu().sample((POOL + 2 * count,))
        except NotImplementedError as error:
            raise InputError(f"the prior cannot be sampled, so not be audited: {error}") from None
    finite = drawn.isfinite().all(dim=-1)
    failed = 1 - finite.double().mean().item()
    if failed > FAILED:
        raise InputError(
            f"{failed:.1%} of the prior's draws are not finite, more than {FAILED:.0%}: images "
            "simulated from the rest would not be the model's, and have no upper bound"
        )
    z = drawn[finite][:count].to(next(model.parameters()).device)
    outputs = model.decode(z)
    noise = torch.rand(outputs.shape, generator=generator(seed, f"{purpose}/pixels"))
    return z, model.likelihood.sample(outputs, noise.to(z.device)), failed
