"""The optimiser's steps through an epoch: up the members' mean ELBOs, batch after batch.

What an epoch needs lies on the device before its first step, and a counter there says which batch
is next: a step takes no argument, so that on a CUDA device it is recorded once, as a graph, and
replayed with a single launch. Recorded and not, it is the same arithmetic in the same order.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from flowvae.models.vae import Terms
from flowvae.training.stack import Stack
from flowvae.trial import Trial

__all__ = ["EAGER_STEPS", "Epoch", "Recipe", "Steps"]


EAGER_STEPS = 3
"""Steps of a batch size before one is recorded: the first ones set up libraries and Adam."""
ADAM = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter."""


class Epoch(NamedTuple):
    """The draws of one member of a stack for an epoch of N images.

    Arguments:
        order: The images' numbers, (N,).
        noise: Standard Gaussian draws, (N, D).
        grain: Thresholds that turn grey pixels into 0 and 1, (N, P), or none.
        proposals: Standard Gaussian draws for a prior with `draws` of its own, (N, draws, D), or
            none.
    """

    order: Tensor
    noise: Tensor
    grain: Tensor | None = None
    proposals: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Epoch:
        """Returns the function's values."""
        order, noise, *others = self
        kept = (None if drawn is None else function(drawn) for drawn in others)
        return Epoch(function(order), function(noise), *kept)


class Recipe(NamedTuple):
    """The settings of a step; see the fields of `Trial`.

    Arguments:
        lr: The learning rate.
        prior_lr: That of the prior's own parameters, or none for the same.
        clip: The largest global norm of a member's gradient, or none.
        falls: The number of images over which the learning rates fall to zero as half a period of
            a cosine, or none where they stay.
        warms: Whether the weight of the rate is less than one in some epochs.
    """

    lr: float
    prior_lr: float | None = None
    clip: float | None = None
    falls: int | None = None
    warms: bool = False

    @classmethod
    def of(cls, trial: Trial, images: int) -> Recipe:
        """Returns the recipe of a trial that trains on that many images."""
        return cls(
            lr=trial.lr,
            prior_lr=trial.prior_lr,
            clip=trial.clip,
            falls=images * trial.epochs if trial.schedule == "cosine" else None,
            warms=trial.warmup > 1,
        )


