"""Bodies of the encoder and the decoder.

The encoder maps an image x, (N, P), to the mean and log standard deviation of q(z|x), (N, 2 D);
the decoder maps a latent z, (N, D), to the logits of p(x|z), (N, P). No layer mixes examples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from .options import Widths
from .registry import Registry

__all__ = ["NETS", "Bodies", "mlp"]


class Bodies(NamedTuple):
    """How to build the two bodies; each is called under a random stream of its own.

    Arguments:
        encoder: Builds the module (N, P) -> (N, 2 D).
        decoder: Builds the module (N, D) -> (N, P).
    """

    encoder: Callable[[], nn.Module]
    decoder: Callable[[], nn.Module]


NETS: Registry[Bodies] = Registry("net")


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


@NETS.register("mlp", source="zuko's tutorial 'VAE with a flow prior'")
def mlp(shape: tuple[int, int], latent: int, *, hidden: Widths = (1024, 1024)) -> Bodies:
    """Multi-layer perceptrons with ReLU, the decoder's widths in reverse order.

    Arguments:
        shape: The height and width of an image, pixels.
        latent: The number of latent features D.
        hidden: The numbers of hidden features, from the image's side.
    """
    pixels = math.prod(shape)
    return Bodies(
        encoder=lambda: _perceptron([pixels, *hidden, 2 * latent]),
        decoder=lambda: _perceptron([latent, *reversed(hidden), pixels]),
    )
