"""The values of pixels: their check, their quantisation to levels, and their binarisation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowvae.errors import InputError

__all__ = ["check_pixels", "draw_binary", "first", "is_binary", "quantise"]


def draw_binary(x: Tensor, levels: int, stream: torch.Generator) -> Tensor:
    """Draws x ~ Bernoulli(intensity / levels), uint8 of the same shape, for uint8 in 0..levels."""
    draws = torch.randint(levels, x.shape, generator=stream)
    return (x > draws).to(torch.uint8)  # P(x > draw) = x / levels exactly


def check_pixels(images: Tensor, most: int = 1, part: str = "given") -> None:
    """Raises for images that are not uint8 in 0..most: torch's Bernoulli accepts them silently."""
    if images.dtype != torch.uint8 or (len(images) and int(images.max()) > most):
        raise InputError(
            f"the {part} images must be uint8 in 0..{most}; got {images.dtype} up to "
            f"{images.max().item() if len(images) else 0}: binarise them first"
        )


def is_binary(images: NDArray) -> NDArray[np.bool_]:
    """Returns whether each pixel is 0 or 1, the same shape."""
    return (images == 0) | (images == 1)


def first(bad: NDArray[np.bool_], images: NDArray) -> str:
    """Returns the value and the place of the first bad pixel in words, counted from zero.

    Example:
        >>> grey = np.array([[0.0, 1.0], [0.4, 0.2]])
        >>> first(~is_binary(grey), grey)
        '0.4 at [1, 0]'
    """
    where = np.unravel_index(int(bad.argmax()), bad.shape)
    return f"{images[where]} at [{', '.join(map(str, where))}]"


def quantise(images: NDArray[np.floating], what: str) -> NDArray[np.uint8]:
    """Rounds intensities in [0, 1] to the levels 0..255, the same shape.

    Arguments:
        images: The intensities.
        what: Names them, for messages.

    Raises:
        InputError: Some intensity is not in [0, 1].
    """
    bad = ~((images >= 0) & (images <= 1))  # NaN too
    if bad.any():
        raise InputError(f"{what} must be grey in [0, 1]; got {first(bad, images)}")
    return np.rint(images * np.float32(255)).astype(np.uint8)
