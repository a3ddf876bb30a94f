"""A proposal for importance sampling, fitted to the posterior p(z|x) of each image.

The encoder is a poor proposal: trained for the bound, it leaves out tails and shape of p(z|x), and
the average of its importance weights rests on a few of them. Here each image gets a Gaussian with
a full covariance, N(m, L L'), fitted to log p(x, z) in three steps that take no gradient of the
decoder.

*Linearisation.* With z = m + L e, the decoder is replaced by the line that fits it best under
e ~ N(0, I), whose slopes J (D, P) come from differences of its outputs l at 2 D cubature points,
e = +sqrt(D) q_i and -sqrt(D) q_i, where q_1..q_D are the columns of a random rotation. The points
lie where the mass of a Gaussian lies, so that kinks of a ReLU net and curvature are averaged over
it, which derivatives at its centre are not. The precision of e in p(z|x) is then

    A = J diag(V) J' - H,        V = mean of -d2 log p(x|l) / dl2 over the points, (P,),

with H the same differences of the gradient of log p(z); where that has no gradient, H is diagonal,
the second differences of log p(z) along each q_i. The mean moves by L A^-1 g, g (D,) the
differences of log p(x, z) itself, and L L' becomes L A^-1 L', both within bounds. Each step takes
another rotation; from the fourth on, precisions are averaged over the steps, and moves shortened
in proportion: it is iterated posterior linearisation, by a cubature rule, with the averages of
stochastic approximation.

*Far modes.* The decoder's outputs at draws of q(z|x) for many of the images (the bank) give
log p(x, z) of every image at each of them by one matrix product. Where one is near the best and
outside the Gaussian, another Gaussian starts from it, up to three times; it is kept if it ends
apart from the others and has mass.

*Pilot.* A set of draws that serves nothing else gives k-hat of the weights; where it is above 0.7,
or cannot be told, the linearisation goes on, at most twice, and is kept if k-hat falls.

The proposal is a mixture of Student's t distributions with these means and factors, and of the
encoder's q(z|x) (defensive: no weight is more than 20 times the encoder's). The numbers of draws
from both are fixed, and the weights are those of the mixture, whose expectation is exactly p(x).

References:
    Cubature Kalman Filters (Arasaratnam and Haykin, 2009), https://doi.org/10.1109/TAC.2009.2019800
    Posterior Linearization Filter (García-Fernández et al., 2015),
    https://doi.org/10.1109/TSP.2015.2454485
    Safe and Effective Importance Sampling (Owen and Zhou, 2000),
    https://doi.org/10.1080/01621459.2000.10473909
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowvae.errors import out_of_memory
from flowvae.evaluation.pareto import RELIABLE, pareto_khat
from flowvae.evaluation.passes import Passes
from flowvae.models.vae import VAE
from flowvae.numerics.streams import generator, numpy_generator
from flowvae.posteriors import Posterior

__all__ = [
    "PILOT_SAMPLES",
    "Bank",
    "Noise",
    "Proposal",
    "Weights",
    "draw_noise",
    "fit_proposal",
    "make_bank",
    "rotations",
    "weigh",
]


STEPS, MORE_STEPS, MAX_ROUNDS = 6, 6, 2
"""Steps of the linearisation, those that a large k-hat asks for, and how often."""
FULL_STEPS = 3
"""Steps that replace the precision; later ones are averaged with those before."""
STARTING_STD = 1e-3, 1e3
"""Bounds of the standard deviations to start from: an encoder's may be 0."""
MIN_PRECISION, MAX_PRECISION = 0.25, 400.0
"""Bounds of the eigenvalues of A in one step: an axis grows at most 2 and shrinks 20 times."""
MAX_MOVE = 2.0
"""The longest move of a mean, in units of sqrt(D) standard deviations."""
DEFENSIVE = 20
"""One draw in so many is of q(z|x)."""
BANK_LATENTS = 4000
"""The number of latents in a bank."""
FEW_IMAGES = 16
"""How many images are compared with the whole bank at once."""
MAX_BELOW = 20.0
"""How far below log p(x, z) at the best mean a latent may lie to start another Gaussian, nats."""
NEAR = 4.0
"""A latent is outside a Gaussian from D + 4 (sqrt(2 D) + 1) squared standard deviations on."""
SEARCHES = 3
"""How often a far mode of an image is looked for."""
MIN_APART, MAX_LIGHTER = 0.25, 12.0
"""Another Gaussian is kept from D / 4 squared standard deviations on, and up to so many nats of
mass below the heaviest."""
EQUAL_SHARE = 0.1
"""The part of the mixture that is shared equally; the rest is by the mass under each Gaussian."""
PILOT_SAMPLES = 100
"""Draws of a pilot set."""


