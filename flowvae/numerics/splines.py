"""Monotonic rational-quadratic splines, with their gradients written out.

A spline with K bins maps [-B, B] onto itself and is the identity outside. In unit coordinates,
u = (x + B) / (2 B), its bins have widths p and heights q, which add up to 1, and its knots have
derivatives d, which are 1 at both ends. With (C, D) the lower corner of the bin that u falls into,

    xi = (u - C) / p,   r = xi (1 - xi),   s = q / p
    a = (1 - xi) d_0 + xi s,   b = (1 - xi) s + xi d_1,   den = s + (d_0 + d_1 - 2 s) r
    v = D + q xi a / den,      dv/du = (s / den)^2 ((1 - xi) a + xi b)

It is the function of zuko's `MonotonicRQSTransform`. Left to autograd it is hundreds of small
operations; here they are few, over tensors whose first axis counts the bins, (K, *), since sums
over neighbours in memory are slow.

References:
    Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
    zuko (Rozet et al., 2022), https://github.com/probabilists/zuko, for the bounds on p, q and d
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from flowvae.numerics.vmap import mapped_axis_first

__all__ = ["RationalQuadraticSpline"]


LOG_SLOPE = math.log(1e3)
"""The derivatives lie in [1e-3, 1e3], as do the ratios of two widths and of two heights."""


class _Knots(NamedTuple):
    """A spline's knots in unit coordinates.

    Arguments:
        shrink: 1 + c |phi|, by which the parameters phi were divided, (3 K - 1, *).
        positive: The sizes and the derivatives in one, (3 K - 1, *).
        sizes: The bins' widths and heights, (2, K, *).
        corners: Their upper corners, (2, K, *).
        derivatives: The derivatives at the inner knots, (K - 1, *).
    """

    shrink: Tensor
    positive: Tensor
    sizes: Tensor
    corners: Tensor
    derivatives: Tensor


def _knots(phi: Tensor) -> _Knots:
    """Returns the knots of unconstrained widths, heights and derivatives, (*, 3 K - 1)."""
    positive = phi.movedim(-1, 0).clone(memory_format=torch.contiguous_format)
    bins = (len(positive) + 1) // 3
    shrink = positive.abs()
    shrink[: 2 * bins] *= 2 / LOG_SLOPE
    shrink[2 * bins :] *= 1 / LOG_SLOPE
    shrink += 1
    positive.div_(shrink).exp_()  # bounded: no maximum need be taken out of the softmax
    sizes = positive[: 2 * bins].unflatten(0, (2, bins))
    sizes /= sizes.sum(dim=1, keepdim=True)
    return _Knots(shrink, positive, sizes, sizes.cumsum(dim=1), positive[2 * bins :])


def _bin(knots: _Knots, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the lower corners, the sizes and the derivatives of bins k (1, *), each (2, *)."""
    pair = k.expand(2, *k.shape)
    sizes = knots.sizes.gather(1, pair)[:, 0]
    corners = knots.corners.gather(1, pair)[:, 0] - sizes
    end = torch.ones_like(knots.sizes[0, :1])
    derivatives = torch.cat([end, knots.derivatives, end]).gather(0, torch.cat([k, k + 1]))
    return corners, sizes, derivatives


def _evaluate(x: Tensor, phi: Tensor, bound: float, *, keep: bool) -> tuple[Tensor, ...]:
    """Returns y and log dy/dx, (*,), and, to keep, what the gradients need, each (n, *)."""
    knots = _knots(phi)
    u = (x / (2 * bound)).add_(0.5)
    passed = knots.corners[0, :-1] < u
    corners, sizes, derivatives = _bin(knots, passed.sum(dim=0, keepdim=True))
    inside = x.abs() <= bound
    xi = ((u - corners[0]) / sizes[0]).clamp(0, 1)
    s = sizes[1] / sizes[0]
    a, b = torch.lerp(derivatives[0], s, xi), torch.lerp(s, derivatives[1], xi)
    bend = (derivatives[0] + derivatives[1]).sub_(s, alpha=2)
    r = torch.addcmul(xi, xi, xi, value=-1)
    den = torch.addcmul(s, bend, r)
    share = xi * a / den
    v = torch.addcmul(corners[1], sizes[1], share)
    y = torch.where(inside, (v - 0.5) * (2 * bound), x)
    jacobian = torch.lerp(a, b, xi)
    slope = (s / den).square() * jacobian
    inside = inside.to(x.dtype)
    ladj = slope.log() * inside
    if not keep:
        return y, ladj
    local = torch.stack([xi, r, s, bend, den, share, jacobian, slope, inside])
    kept = (knots.shrink, knots.positive, passed.to(x.dtype), corners, sizes, derivatives)
    return y, ladj, local, *kept


