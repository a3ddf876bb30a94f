"""The random draws of each member's epochs, from its seed's streams, ahead of use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flowvae.data import Dataset
from flowvae.numerics.precision import DTYPES
from flowvae.numerics.prefetch import ahead
from flowvae.numerics.streams import generator, pinned
from flowvae.training.optimiser_steps import Epoch
from flowvae.trial import Trial

__all__ = ["Drawn", "Feed", "drawn"]


PURPOSES = ("order", "posterior noise", "binarise", "prior noise")


class Drawn(NamedTuple):
    """An epoch's draws, and the states of the streams before them, by purpose."""

    epoch: Epoch
    before: dict[str, Tensor]


class Feed:
    """The source of one member's draws, epoch by epoch.

    Arguments:
        trial: The member.
        data: Its data set.
        draws: The number of random points that an image brings its prior.
        device: Where the draws are used.
    """

    def __init__(self, trial: Trial, data: Dataset, draws: int, device: torch.device) -> None:
        self.device = device
        self.images, self.levels, self.draws = data.train, data.levels, draws
        self.latent, self.dtype = trial.latent, DTYPES[trial.precision]
        self.streams = {purpose: generator(trial.seed, purpose) for purpose in PURPOSES}

    def begin(self, states: Mapping[str, Tensor]) -> None:
        """Sets the streams to their states before an epoch, as `Drawn` holds them."""
        for purpose, stream in self.streams.items():
            stream.set_state(states[purpose])

    def epoch(self, _: int) -> Drawn:
        """Draws the next epoch."""
        order, noise, grain, own = (self.streams[purpose] for purpose in PURPOSES)
        before = {purpose: stream.get_state() for purpose, stream in self.streams.items()}
        epoch = Epoch(
            torch.randperm(len(self.images), generator=order),
            self._normal(noise),
            torch.empty_like(self.images).random_(0, self.levels, generator=grain)
            if self.levels > 1
            else None,
            self._normal(own, self.draws) if self.draws else None,
        )
        return Drawn(epoch.map(partial(pinned, device=self.device)), before)

    def _normal(self, stream: torch.Generator, *each: int) -> Tensor:
        """Draws N(0, I) for each image, (N, *each, D)."""
        shape = (len(self.images), *each, self.latent)
        return torch.randn(shape, generator=stream, dtype=self.dtype)


@contextmanager
def drawn(feeds: Sequence[Feed], epochs: range) -> Iterator[Iterator[tuple[Drawn, ...]]]:
    """Draws epochs for all members, each while the one before it is trained on."""
    with ExitStack() as open_:
        draws = [open_.enter_context(closing(ahead(f.epoch, epochs))) for f in feeds]
        yield zip(*draws, strict=True)
