"""Work in passes through a decoder, as large as the memory allows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from flowvae.errors import out_of_memory
from flowvae.models.vae import VAE
from flowvae.numerics.precision import DTYPES

__all__ = ["TILE_IMAGES", "TILE_SAMPLES", "Passes"]


TILE_IMAGES = 100
TILE_SAMPLES = 50
"""Images and samples of one draw of noise: fixed, so that no chunk size changes the numbers, and a
larger K continues the encoder's draws of a smaller one."""
PASS_BYTES = {"cpu": 2**27, "cuda": 2**32}
"""The memory of one pass, bytes: near a CPU's caches, and enough rows to fill a GPU."""

Part = TypeVar("Part")


class Passes:
    """How many latents one pass through the decoder takes: fewer where memory ran out.

    Arguments:
        vae: The model.
        device: Where it computes.
        pause: Called before each pass.
    """

    def __init__(
        self, vae: VAE, device: torch.device, pause: Callable[[], None] = lambda: None
    ) -> None:
        maps = [m.in_channels for m in vae.decoder.modules() if isinstance(m, nn.Conv2d)]
        row = max(16, 4 * sum(maps[-1:]))  # numbers a pixel: several full-size maps at once
        row *= math.prod(vae.shape) * torch.finfo(DTYPES[vae.precision]).bits // 8  # bytes, ample
        tile = row * TILE_IMAGES * TILE_SAMPLES
        self.latents = TILE_IMAGES * TILE_SAMPLES * max(1, PASS_BYTES[device.type] // tile)
        """How many latents one pass takes."""
        self.pause = pause

    def over(
        self, function: Callable[[slice], Part], count: int, *, latents: int = TILE_IMAGES
    ) -> list[Part]:
        """Returns what a function makes of 0..count, part by part.

        Arguments:
            function: Computes a part.
            count: The number of units, such as the samples of a tile of images.
            latents: How many latents the decoder sees for a unit.

        Raises:
            torch.OutOfMemoryError: Not even one unit fits into the device's memory.
        """
        parts: list[Part] = []
        done = 0
        while done < count:
            self.pause()
            size = min(count, max(1, self.latents // latents))
            try:
                parts.append(function(slice(done, min(done + size, count))))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or size == 1:
                    raise
            else:
                done += size
                continue
            # after the error, which holds the tensors of its pass, is let go of
            self.latents = max(1, size * latents // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory: scoring continues with {self.latents} latents at a time",
                RuntimeWarning,
                stacklevel=2,
            )
        return parts
