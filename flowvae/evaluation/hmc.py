"""Chains that go from a density to another along a path, by Hamiltonian Monte Carlo.

From a start r(e) and a weight w(e), the path is g_b(e) = r(e) w(e)^b for b from 0 to 1. What the
chains' log weights bound is `flowvae.evaluation.annealing`'s.

References:
    Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
    MCMC Using Hamiltonian Dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowvae.errors import InputError

__all__ = [
    "Draws",
    "LogDensity",
    "Path",
    "Point",
    "Route",
    "point",
    "run_chains",
    "transition",
    "tune",
]


LogDensity = Callable[[Tensor], Tensor]
"""A function of e, (N, C, D), with values in nats, (N, C)."""
TUNE_KNOTS, TUNE_ROUNDS = 21, 5
"""The preliminary run: values of b, and transitions at each."""
ACCEPTANCE = 0.8
"""The mean probability of acceptance that the steps' lengths are adapted to."""
GAIN = 0.6
"""How far the log of a step's length moves for a unit of acceptance."""


def standard_gaussian(e: Tensor) -> Tensor:
    """Returns log N(e; 0, I) but for a constant."""
    return -0.5 * e.square().sum(dim=-1)


class Route(NamedTuple):
    """Where chains come from and where they go.

    Arguments:
        log_weight: log w.
        log_start: log r, but for a constant.
    """

    log_weight: LogDensity
    log_start: LogDensity = standard_gaussian


class Path(NamedTuple):
    """Frozen temperatures and step lengths.

    Arguments:
        betas: b_0..b_T, (T + 1,).
        steps: The steps' lengths at b_1..b_(T-1), (T - 1,).
    """

    betas: NDArray[np.float64]
    steps: NDArray[np.float64]


