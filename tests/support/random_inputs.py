"""Random latents and random weights for the tests of what priors do."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from zuko.lazy import LazyDistribution

from flowvae.numerics.streams import generator


def normal(*shape: int, of: str = "z") -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(0, of))


def scramble(prior: LazyDistribution, encoder: nn.Module | None = None) -> LazyDistribution:
    """Draw a flow's weights at random, far from its start, where it is nearly the identity."""
    stream = generator(0, "scramble")
    kept = {id(p) for p in encoder.parameters()} if encoder else set()
    with torch.no_grad():
        for p in prior.parameters():
            if id(p) not in kept:
                p.copy_(0.3 * torch.randn(p.shape, generator=stream, dtype=p.dtype))
    return prior
