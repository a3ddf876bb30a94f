"""The likelihood of binary images: a product of Bernoullis, whose logits l the decoder returns.

    log p(x|z) = sum_i x_i l_i - log(1 + exp(l_i)) = x . l - A(l)

In the exponential family's words, l is its natural parameter and A its log-normaliser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from flowvae.numerics.vmap import mapped_axis_first

__all__ = ["Bernoulli"]


class Bernoulli:
    """A product of Bernoullis over the pixels of a binary image; a `Likelihood`.

    Example:
        >>> likelihood = Bernoulli()
        >>> x, logits = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
        >>> likelihood.log_prob(x, logits), likelihood.mean(logits), likelihood.curvature(logits)
        (tensor([-1.3863]), tensor([[0.5000, 0.5000]]), tensor([[0.2500, 0.2500]]))
    """

    def log_prob(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Returns log p(x|z), (*,), nats, for pixels in {0, 1} and logits, (*, P) of one type."""
        return _LogProb.apply(outputs, x)

    def log_normaliser(self, outputs: Tensor) -> Tensor:
        """Returns A(l) = sum_i log(1 + exp(l_i)), (*,), nats, for logits (*, P)."""
        return _softplus(outputs).sum(dim=-1)

    def products(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Returns x . l, (N, K), nats, for images (N, P) and K logits of each, (N, K, P)."""
        return torch.bmm(outputs, x.to(outputs.dtype)[:, :, None])[..., 0]

    def all_products(self, x: Tensor, outputs: Tensor, offset: Tensor) -> Tensor:
        """Returns x . l + offset, (N, n), nats, for images (N, P), logits (n, P), offsets (n,)."""
        return torch.addmm(offset, x.to(outputs.dtype), outputs.T)

    def mean(self, outputs: Tensor) -> Tensor:
        """Returns the pixels' probabilities of being 1, (*, P), for logits (*, P)."""
        return torch.sigmoid(outputs)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Draws images, uint8, (*, P), from logits and noise, uniform in [0, 1), (*, P)."""
        return (noise < self.mean(outputs)).to(torch.uint8)

    def curvature(self, outputs: Tensor) -> Tensor:
        """Returns p (1 - p), (*, P), p the mean: minus the second derivative of log p(x|z)."""
        p = self.mean(outputs)
        return p * (1 - p)


class _LogProb(torch.autograd.Function):
    """log p(x|z) = sum_i x_i l_i - softplus(l_i), (*,), of logits l and pixels x, (*, P).

    Its gradient is x - sigmoid(l), in fewer passes over the pixels than autograd makes.
    """

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:
        return _softplus(logits).addcmul(x, logits, value=-1).sum(dim=-1).neg_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        logits, x = ctx.saved_tensors
        return (x - torch.sigmoid(logits)) * grad[..., None], None

    @staticmethod
    def vmap(
        info: Any,  # noqa: ANN401
        dims: tuple[int | None, int | None],
        *arguments: Tensor,
    ) -> tuple[Tensor, int]:
        """Takes the axis that is mapped over as one more of examples."""
        return _LogProb.apply(*mapped_axis_first(info.batch_size, dims, arguments)), 0


def _softplus(logits: Tensor) -> Tensor:
    """Returns log(1 + exp(l)), (*,), to rounding in float64 too."""
    return F.softplus(logits, threshold=40.0)  # torch's own threshold, 20, is off by 2e-9