class Point(NamedTuple):
    """Where chains are.

    Arguments:
        e: The whitened latents, (N, C, D).
        log_r: log r(e) but for a constant, (N, C), nats.
        log_w: Their log importance weights log w(e), (N, C), nats.
        grad_r: The gradient of log r in e, (N, C, D).
        grad_w: The gradient of log w in e, (N, C, D).
    """

    e: Tensor
    log_r: Tensor
    log_w: Tensor
    grad_r: Tensor
    grad_w: Tensor


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The randomness of C chains for each of N images.

    Arguments:
        streams: A stream for each image, on the CPU, so that devices share draws.
        chains: The number of chains C.
        features: The number of latent features D.
        dtype: The type of the draws; they are made as float32.
        device: Where they go.
    """

    streams: Sequence[torch.Generator]
    chains: int
    features: int
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")

    def normal(self) -> Tensor:
        """Returns standard Gaussian numbers, (N, C, D)."""
        return self._stack(torch.randn, self.features)

    def uniform(self) -> Tensor:
        """Returns two numbers in [0, 1) for each chain, (N, C, 2)."""
        return self._stack(torch.rand, 2)

    def _stack(self, draw: Callable[..., Tensor], width: int) -> Tensor:
        drawn = [draw(self.chains, width, generator=stream) for stream in self.streams]
        return torch.stack(drawn).to(self.device, self.dtype)


def point(route: Route, e: Tensor) -> Point:
    """Returns the point at e, (N, C, D)."""
    with torch.enable_grad():
        e = e.detach().requires_grad_()
        log_r, log_w = route.log_start(e), route.log_weight(e)
        (grad_r,) = torch.autograd.grad(log_r.sum(), e)
        (grad_w,) = torch.autograd.grad(log_w.sum(), e)
    return Point(e.detach(), log_r.detach(), log_w.detach(), grad_r, grad_w)


@torch.no_grad()
def transition(
    route: Route, here: Point, beta: float, step: float, leapfrogs: int, draws: Draws
) -> tuple[Point, Tensor]:
    """Moves each chain by Hamiltonian Monte Carlo, leaving g_b invariant.

    log g_b(e) = log r(e) + b log w(e), so one value and one gradient of each serve every b, and
    those of the last point are used again. A step that leaves the range of floating point is
    refused.

    Arguments:
        route: log r and log w.
        here: Where the chains are.
        beta: The inverse temperature b.
        step: The longest leapfrog step.
        leapfrogs: The number of leapfrog steps.
        draws: The randomness.

    Returns:
        Where they go, and the probability of acceptance, (N, C).
    """

    def push(at: Point) -> Tensor:
        return at.grad_r + beta * at.grad_w

    def log_density(at: Point, momentum: Tensor) -> Tensor:
        return at.log_r + beta * at.log_w - 0.5 * momentum.square().sum(dim=-1)

    start = draws.normal()
    log_u, jitter = draws.uniform().unbind(dim=-1)
    length = (step * (1 - 0.5 * jitter))[..., None]
    there, momentum = here, start + 0.5 * length * push(here)
    for k in range(leapfrogs):
        there = point(route, there.e + length * momentum)
        momentum = momentum + (length if k < leapfrogs - 1 else 0.5 * length) * push(there)
    log_ratio = log_density(there, momentum) - log_density(here, start)
    accept = log_u.log() < log_ratio  # false for NaN
    moved = (
        torch.where(accept.view(*accept.shape, *[1] * (new.dim() - 2)), new, old)
        for new, old in zip(there, here, strict=True)
    )
    return Point(*moved), log_ratio.exp().clamp(max=1).nan_to_num(0)


@torch.no_grad()
def run_chains(
    route: Route,
    path: Path,
    leapfrogs: int,
    draws: Draws,
    start: Tensor,
    *,
    reverse: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> tuple[Tensor, NDArray[np.float64]]:
    """Runs forward or reverse chains.

    Arguments:
        route: log r and log w.
        path: The temperatures and the steps' lengths.
        leapfrogs: The number of leapfrog steps of a transition.
        draws: The randomness.
        start: Exact draws, (N, C, D): of r, or of the true posterior for reverse chains.
        reverse: Whether the chains go from b = 1 to 0.
        on_step: Called with the number of transitions done.

    Returns:
        The log weights log W, (N, C), float64, nats, and the mean probability of acceptance at
        b_1..b_(T-1), (T - 1,).
    """
    temperatures = len(path.betas) - 1
    steps = range(1, temperatures)
    at = point(route, start)
    increments = np.diff(path.betas)  # [t] follows b_t, [t - 1] precedes it
    log_w = increments[-1 if reverse else 0] * at.log_w.double()
    accepted = torch.zeros(temperatures, dtype=torch.float64, device=at.e.device)
    for done, t in enumerate(reversed(steps) if reverse else steps, start=1):
        step = float(path.steps[t - 1])
        at, rate = transition(route, at, float(path.betas[t]), step, leapfrogs, draws)
        log_w += increments[t - 1 if reverse else t] * at.log_w.double()
        accepted[t] = rate.mean()
        if on_step:
            on_step(done)
    return log_w, accepted[1:].cpu().numpy()


@torch.no_grad()
def tune(route: Route, temperatures: int, leapfrogs: int, draws: Draws, start: Tensor) -> Path:
    """Chooses a path by a preliminary forward run.

    Chains pass a few values of b, denser at both ends. At each, the log of the step's length moves
    in proportion to how far the acceptance is above `ACCEPTANCE`; the variance of log w between
    the chains of an image is averaged over images. Temperatures are then at equal distances of
    int sqrt(Var log w) db, the path on which the mean of log W falls least for chains that mix
    (Gelman and Meng, 1998, https://doi.org/10.1214/ss/1028905934). A chain that would start where
    w is 0 starts at e = 0.

    Arguments:
        route: log r and log w of images simulated for this alone.
        temperatures: The number of increments T.
        leapfrogs: The number of leapfrog steps of a transition.
        draws: The randomness.
        start: Exact draws of r, (N, C, D).

    Raises:
        InputError: log w is not finite.
    """
    knots = _knots()
    possible = route.log_weight(start).isfinite()[..., None]
    at, log_step = point(route, torch.where(possible, start, 0)), math.log(0.3)
    log_steps, variances = [], []
    for k, beta in enumerate(knots):
        tried, seen = [], []
        for _ in range(TUNE_ROUNDS if k else 3 * TUNE_ROUNDS):
            at, rate = transition(route, at, float(beta), math.exp(log_step), leapfrogs, draws)
            log_step += GAIN * (rate.mean().item() - ACCEPTANCE)
            tried.append(log_step)
            seen.append(at.log_w.double().var(dim=1).mean().item())
        log_steps.append(np.mean(tried[1 - TUNE_ROUNDS :]))
        variances.append(np.mean(seen))
    speed = np.sqrt(variances)
    if not np.isfinite(speed).all():
        raise InputError("log p(x, z) is not finite on images simulated from the model")
    length = np.concatenate([[0], np.cumsum(np.diff(knots) * (speed[1:] + speed[:-1]) / 2)])
    betas = np.linspace(0, 1, temperatures + 1)
    if length[-1] > 0:  # else log w is a constant, and any path is exact
        betas[1:-1] = np.interp(betas[1:-1] * length[-1], length, knots)
    return Path(betas, np.exp(np.interp(betas[1:-1], knots, log_steps)))


def _knots() -> NDArray[np.float64]:
    """Returns values of b from 0 to 1 by a sigmoid."""
    rise = 1 / (1 + np.exp(-np.linspace(-5, 5, TUNE_KNOTS)))
    return (rise - rise[0]) / (rise[-1] - rise[0])
