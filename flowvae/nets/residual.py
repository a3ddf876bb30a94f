"""Convolutional residual nets."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from flowvae.nets.base import NETS, Bodies, clamp_layers
from flowvae.specs.values import Count, Real

__all__ = ["resnet"]


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
    clamp = clamp_layers(logvar_min, logvar_max)
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