class Steps:
    """Adam, elementwise and so member by member, on a stack's free parameters.

    Arguments:
        stack: The models.
        images: The training images as uint8, (N, P), on the models' device.
        recipe: What a step does.
    """

    def __init__(self, stack: Stack, images: Tensor, recipe: Recipe) -> None:
        self.stack, self.images, self.recipe = stack, images, recipe
        self._device = images.device
        cuda = images.is_cuda
        self._rates: list[tuple[Tensor, float]] = []  # what falls, and where from
        self._adam = torch.optim.Adam(self._groups(), lr=recipe.lr, fused=True, capturable=cuda)
        self._done = images.new_zeros((), dtype=torch.int64)  # images, in all epochs
        self._beta = images.new_ones((), dtype=torch.float64) if recipe.warms else None
        self.sums = images.new_zeros(3, stack.size, dtype=torch.float64)
        self._next = images.new_zeros((), dtype=torch.int64)
        self._draws: Epoch | None = None  # with a leading axis (S,)
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self._taken: Counter[int] = Counter()
        self._stream = torch.cuda.Stream(images.device) if cuda else None
        # Nothing that a step leaves in a graph's memory is read by another: all graphs share it.
        self._pool = torch.cuda.graph_pool_handle() if cuda else None

    def _groups(self) -> list[dict[str, object]]:
        """Groups the free parameters by their learning rate."""
        recipe = self.recipe
        apart = recipe.prior_lr is not None
        parts: dict[bool, list[Tensor]] = {}
        # A launch of the fused kernel takes so many blocks, and as long as the largest of them:
        # the smallest tensors come last, so that a second launch is a short one.
        for name, parameter in sorted(
            self._free().items(), key=lambda item: item[1].numel(), reverse=True
        ):
            parts.setdefault(apart and name.startswith("prior."), []).append(parameter)
        groups: list[dict[str, object]] = []
        for own, parameters in parts.items():
            start = recipe.prior_lr if own and recipe.prior_lr is not None else recipe.lr
            rate: float | Tensor = start
            if recipe.falls:
                rate = torch.tensor(start, dtype=torch.float32, device=self._device)
                self._rates.append((rate, start))
            groups.append({"params": parameters, "lr": rate})
        return groups

    def epoch(
        self,
        draws: Sequence[Epoch],
        batch: int,
        beta: float = 1.0,
        *,
        after: int = 0,
        between: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Takes one step for each batch.

        Arguments:
            draws: Each member's draws, on the CPU.
            batch: The number of images B of a batch; the last one may be smaller.
            beta: The weight of the rate; other than one only where the recipe warms.
            after: The number of images of the epoch, a multiple of B, that were trained on
                before the state that was restored.
            between: Called after each step with the number of images of the epoch that are done.

        Returns:
            The sums over images of the terms before each step, (3, S), nats, on the device; the
            next epoch overwrites them.
        """
        count = len(draws[0].order)
        with self.aside():
            if self._beta is not None:
                self._beta.fill_(beta)
            self.load(draws, after)
            for first in range(after, count, batch):
                self.take(min(batch, count - first))
                if between:
                    between(min(first + batch, count))
        return self.sums

    def load(self, draws: Sequence[Epoch], after: int = 0) -> None:
        """Lays out an epoch's draws, over the last epoch's, and begins after so many images."""
        if self._draws is None:
            self._draws = draws[0].map(
                lambda one: torch.empty(
                    (len(draws), *one.shape), dtype=one.dtype, device=self._device
                )
            )
        for s, member in enumerate(draws):
            for here, drawn in zip(self._draws, member, strict=True):
                if here is not None and drawn is not None:
                    here[s].copy_(drawn, non_blocking=True)
        self._next.fill_(after)
        if not after:
            self.sums.zero_()

    def _free(self) -> dict[str, Tensor]:
        """Returns the parameters that are trained, by name."""
        return {k: value for k, value in self.stack.state.items() if value.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Returns all that the next steps depend on, beside an epoch's draws, by name."""
        held = self.weights()
        for name, parameter in self._free().items():
            for key, value in self._adam.state.get(parameter, {}).items():
                held[f"adam {key}/{name}"] = value
        return held | {"sums": self.sums, "done": self._done}

    def weights(self) -> dict[str, Tensor]:
        """Returns what remains of the state when no step follows."""
        return {f"model/{name}": value.detach() for name, value in self._free().items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` or `weights` returned.

        Raises:
            KeyError: A name is missing.
            RuntimeError: A shape is another.
        """
        for name, parameter in self._free().items():
            _fill(parameter, state[f"model/{name}"])
            if f"adam step/{name}" in state:  # not before the first step, nor after the last
                for key in ADAM:
                    place = torch.zeros_like(parameter)
                    if key == "step":
                        place = torch.zeros((), dtype=torch.float32, device=self._device)
                    _fill(place, state[f"adam {key}/{name}"])
                    self._adam.state[parameter][key] = place
        for name, tensor in (("sums", self.sums), ("done", self._done)):
            _fill(tensor, state.get(name, tensor))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On a CUDA device, works in a stream of our own: the default one cannot be recorded."""
        if self._stream is None:
            yield
            return
        around = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(around)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            around.wait_stream(self._stream)

    def take(self, count: int) -> None:
        """Takes a step on the next `count` images of the epoch, inside `aside`."""
        if self._stream and self._taken[count] >= EAGER_STEPS and count not in self._graphs:
            self._graphs[count] = self._record(count)
        graph = self._graphs.get(count)
        if graph:
            graph.replay()
        else:
            self._step(count)
        self._taken[count] += 1

    def _record(self, count: int) -> torch.cuda.CUDAGraph | None:
        """Records a step without taking it; none, and a warning, if it cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",  # other threads pin the next epoch's draws
            ):
                self._step(count)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(
                "a step of this model cannot be recorded as a CUDA graph: its operations are "
                f"launched one by one, which is slower ({str(error).splitlines()[0]})",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return graph

    def _step(self, count: int) -> None:
        self.sums += torch.stack(self.gradients(*self.batch(count))).detach().sum(dim=-1)
        if self.recipe.clip:
            self.stack.clip(self.recipe.clip)
        if self.recipe.falls:
            share = self._done.double() / self.recipe.falls
            for rate, start in self._rates:
                rate.copy_(0.5 * start * (1 + torch.cos(math.pi * share)))
        self._adam.step()
        self._next += count
        self._done += count

    def batch(self, count: int) -> tuple[Tensor, ...]:
        """Returns the next arguments of `Stack.terms`: images in {0, 1}, noise, proposals."""
        assert self._draws is not None, "nothing is loaded"
        span = self._next + torch.arange(count, device=self._device)
        order, noise, grain, proposals = self._draws.map(lambda d: d.index_select(1, span))
        x = self.images.index_select(0, order.flatten()).unflatten(0, order.shape)
        x = x if grain is None else x > grain
        return (x, noise) if proposals is None else (x, noise, proposals.flatten(1, 2))

    def close(self) -> None:
        """Frees gradients and graphs, and so their memory."""
        self._adam.zero_grad(set_to_none=True)
        self._graphs.clear()

    def gradients(self, *batch: Tensor) -> Terms:
        """Leaves the gradients of minus the mean bounds; returns the terms, each (S, B), nats."""
        terms = self.stack.terms(*batch)
        bound = terms.elbo
        if self._beta is not None:
            bound = -terms.distortion - self._beta.to(bound.dtype) * terms.rate
        self._adam.zero_grad(set_to_none=True)
        bound.mean(dim=1).sum().neg().backward()
        return terms


def _fill(tensor: Tensor, value: Tensor) -> None:
    """Copies a value of the same shape and type."""
    if (tensor.shape, tensor.dtype) != (value.shape, value.dtype):
        raise RuntimeError(
            f"expected {tensor.dtype} of shape {tuple(tensor.shape)}; "
            f"got {value.dtype} of {tuple(value.shape)}"
        )
    tensor.copy_(value)