class Noise(NamedTuple):
    """The random numbers behind K draws for each of N images, the same for all priors.

    Arguments:
        gauss: Standard Gaussian numbers, (N, K, D).
        scale: The square roots of chi-squared numbers over their degrees of freedom, (N, K).
        uniform: Uniform numbers in [0, 1), (N, K).
    """

    gauss: Tensor
    scale: Tensor
    uniform: Tensor

    def of_draws(self, draws: slice) -> Noise:
        """Returns the numbers of some of the draws."""
        return self.map(lambda numbers: numbers[:, draws])

    def map(self, function: Callable[[Tensor], Tensor]) -> Noise:
        """Returns the numbers with a function applied to each tensor."""
        return Noise(*(function(numbers) for numbers in self))

    def of_images(self, images: slice | Tensor) -> Noise:
        """Returns the numbers of some of the images."""
        return self.map(lambda numbers: numbers[images])


def freedom(features: int) -> float:
    """Returns the degrees of freedom of the proposal's t distributions for D latent features.

    Heavy tails cost little at small D, and most of the draws at a large one.
    """
    return min(50.0, max(3.0, 1.5 * features))


def draw_noise(seed: int, purpose: str, images: int, samples: int, features: int) -> Noise:
    """Draws the numbers of a tile, float32, from streams of its own."""
    stream = generator(seed, purpose)
    degrees = freedom(features)
    squares = numpy_generator(seed, purpose).chisquare(degrees, (images, samples)) / degrees
    gauss = torch.randn((images, samples, features), generator=stream)
    uniform = torch.rand((images, samples), generator=stream)
    return Noise(gauss, torch.from_numpy(squares).sqrt().float(), uniform)


class Bank(NamedTuple):
    """Latents whose log p(x, z) is known for every image.

    Arguments:
        latents: The latents z, (M, D).
        outputs: The decoder's outputs for them, (M, P).
        offset: log p(z) - A(l), (M,), nats.
    """

    latents: Tensor
    outputs: Tensor
    offset: Tensor


def make_bank(vae: VAE, images: Tensor, seed: int, passes: Passes) -> Bank:
    """Draws latents of q(z|x) for images (N, P), evenly spaced, and decodes them."""
    device = next(vae.parameters()).device
    rows = torch.linspace(0, len(images) - 1, BANK_LATENTS).round().long()
    noise = torch.randn((BANK_LATENTS, vae.latent), generator=generator(seed, "fitted/bank"))
    posterior = vae.encode(images[rows].to(device))
    latents = posterior.sample(noise.to(posterior.mean))
    outputs = torch.cat(
        passes.over(lambda part: vae.decode(latents[part]), BANK_LATENTS, latents=1)
    )
    offset = prior_log_prob(vae, latents) - vae.likelihood.log_normaliser(outputs)
    return Bank(latents, outputs, offset)


def prior_log_prob(vae: VAE, z: Tensor) -> Tensor:
    """Returns log p(z), (n,), nats, of latents (n, D).

    It is -inf outside the prior's support, which is where the density is NaN or cannot be
    computed.
    """
    try:
        log_p = vae.prior().log_prob(z)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        if out_of_memory(error):
            raise
        if len(z) == 1:
            return z.new_full((1,), -math.inf)
        return torch.cat([prior_log_prob(vae, half) for half in z.tensor_split(2)])
    return torch.where(log_p.isnan(), -math.inf, log_p)


