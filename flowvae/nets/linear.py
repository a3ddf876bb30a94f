"""A linear layer whose weights' gradients need no copy when models train as a stack.

`vmap` makes one batched product of the layers of S models. Autograd then computes the gradient of
the weights transposed, and copies it into their layout: a tenth of a step's time on an H200. Here
it is computed as it is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from flowvae.numerics.vmap import mapped_axis_first

__all__ = ["Linear"]


class Linear(nn.Linear):
    """torch's layer, (*, inputs) -> (*, outputs)."""

    stacked = False
    """Whether `vmap` maps it, with gradients of our own: for one model they take torch's own half
    as long again on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x W' + b."""
        # autocast casts torch's own layer only, and more axes make of the product a view, which
        # nothing may change in place
        kind = x.device.type
        cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if not self.stacked or cast or x.ndim != 2:
            return super().forward(x)
        return _Mapped.apply(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """Gradients of x W' + b, of one model or with a first axis of models."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            grad @ weight if to_x else None,
            grad.mT @ x if to_weight else None,
            grad.sum(dim=-2) if to_bias else None,
        )


class _Mapped(_Product):
    """The layer of one model on x (B, inputs), with the rule by which `vmap` maps it."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def vmap(
        info: Any,  # noqa: ANN401
        dims: tuple[int | None, ...],
        *arguments: Tensor,
    ) -> tuple[Tensor, int]:
        return _Stacked.apply(*mapped_axis_first(info.batch_size, dims, arguments)), 0


class _Stacked(_Product):
    """The layers of S models: x (S, B, inputs), weight (S, outputs, inputs), bias (S, outputs)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.bmm(x, weight.mT).add_(bias[:, None])
