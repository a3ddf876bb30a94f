"""Base of the nets: their registry, the bodies' interface and size check."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from flowvae.errors import InputError
from flowvae.numerics.size_limits import count_weights
from flowvae.posteriors import DiagonalGaussian
from flowvae.specs.registry import Registry

__all__ = ["NETS", "Bodies", "check_bodies", "clamp_layers"]


MAX_WEIGHTS = 2**32
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
        InputError: They have more than MAX_WEIGHTS weights, or the builder refuses its options.

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
        if count > MAX_WEIGHTS:
            raise InputError(
                f"the {part} of {spec}, {shape[0]}x{shape[1]} pixels, latent {latent} has {count} "
                f"weights: expected at most {MAX_WEIGHTS}; give smaller options"
            )


class _Clamp(nn.Module):
    """Keeps the log standard deviations among an encoder's outputs, (*, 2 D), within bounds."""

    def __init__(self, least: float | None, most: float | None) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, outputs: Tensor) -> Tensor:
        mean, log_std = DiagonalGaussian.of_outputs(outputs)
        return DiagonalGaussian(mean, log_std.clamp(self.least, self.most)).outputs


def clamp_layers(logvar_min: float | None, logvar_max: float | None) -> list[nn.Module]:
    """Returns what follows an encoder's last layer: nothing without bounds.

    Raises:
        InputError: The bounds leave no room.
    """
    if logvar_min is None and logvar_max is None:
        return []
    if logvar_min is not None and logvar_max is not None and logvar_min >= logvar_max:
        raise InputError(
            f"logvar_min {logvar_min:g} is not below logvar_max {logvar_max:g}: expected, for "
            "example, logvar_min=-6,logvar_max=2; 'none' removes a bound"
        )
    return [_Clamp(*(None if bound is None else bound / 2 for bound in (logvar_min, logvar_max)))]
