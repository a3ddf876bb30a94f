"""How fast a prior is sampled: latents a second, on the device that scores it."""

from __future__ import annotations

import time

import torch

from flowvae.streams import global_stream
from flowvae.train import synchronise
from flowvae.vae import VAE

__all__ = ["samples_per_second"]

BATCH, MOST, SECONDS = 500, 10_000, 0.2
"""Latents at a time, in all, and the time after which no more are drawn, s."""


@torch.no_grad()
def samples_per_second(vae: VAE, device: str) -> float:
    """Returns the latents drawn from the prior a second, after a small draw to warm up."""
    density, place = vae.prior(), torch.device(device)
    with global_stream(0, "sampling speed"):
        density.sample((8,))
        synchronise(place)
        start, drawn, seconds = time.perf_counter(), 0, 0.0
        while drawn < MOST and seconds < SECONDS:
            density.sample((BATCH,))
            synchronise(place)
            drawn, seconds = drawn + BATCH, time.perf_counter() - start
    return drawn / seconds