def _prior_terms(vae: VAE, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns log p(z), (n,), and its gradient, (n, D), or none where it has none."""
    try:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_p = vae.prior().log_prob(z)
            (gradient,) = torch.autograd.grad(log_p.sum(), z)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        if out_of_memory(error):
            raise
        return prior_log_prob(vae, z.detach()), None
    log_p = log_p.detach()
    return torch.where(log_p.isnan(), -math.inf, log_p), _finite(gradient)


def _finite(values: Tensor) -> Tensor:
    """Returns the values with 0 where they are not finite."""
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


class _Gaussians(NamedTuple):
    """N Gaussians N(mean, factor factor').

    Arguments:
        mean: m, (N, D).
        factor: L, (N, D, D), of any shape.
        inverse: Its inverse, (N, D, D).
        log_det: log |det L|, (N,).
        log_joint: log p(x, z) where the mean was one step ago, (N,), nats.
    """

    mean: Tensor
    factor: Tensor
    inverse: Tensor
    log_det: Tensor
    log_joint: Tensor

    @classmethod
    def diagonal(cls, mean: Tensor, std: Tensor) -> _Gaussians:
        """Returns Gaussians by their means and standard deviations, (N, D), within bounds."""
        std = std.clamp(*STARTING_STD)
        log_joint = torch.full_like(mean[:, 0], -math.inf)
        factor, inverse = torch.diag_embed(std), torch.diag_embed(1 / std)
        return cls(mean, factor, inverse, std.log().sum(dim=-1), log_joint)

    def of_images(self, rows: slice | Tensor) -> _Gaussians:
        """Returns those of some of the images."""
        return _Gaussians(*(values[rows] for values in self))

    def replaced(self, rows: Tensor, others: _Gaussians) -> _Gaussians:
        """Returns these with others in some rows."""
        pairs = zip(self, others, strict=True)
        return _Gaussians(*(values.index_put((rows,), new) for values, new in pairs))

    @property
    def log_mass(self) -> Tensor:
        """The log of the integral of p(x, z), (N,), nats, were it Gaussian with this shape."""
        return self.log_joint + self.log_det + 0.5 * self.mean.shape[-1] * math.log(2 * math.pi)

    def distance(self, z: Tensor) -> Tensor:
        """Returns the squared distance of latents (N, K, D) in standard deviations, (N, K)."""
        return torch.bmm(z - self.mean[:, None], self.inverse.mT).square().sum(dim=-1)


def rotations(seed: int, features: int) -> Tensor:
    """Returns a random rotation for each step of the linearisation, (T, D, D), on the CPU."""
    stream = generator(seed, "fitted/rotations")
    count = STEPS + MAX_ROUNDS * MORE_STEPS
    return torch.linalg.qr(torch.randn((count, features, features), generator=stream)).Q


def _step(vae: VAE, x: Tensor, at: _Gaussians, rotation: Tensor, share: float) -> _Gaussians:
    """Takes a step of the linearisation.

    Arguments:
        vae: The model.
        x: The images, (N, P).
        at: The Gaussians so far.
        rotation: A rotation, (D, D).
        share: The weight of this step beside those before, in (0, 1].
    """
    count, features = at.mean.shape
    radius = math.sqrt(features)
    factor, inverse = at.factor @ rotation, rotation.mT @ at.inverse
    ahead = at.mean[:, None] + radius * factor.mT
    behind = at.mean[:, None] - radius * factor.mT
    z = torch.cat([at.mean[:, None], ahead, behind], dim=1).flatten(0, 1)  # (N (2 D + 1), D)
    log_prior, gradient = _prior_terms(vae, z)
    outputs = vae.decode(z).view(count, 2 * features + 1, -1)
    log_joint = vae.likelihood.products(x, outputs) - vae.likelihood.log_normaliser(outputs)
    log_joint = log_joint + log_prior.view(count, -1)
    slopes = _differences(outputs) / (2 * radius)  # (N, D, P)
    spread = vae.likelihood.curvature(outputs[:, 1:]).mean(dim=1, keepdim=True)  # (N, 1, P)
    precision = torch.bmm(slopes * spread, slopes.mT)
    if gradient is not None:
        gradient = gradient.view(count, 2 * features + 1, features)
        precision = precision - torch.bmm(_differences(gradient) / (2 * radius), factor)
    else:  # its second derivatives along the points' directions alone
        centre, *ends = log_prior.view(count, -1).split([1, features, features], dim=1)
        bend = _finite(sum(ends) - 2 * centre) / radius**2
        precision = precision - torch.diag_embed(bend)
    one = torch.eye(features, dtype=z.dtype, device=z.device)
    precision = (1 - share) * one + share * 0.5 * (precision + precision.mT)
    usable = precision.isfinite().all(dim=(-2, -1), keepdim=True)
    values, vectors = torch.linalg.eigh(torch.where(usable, precision, one))
    values = values.clamp(MIN_PRECISION, MAX_PRECISION)
    slope = share * _finite(_differences(log_joint[..., None])[..., 0]) / (2 * radius)  # (N, D)
    move = (vectors @ ((vectors.mT @ slope[..., None]) / values[..., None]))[..., 0]
    longest = MAX_MOVE * radius / move.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    move = move * longest.clamp(max=1)
    roots = values.sqrt()
    return _Gaussians(
        at.mean + (factor @ move[..., None])[..., 0],
        (factor @ vectors) / roots[:, None],
        roots[..., None] * (vectors.mT @ inverse),
        at.log_det - roots.log().sum(dim=-1),
        log_joint[:, 0],
    )


def _differences(values: Tensor) -> Tensor:
    """Returns the differences across the centre, (N, D, *), of values at all points."""
    _, ahead, behind = values.split([1, values.shape[1] // 2, values.shape[1] // 2], dim=1)
    return ahead - behind


def _linearise(
    vae: VAE, x: Tensor, start: _Gaussians, turns: Tensor, first: int, passes: Passes
) -> _Gaussians:
    """Takes a step by each rotation, (T, D, D); `first` is the number of the first step."""

    def steps(rows: slice) -> _Gaussians:
        at = start.of_images(rows)
        for number, rotation in enumerate(turns, first):
            share = 1.0 if number < FULL_STEPS else 1 / (number - FULL_STEPS + 2)
            at = _step(vae, x[rows], at, rotation, share)
        return at

    parts = passes.over(steps, len(x), latents=2 * vae.latent + 1) or [start]
    return _Gaussians(*map(torch.cat, zip(*parts, strict=True)))


class Proposal(NamedTuple):
    """A proposal for each of N images: a mixture of t distributions, and of q(z|x).

    Arguments:
        gaussians: C of them, 1 to 4; an image may use fewer.
        log_shares: The logs of their shares, (N, C), -inf where there is none.
        posterior: q(z|x).
    """

    gaussians: tuple[_Gaussians, ...]
    log_shares: Tensor
    posterior: Posterior

    def sample(self, noise: Noise, defensive: Tensor) -> Tensor:
        """Returns draws, (N, K, D); of q(z|x) where `defensive`, (K,) or (N, K), is true."""
        ends = self.log_shares.exp().cumsum(dim=-1)[..., :-1]  # (N, C - 1)
        chosen = (noise.uniform[..., None] >= ends[:, None]).sum(dim=-1)  # (N, K)
        steps = noise.gauss / noise.scale[..., None]
        z = torch.zeros_like(steps)
        for index, gaussian in enumerate(self.gaussians):
            moved = torch.baddbmm(gaussian.mean[:, None], steps, gaussian.factor.mT)
            z = torch.where((chosen == index)[..., None], moved, z)
        encoded = self.posterior.map(lambda t: t[:, None]).sample(noise.gauss)
        return torch.where(defensive[..., None], encoded, z)

    def log_prob(self, z: Tensor, defensive_share: float, log_q: Tensor | None = None) -> Tensor:
        """Returns the mixture's log-density, (N, K), nats, for latents (N, K, D).

        Arguments:
            z: The latents.
            defensive_share: The share of q(z|x).
            log_q: log q(z|x), (N, K), where it is known; else it is computed.
        """
        if log_q is None:
            log_q = self.posterior.map(lambda t: t[:, None]).log_prob(z)
        features = z.shape[-1]
        degrees = freedom(features)
        power = (degrees + features) / 2
        constant = math.lgamma(power) - math.lgamma(degrees / 2)
        constant -= features / 2 * math.log(degrees * math.pi)
        log_q = torch.where(log_q.isnan(), -math.inf, log_q.double())
        parts = [log_q + _log(defensive_share)]
        for gaussian, log_share in zip(self.gaussians, self.log_shares.mT, strict=True):
            tail = power * torch.log1p(gaussian.distance(z).double() / degrees)
            level = log_share - gaussian.log_det.double() + constant + _log(1 - defensive_share)
            parts.append(level[:, None] - tail)
        return torch.stack(parts).logsumexp(dim=0)


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf


def _shares(gaussians: Sequence[_Gaussians], usable: Tensor) -> Tensor:
    """Returns the logs of the shares, (N, C), by mass; `usable`, (N, C), says which there are."""
    mass = torch.stack([gaussian.log_mass.double() for gaussian in gaussians], dim=-1)
    mass = torch.where(usable, mass.nan_to_num(nan=-math.inf), -math.inf)
    mass = torch.where((mass > -math.inf).any(dim=-1, keepdim=True), mass, usable.double().log())
    equal = usable / usable.sum(dim=-1, keepdim=True)
    return ((1 - EQUAL_SHARE) * mass.softmax(dim=-1) + EQUAL_SHARE * equal).log()


@dataclass(frozen=True)
class Weights:
    """Draws of a proposal for N images, weighed.

    Arguments:
        log_w: The log weights log p(x, z) - log q, (N, K), float64, nats.
        rate: log q(z|x) - log p(z) of the defensive draws, (N, E), nats.
        distortion: -log p(x|z) of the same, (N, E), nats.
        outside: How many draws are outside the prior's support, (N,).
    """

    log_w: Tensor
    rate: Tensor
    distortion: Tensor
    outside: Tensor


def weigh(vae: VAE, x: Tensor, proposal: Proposal, noise: Noise, passes: Passes) -> Weights:
    """Draws from a proposal and weighs what is drawn.

    Arguments:
        vae: The model.
        x: The images, (N, P).
        proposal: Their proposal.
        noise: The numbers behind K draws of each.
        passes: How many draws a pass takes.
    """
    samples = noise.uniform.shape[1]
    defensive = torch.arange(samples, device=x.device) % DEFENSIVE == 0
    share = -(-samples // DEFENSIVE) / samples

    def part(some: slice) -> tuple[Tensor, ...]:
        own, numbers = defensive[some], noise.of_draws(some)
        z = proposal.sample(numbers, own)
        # by its noise where that is known: a posterior may be narrower than the rounding of z
        encoder = proposal.posterior.map(lambda t: t[:, None])
        known = encoder.sample_with_log_prob(numbers.gauss)[1]
        log_q = torch.where(own, known, encoder.log_prob(z)).double()
        log_mixture = proposal.log_prob(z, share, log_q)
        log_prior = prior_log_prob(vae, z.flatten(0, 1)).view(z.shape[:2])
        outputs = vae.decode(z.flatten(0, 1)).view(*z.shape[:2], -1)
        distortion = vae.likelihood.log_normaliser(outputs) - vae.likelihood.products(x, outputs)
        log_w = log_prior.double() - distortion.double() - log_mixture
        outside = (log_prior == -math.inf).sum(dim=1, keepdim=True)
        return log_w, (log_q - log_prior)[:, own], distortion[:, own].double(), outside

    parts = passes.over(part, samples)
    log_w, rate, distortion, outside = (torch.cat(t, dim=1) for t in zip(*parts, strict=True))
    return Weights(log_w, rate, distortion, outside.sum(dim=1))


def fit_proposal(
    vae: VAE, x: Tensor, bank: Bank, turns: Tensor, pilot: Noise, passes: Passes
) -> Proposal:
    """Fits a proposal to each of N images.

    Arguments:
        vae: The model, its prior frozen.
        x: The images in {0, 1}, (N, P).
        bank: Encodings to find far modes with.
        turns: The rotations, (T, D, D).
        pilot: The numbers behind the pilot set of draws.
        passes: How many latents a pass takes.
    """
    posterior = vae.encode(x)
    start = _Gaussians.diagonal(posterior.mean, posterior.std)
    first = _linearise(vae, x, start, turns[:STEPS], 0, passes)
    proposal = _with_far_modes(vae, x, first, posterior, bank, turns[:STEPS], passes)
    khat = pareto_khat(weigh(vae, x, proposal, pilot, passes).log_w)
    for number in range(STEPS, len(turns), MORE_STEPS):
        (rows,) = torch.where(~(khat <= RELIABLE))
        if not len(rows):
            break
        part, numbers = _of_images(proposal, rows), pilot.of_images(rows)
        more = turns[number : number + MORE_STEPS]
        gaussians = tuple(
            _linearise(vae, x[rows], gaussian, more, number, passes) for gaussian in part.gaussians
        )
        usable = part.log_shares > -math.inf
        part = Proposal(gaussians, _shares(gaussians, usable), part.posterior)
        now = pareto_khat(weigh(vae, x[rows], part, numbers, passes).log_w)
        better = khat[rows].isnan() | (now < khat[rows])
        khat = khat.index_put((rows[better],), now[better])
        proposal = _replaced(proposal, rows[better], _of_images(part, better))
    return proposal


def _of_images(proposal: Proposal, rows: Tensor) -> Proposal:
    """Returns the proposals of some of the images."""
    return Proposal(
        tuple(gaussian.of_images(rows) for gaussian in proposal.gaussians),
        proposal.log_shares[rows],
        proposal.posterior.map(lambda t: t[rows]),
    )


def _replaced(proposal: Proposal, rows: Tensor, others: Proposal) -> Proposal:
    """Returns proposals with others in some rows."""
    pairs = zip(proposal.gaussians, others.gaussians, strict=True)
    return Proposal(
        tuple(gaussian.replaced(rows, new) for gaussian, new in pairs),
        proposal.log_shares.index_put((rows,), others.log_shares),
        proposal.posterior,
    )


def _with_far_modes(
    vae: VAE,
    x: Tensor,
    first: _Gaussians,
    posterior: Posterior,
    bank: Bank,
    turns: Tensor,
    passes: Passes,
) -> Proposal:
    """Adds Gaussians where a latent of the bank is good and outside those that there are."""
    log_joint = vae.likelihood.all_products(x, bank.outputs, bank.offset)  # (N, M)
    gaussians = [first]
    usable = torch.ones((len(x), 1), dtype=torch.bool, device=x.device)
    (rows,) = torch.where((log_joint > first.log_joint[:, None] - MAX_BELOW).any(dim=1))
    _leave_out(log_joint, rows, first.of_images(rows), bank)
    for _ in range(SEARCHES):
        best, index = log_joint[rows].max(dim=1)
        top = torch.stack([gaussian.log_joint[rows] for gaussian in gaussians]).amax(dim=0)
        on = best > top - MAX_BELOW
        rows, index = rows[on], index[on]
        if not len(rows):
            break
        place = first.of_images(rows)._replace(mean=bank.latents[index])
        _leave_out(log_joint, rows, place, bank)
        found, of = _Gaussians.diagonal(place.mean, posterior.std[rows]), rows
        for begin, end in ((0, FULL_STEPS), (FULL_STEPS, len(turns))):  # most are soon home
            found = _linearise(vae, x[of], found, turns[begin:end], begin, passes)
            others = [gaussian.of_images(of) for gaussian in gaussians]
            away = torch.stack([other.distance(found.mean[:, None])[:, 0] for other in others])
            apart = (away > MIN_APART * vae.latent).all(dim=0)
            of, found = of[apart], found.of_images(apart)
        heaviest = torch.stack([gaussian.log_mass[of] for gaussian in gaussians]).amax(dim=0)
        heavy = found.log_mass > heaviest - MAX_LIGHTER
        of, found = of[heavy], found.of_images(heavy)
        if len(of):
            _leave_out(log_joint, of, found, bank)
            gaussians.append(first.replaced(of, found))
            usable = torch.cat([usable, torch.zeros_like(usable[:, :1])], dim=1)
            usable[of, -1] = True
    return Proposal(tuple(gaussians), _shares(gaussians, usable), posterior)


def _leave_out(log_joint: Tensor, rows: Tensor, around: _Gaussians, bank: Bank) -> None:
    """Sets log p(x, z), (N, M), to -inf in some rows where the bank is within Gaussians."""
    features = bank.latents.shape[1]
    edge = features + NEAR * (math.sqrt(2 * features) + 1)
    for part in torch.arange(len(rows), device=rows.device).split(FEW_IMAGES):
        near = around.of_images(part).distance(bank.latents.expand(len(part), -1, -1))
        some = rows[part]
        log_joint[some] = torch.where(near > edge, log_joint[some], -math.inf)
