"""Multi-layer perceptrons: plain (`mlp`) and gated (`gated`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from flowvae.nets.base import NETS, Bodies, clamp_layers
from flowvae.nets.linear import Linear
from flowvae.specs.values import Real, Widths

__all__ = ["gated", "mlp"]


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


@NETS.register(
    "mlp", source="zuko's tutorial 'VAE with a flow prior'", later=("logvar_min", "logvar_max")
)
def mlp(
    shape: tuple[int, int],
    latent: int,
    *,
    hidden: Widths = (1024, 1024),
    logvar_min: Real | None = None,
    logvar_max: Real | None = None,
) -> Bodies:
    """Multi-layer perceptrons with ReLU, the decoder's widths in reverse order.

    Arguments:
        shape: The height and width of an image, pixels.
        latent: The number of latent features D.
        hidden: The numbers of hidden features, from the image's side.
        logvar_min: The least log-variance of q(z|x), or none.
        logvar_max: The largest, or none.

    Raises:
        InputError: The bounds of the log-variance leave no room.
    """
    pixels, clamp = math.prod(shape), clamp_layers(logvar_min, logvar_max)
    return Bodies(
        encoder=lambda: _perceptron([pixels, *hidden, 2 * latent]).extend(clamp),
        decoder=lambda: _perceptron([latent, *reversed(hidden), pixels]),
    )


def _he(inputs: int, outputs: int) -> Linear:
    layer = Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight)
    return layer


def _gated(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [_he(before, 2 * after), nn.GLU()]  # h and g in one product
    return nn.Sequential(*layers, _he(widths[-2], widths[-1]))


@NETS.register("gated", source="Tomczak and Welling, 2018, arXiv 1705.07120")
def gated(
    shape: tuple[int, int],
    latent: int,
    *,
    hidden: Widths = (300, 300),
    logvar_min: Real | None = -6.0,
    logvar_max: Real | None = 2.0,
) -> Bodies:
    """Multi-layer perceptrons of gated units, as in the VampPrior's line of papers.

        layer(x) = h * sigmoid(g),    h = A x + a,    g = B x + b

    and a linear last layer. Weights start from N(0, 2 / inputs) (He et al., 2015), biases as torch
    has them. A and B are the halves of one matrix, h's first: one product instead of two.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120

        Language Modeling with Gated Convolutional Networks (Dauphin et al., 2017),
        https://arxiv.org/abs/1612.08083

        Delving Deep into Rectifiers (He et al., 2015), https://arxiv.org/abs/1502.01852

    Arguments:
        shape: The height and width of an image, pixels.
        latent: The number of latent features D.
        hidden: The numbers of hidden features, from the image's side.
        logvar_min: The least log-variance of q(z|x), or none.
        logvar_max: The largest, or none.

    Raises:
        InputError: The bounds of the log-variance leave no room.
    """
    pixels, clamp = math.prod(shape), clamp_layers(logvar_min, logvar_max)
    return Bodies(
        encoder=lambda: _gated([pixels, *hidden, 2 * latent]).extend(clamp),
        decoder=lambda: _gated([latent, *reversed(hidden), pixels]),
    )
