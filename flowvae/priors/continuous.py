"""The continuous normalizing flow, with a fixed number of solver steps.

A latent moves by dz/dt = f(z, t) from t = 0 to t = 1, where it is N(0, I), and its log-density by

    log p(z) = log N(z(1); 0, I) + int_0^1 tr(df/dz) dt

Both integrals are one classical Runge-Kutta solve of a fixed number of steps. zuko's own flow has
an adaptive solver whose steps are those that the whole batch needs: there an image's density
depends on the others of its batch, by up to 1e-2 nats at random weights.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from zuko.lazy import LazyDistribution

from flowvae.priors.base import PRIORS, Density, Latent
from flowvae.specs.values import Count, Widths

__all__ = ["Continuous", "cnf"]


class _Velocity(nn.Module):
    """A perceptron f(z, t) with tanh, which knows its own Jacobian.

    Time is told by its place in a table of half steps of the solver.
    """

    clock: Tensor

    def __init__(self, features: int, hidden: Widths, frequencies: int, steps: int) -> None:
        super().__init__()
        self.features, self.steps = features, steps
        times = torch.linspace(0, 1, 2 * steps + 1)
        angles = math.pi * times[:, None] * torch.arange(1, frequencies + 1)
        clock = torch.cat([angles.cos(), angles.sin()], dim=1)
        self.register_buffer("clock", clock, persistent=False)
        widths = [features + 2 * frequencies, *hidden, features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, k: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the velocity after k half steps, (n, D), and its divergence tr(df/dz), (n,)."""
        h = torch.cat([z, self.clock[k].expand(len(z), -1)], dim=-1)
        *inner, last = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        slope = torch.eye(h.shape[-1], self.features, dtype=h.dtype, device=h.device)  # dh/dz
        for layer in inner:
            h = torch.tanh(layer(h))
            slope = (1 - h.square())[..., None] * (layer.weight @ slope)  # (n, H, D)
        divergence = torch.einsum("dh,nhd->n", last.weight, slope)
        return last(h), divergence


class Continuous(Density):
    """What N(0, I) becomes when it flows back in time.

    Arguments:
        velocity: The field f.
    """

    def __init__(self, velocity: _Velocity) -> None:
        super().__init__(velocity.features)
        self.velocity = velocity

    def solve(self, z: Tensor, *, back: bool = False) -> tuple[Tensor, Tensor]:
        """Follows latents (n, D) in time; returns them and their integrated divergence, (n,)."""
        steps, way = self.velocity.steps, -1 if back else 1
        step = way / steps
        gained = z.new_zeros(z.shape[:1])
        for n in range(steps):
            k = 2 * (steps - n) if back else 2 * n
            a, da = self.velocity(k, z)
            b, db = self.velocity(k + way, z + step / 2 * a)
            c, dc = self.velocity(k + way, z + step / 2 * b)
            d, dd = self.velocity(k + 2 * way, z + step * c)
            z = z + step / 6 * (a + 2 * (b + c) + d)
            gained = gained + step / 6 * (da + 2 * (db + dc) + dd)
        return z, gained

    def log_density(self, z: Tensor) -> Tensor:
        """Returns log p(z), (n,), nats, for latents (n, D)."""
        u, gained = self.solve(z)
        return gained - 0.5 * (u.square() + math.log(2 * math.pi)).sum(dim=-1)

    def draw(self, count: int) -> Tensor:
        """Draws latents, (count, D)."""
        like = next(self.velocity.parameters())
        u = torch.randn(count, *self.event_shape, dtype=like.dtype, device=like.device)
        return self.solve(u, back=True)[0]


class _Cnf(LazyDistribution):
    def __init__(self, velocity: _Velocity) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, c: Tensor | None = None) -> Continuous:
        return Continuous(self.velocity)


@PRIORS.register(
    "cnf",
    source="Grathwohl et al., 2019, arXiv 1810.01367",
    caveat="density by an ODE solver's fixed steps",
)
def cnf(
    space: Latent, *, hidden: Widths = (64, 64), frequencies: Count = 3, steps: Count = 16
) -> LazyDistribution:
    """Continuous normalizing flow: z moves by dz/dt = f(z, t), its log-density by -tr df/dz.

    The trace is exact, where the paper samples it, and the solver is Runge and Kutta's of fourth
    order with fixed steps, where the paper's is adaptive.

    Warning:
        The density is normalised to the solver's error, which falls with the fourth power of the
        number of steps and rises where f is steep.

    References:
        FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (Grathwohl
        et al., 2019), https://arxiv.org/abs/1810.01367

    Arguments:
        space: The latent space.
        hidden: The numbers of hidden features of f.
        frequencies: The number of frequencies by which f sees the time t.
        steps: The number of steps of the solver.
    """
    return _Cnf(_Velocity(space.features, hidden, frequencies, steps))