class _Forward(torch.autograd.Function):
    """The values of `_evaluate`, with gradients."""

    @staticmethod
    def forward(x: Tensor, phi: Tensor, bound: float) -> tuple[Tensor, ...]:
        return _evaluate(x, phi, bound, keep=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        ctx.bound = inputs[2]
        ctx.set_materialize_grads(False)  # it would make zeros for all that is kept
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*output[2:])

    @staticmethod
    def vmap(
        info: Any,  # noqa: ANN401
        dims: tuple[int | None, int | None, None],
        x: Tensor,
        phi: Tensor,
        bound: float,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Takes the axis that is mapped over as one more of those that a spline is blind to."""
        x, phi = mapped_axis_first(info.batch_size, dims[:2], (x, phi))
        outputs = _Forward.apply(x, phi, bound)
        return outputs, (0, 0, *[1] * (len(outputs) - 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        if torch.is_grad_enabled():  # it is only where the gradients are to have gradients
            raise NotImplementedError(
                "a spline has no second derivative: use neither create_graph nor "
                "torch.func.grad, which asks for one"
            )
        local, shrink, positive, passed, corners, sizes, (d0, d1) = ctx.saved_tensors
        xi, r, s, bend, den, share, jacobian, slope, inside = local.unbind()
        p, q = sizes.unbind()
        grad_y, grad_l = (torch.zeros_like(xi) if g is None else g for g in gradients[:2])
        grad_l = grad_l * inside
        grad_v = grad_y * inside * (2 * ctx.bound)

        # d share = (d num - share d den) / den,  d ladj = 2 ds / s + d jac / jac - 2 d den / den
        by_num = grad_v * q / den
        by_jac = grad_l / jacobian
        twice = 2 * grad_l
        by_log = twice / den
        by_den = torch.addcmul(by_log, by_num, share)  # of -den
        x2, z = xi * xi, 1 - xi
        z2, tilt = z * z, z - xi
        turn = torch.addcmul(s * tilt, d1, xi).addcmul_(d0, z, value=-1)
        grad_xi = (grad_v * p).mul_(slope).addcmul_(by_jac, turn, value=2)
        grad_xi.addcmul_(by_log * bend, tilt, value=-1)
        grad_s = torch.addcmul(twice / s, by_num, x2).addcmul_(by_jac, r, value=2)
        grad_s.addcmul_(by_den, x2 + z2, value=-1)
        grad_d0 = ((by_num - by_den) * r).addcmul_(by_jac, z2)
        grad_d1 = (by_jac * x2).addcmul_(by_den, r, value=-1)

        # Each corner is the sum of the sizes below it, and sizes are a softmax. With steps t_j = 1
        # up to the bin's own j and 0 above it, t_j - t_{j+1} is its indicator.
        grad_u, per_s = grad_xi / p, grad_s / p
        own = torch.stack(
            [
                (xi * grad_u).addcmul_(s, per_s).neg_(),
                torch.addcmul(per_s, grad_v, share),
            ]
        )
        below = torch.stack([-grad_u, grad_v])
        mean = torch.addcmul(below * corners, own, sizes)
        own, below, mean = own[:, None], below[:, None], mean[:, None]
        end = torch.ones_like(positive[:1])
        steps = torch.cat([end, passed, torch.zeros_like(end)])
        spread = torch.addcmul(-mean, steps[:-1], own).addcmul_(steps[1:], below - own)
        at = steps[:-1] - steps[1:]
        ends = (at[:-1] * grad_d1).addcmul_(at[1:], grad_d0)
        grad_phi = torch.cat([spread.flatten(0, 1), ends]).mul_(positive).div_(shrink.square())
        grad_x = grad_y * (1 - inside)
        grad_x.addcmul_(inside, grad_u, value=1 / (2 * ctx.bound))
        return grad_x, grad_phi.movedim(0, -1), None


class RationalQuadraticSpline(Transform):
    """A monotonic rational-quadratic spline, elementwise.

    Warning:
        It can be differentiated once, by `torch.autograd` (`torch.func.grad` asks for more), and
        its inverse not at all.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Arguments:
        phi: Unconstrained widths, heights and inner derivatives, (*, K + K + K - 1), in one tensor
            or in several.
        bound: The half-width B of the spline's box.

    Example:
        >>> spline = RationalQuadraticSpline(torch.zeros(2, 23))
        >>> spline(torch.tensor([3.0, 7.0]))  # no parameter, no bend
        tensor([3., 7.])
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, *phi: Tensor, bound: float = 5.0) -> None:
        super().__init__()
        self.phi = phi[0] if len(phi) == 1 else torch.cat(phi, dim=-1)
        self.bound = bound

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bins={(self.phi.shape[-1] + 1) // 3}, bound={self.bound})"

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns y and log dy/dx, each (*,), for x (*,)."""
        x, phi = self._broadcast(x)
        if torch.is_grad_enabled():  # under vmap tensors do not tell whether they need gradients
            y, ladj, *_ = _Forward.apply(x, phi, self.bound)
        else:
            y, ladj = _evaluate(x, phi, self.bound, keep=False)
        return y, ladj

    def _broadcast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(x.shape, self.phi.shape[:-1])
        return x.expand(shape), self.phi.expand(*shape, -1)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns log dy/dx, (*,)."""
        return self.call_and_ladj(x)[1]

    def _inverse(self, y: Tensor) -> Tensor:
        """Solves for xi the quadratic equation that the spline is within a bin."""
        y, phi = self._broadcast(y)
        knots = _knots(phi)
        v = y / (2 * self.bound) + 0.5
        corners, sizes, (d0, d1) = _bin(
            knots, (knots.corners[1, :-1] < v).sum(dim=0, keepdim=True)
        )
        s = sizes[1] / sizes[0]
        rise = ((v - corners[1]) / sizes[1]).clamp(0, 1)
        bent = rise * (d0 + d1 - 2 * s)
        a, b, c = s - d0 + bent, d0 - bent, -s * rise
        # never negative but for rounding
        root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
        xi = (-2 * c / (b + root)).clamp(0, 1)  # where the sum cancels it can leave the bin
        u = torch.addcmul(corners[0], sizes[0], xi)
        return torch.where(y.abs() <= self.bound, (u - 0.5) * (2 * self.bound), y)
