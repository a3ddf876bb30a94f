"""Independent streams of random numbers, one for each seed and purpose.

At one seed, every prior meets the same minibatches, the same posterior noise and the same initial
encoder and decoder, because each of these has a stream of its own: what one purpose draws never
shifts what another gets. Streams live on the CPU, so that devices share them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = ["generator", "global_stream", "numpy_generator", "pinned"]


def _state(seed: int, purpose: str) -> int:
    digest = hashlib.sha256(f"flowvae/{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: what torch takes


def generator(seed: int, purpose: str) -> torch.Generator:
    """Returns the CPU generator of the stream `(seed, purpose)`, at its start.

    Example:
        >>> a, b = generator(0, "noise"), generator(0, "order")
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        False
    """
    return torch.Generator().manual_seed(_state(seed, purpose))


def numpy_generator(seed: int, purpose: str) -> np.random.Generator:
    """Returns numpy's generator of the stream `(seed, purpose)`, for what torch cannot draw."""
    return np.random.default_rng(_state(seed, purpose))


@contextmanager
def global_stream(seed: int, purpose: str) -> Iterator[None]:
    """Lends torch's global CPU generator to the stream `(seed, purpose)`, then gives it back.

    Layers draw their initial weights from the global generator and take no other.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_state(seed, purpose))
        yield


def pinned(drawn: Tensor, device: torch.device) -> Tensor:
    """Returns draws where a CUDA device copies from by itself; for other devices as they are."""
    return drawn.pin_memory() if device.type == "cuda" else drawn
