"""The state of a member of a stack in training: its history, and the weights to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flowvae.trial import Trial

__all__ = ["Progress"]


@dataclass
class Progress:
    """The history of a member, and the weights to keep.

    Arguments:
        history: Means by epoch, nats per image, by metric.
        reason: Why it diverged.
        epoch: The epoch, from 1, whose weights are to be kept.
        best: The best validation ELBO, nats per image.
        best_epoch: Its epoch.
        kept: Weights that are to be kept, where they are not the last ones.
        ended: Whether it diverged, or its patience ended.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    reason: str = ""
    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    kept: dict[str, Tensor] | None = None
    ended: bool = False

    def facts(self) -> dict[str, Any]:
        """Returns all but the weights, as JSON takes it."""
        return {name: value for name, value in vars(self).items() if name != "kept"}

    def restore(self, facts: Mapping[str, Any], kept: dict[str, Tensor]) -> None:
        """Restores what `facts` returned, and the weights that were kept, if any."""
        for name, here in self.facts().items():
            if type(facts[name]) is not type(here):
                raise TypeError(f"{name} is {facts[name]!r:.80}")
            setattr(self, name, facts[name])
        self.kept = kept or None

    def means_of(self, epoch: int) -> dict[str, float] | None:
        """Returns the means of an epoch, from 1, or none if it ended before."""
        means = {
            k: values[epoch - 1] for k, values in self.history.items() if epoch <= len(values)
        }
        return means or None

    def record(
        self, epoch: int, means: dict[str, float], state: dict[str, Tensor], recipe: Trial
    ) -> None:
        """Records an epoch: its means by metric, and the member's parameters after it."""
        if self.ended:
            return
        for name, value in means.items():
            self.history.setdefault(name, []).append(value)
        bad = [f"{name} is {value}" for name, value in means.items() if not math.isfinite(value)]
        if bad:
            self.reason, self.ended = f"epoch {epoch}: {bad[0]}", True
            return
        elbo = means.get("valid/elbo", -math.inf)
        better = elbo > self.best
        if better:
            self.best, self.best_epoch = elbo, epoch
        waited = epoch - max(self.best_epoch, recipe.warmup)
        self.ended = recipe.patience is not None and waited >= recipe.patience
        if recipe.select == "last":
            self.epoch = epoch
        if better if recipe.select == "best" else self.ended:
            # a member that has ended is carried along by its stack: its weights go on changing
            self.epoch = epoch
            self.kept = {name: value.clone() for name, value in state.items()}
