"""Bodies of the encoder and the decoder.

The encoder maps an image x, (N, P), to the mean and log standard deviation of q(z|x), (N, 2 D);
the decoder maps a latent z, (N, D), to the logits of p(x|z), (N, P). No layer mixes examples.

Papers speak of log-variances, log std^2 = 2 log std, and some clamp them: the options `logvar_min`
and `logvar_max` of every net bound the log standard deviation to [logvar_min / 2, logvar_max / 2].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .errors import InputError
from .linear import Linear
from .options import Count, Real, Widths
from .registry import Registry
from .room import count_weights

__all__ = ["NETS", "Bodies", "check_bodies", "gated", "mlp", "resnet"]

MOST = 2**32
"""Weights of a body: 16 GiB, of which training would hold four such."""


class Bodies(NamedTuple):
    """How to build the two bodies; each is called under a random stream of its own.

    Arguments:
        encoder: Builds the module (N, P) -> (N, 2 D).
        decoder: Builds the module (N, D) -> (N, P).
    """

    encoder: Callable[[], nn.Module]
    decoder: Callable[[], nn.Module]


NETS: Registry[Bodies] = Registry("net")


def check_bodies(spec: str, shape: tuple[int, int], latent: int) -> None:
    """Refuses bodies that cannot be, or are too large for any machine, before one is built.

    Arguments:
        spec: The spec of the net.
        shape: The height and width of an image, pixels.
        latent: The number of latent features D.

    Raises:
        InputError: They have more than MOST weights, or the builder refuses its options.

    Example:
        >>> check_bodies("mlp[hidden=1000000x1000000]", (28, 28), 16)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        flowvae.errors.InputError: the encoder of mlp[hidden=1000000x1000000], ...
    """
    bodies = NETS.build(spec, shape, latent)
    for part, body in bodies._asdict().items():
        try:
            count = count_weights(body)
        except (RuntimeError, TypeError):  # numbers beyond torch's, or a person's own net
            continue
        if count > MOST:
            raise InputError(
                f"the {part} of {spec}, {shape[0]}x{shape[1]} pixels, latent {latent} has {count} "
                f"weights: expected at most {MOST}; give smaller options"
            )


class _Clamp(nn.Module):
    """Keeps the second half of (*, 2 D), the log standard deviations, within bounds."""

    def __init__(self, least: float | None, most: float | None) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, phi: Tensor) -> Tensor:
        mean, log_std = phi.chunk(2, dim=-1)
        return torch.cat([mean, log_std.clamp(self.least, self.most)], dim=-1)


def _clamp(logvar_min: float | None, logvar_max: float | None) -> list[nn.Module]:
    """Returns what follows an encoder's last layer: nothing without bounds.

    Raises:
        InputError: The bounds leave no room.
    """
    if logvar_min is None and logvar_max is None:
        return []
    if logvar_min is not None and logvar_max is not None and logvar_min >= logvar_max:
        raise InputError(
            f"logvar_min {logvar_min:g} is not below logvar_max {logvar_max:g}: expected, for "
            "example, logvar_min=-6,logvar_max=2; 'none' takes a bound away"
        )
    return [_Clamp(*(None if bound is None else bound / 2 for bound in (logvar_min, logvar_max)))]


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
    pixels, clamp = math.prod(shape), _clamp(logvar_min, logvar_max)
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
    pixels, clamp = math.prod(shape), _clamp(logvar_min, logvar_max)
    return Bodies(
        encoder=lambda: _gated([pixels, *hidden, 2 * latent]).extend(clamp),
        decoder=lambda: _gated([latent, *reversed(hidden), pixels]),
    )


class _Residual(nn.Module):
    """A residual block with its activations in front: shortcut(x) + last(relu(first(relu(x)))).

    Arguments:
        channels: The number of channels of x.
        resample: Builds `last` and `shortcut`; none for a block that keeps the size, whose
            shortcut is the identity.
    """

    def __init__(self, channels: int, resample: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = resample() if resample else nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = resample() if resample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.relu(x))  # not in place: the shortcut needs x
        return self.shortcut(x) + self.last(F.relu(h, inplace=True))


def _down(channels: int) -> _Residual:
    """Halves the size, rounded up, and doubles the channels."""
    return _Residual(channels, lambda: nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1))


def _up(channels: int, size: tuple[int, int]) -> _Residual:
    """Undoes `_down` to the given size: of 2 n - 1 and 2 n, which both come down to n."""
    height, width = size
    even = (1 - height % 2, 1 - width % 2)
    return _Residual(
        channels,
        lambda: nn.ConvTranspose2d(
            channels, channels // 2, 3, stride=2, padding=1, output_padding=even
        ),
    )


@NETS.register("resnet", source="Durkan et al., 2019, arXiv 1906.04032")
def resnet(
    shape: tuple[int, int],
    latent: int,
    *,
    channels: Count = 16,
    logvar_min: Real | None = None,
    logvar_max: Real | None = None,
) -> Bodies:
    """Convolutional residual nets, as in the VAE of Neural Spline Flows.

        encoder    1x1 to C channels; 3 times: block, block that halves;  relu; linear
        decoder    linear; 3 times: block, block that doubles;  relu; 1x1 to 1 channel

    with C, 2 C, 4 C, 8 C channels at 28, 14, 7, 4 pixels a side, or whatever sizes rounding up
    gives: the decoder's are the encoder's. All else is 3x3, without batch normalisation.

    The encoder of the paper's code has 64 outputs, and D = 32. For a diagonal Gaussian they are
    mean and log standard deviation as they come, so our last layer has 2 D outputs; for its other
    posteriors, flows, they are what the flow is conditioned on, and one more linear layer makes
    its base's 2 D of them. The code's dropout, 0.2 on OMNIGLOT and 0 elsewhere, is left out.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

        Identity Mappings in Deep Residual Networks (He et al., 2016),
        https://arxiv.org/abs/1603.05027

    Arguments:
        shape: The height and width of an image, pixels.
        latent: The number of latent features D.
        channels: The number of channels C at full size.
        logvar_min: The least log-variance of q(z|x), or none.
        logvar_max: The largest, or none.

    Raises:
        InputError: The bounds of the log-variance leave no room.
    """
    clamp = _clamp(logvar_min, logvar_max)
    sizes = [shape]
    for _ in range(3):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    deep = (8 * channels, *sizes[-1])

    def encoder() -> nn.Module:
        layers: list[nn.Module] = [nn.Unflatten(-1, (1, *shape)), nn.Conv2d(1, channels, 1)]
        for c in (channels, 2 * channels, 4 * channels):
            layers += [_Residual(c), _down(c)]
        layers += [nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(math.prod(deep), 2 * latent)]
        return nn.Sequential(*layers, *clamp)

    def decoder() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(latent, math.prod(deep)), nn.Unflatten(-1, deep)]
        for c, size in zip((8 * channels, 4 * channels, 2 * channels), sizes[2::-1], strict=True):
            layers += [_Residual(c), _up(c, size)]
        layers += [nn.ReLU(inplace=True), nn.Conv2d(channels, 1, 1), nn.Flatten()]
        return nn.Sequential(*layers)

    return Bodies(encoder, decoder)
