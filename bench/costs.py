"""What jobs take: seconds, so that the longest starts first, and memory, so that a stack fits.

Where the store holds runs of the same arm on the same type of device, a job takes what they took.
Otherwise the operations of a training step on B images are counted, and S members take

    seconds(S, B) = c calls + S (flops(B) + 50 numbers(B)) / F

with `flops` those of matrix products, `numbers` all that the operations make, of which one is as
dear as 50 of those flops, and `calls` the operations, launched once for all members: on a GPU a
stack grows by less than its size until its arithmetic outweighs them. F and c are a guess at the
device; where some arms have runs, the median ratio of what they took to what was estimated
corrects it. The rank order is what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from flowvae.data import Dataset
from flowvae.evaluation import log_weights, settle
from flowvae.options import write
from flowvae.precision import DTYPES
from flowvae.trial import Evaluation, Trial
from flowvae.vae import VAE, build

from .leases import ENDED_AS
from .opening import TRIAL, described
from .tracking import Store

__all__ = ["Costs", "Timed", "timed"]

RATES = {"cpu": (3e10, 5e-6), "cuda": (1e13, 3e-6)}
"""Flops a second and seconds a call; the first as measured on a core, the second from data sheets.
"""
NUMBER = 50
"""Flops of a matrix product in the time of one number that any operation makes."""
SIZES = 8, 16
"""The batches that are counted; what they take is a straight line in the batch."""
FREE = ("seed", "lr", TRIAL, ENDED_AS)
"""Params of a run that its seconds do not depend on."""
SHARE = 0.5
"""The share of the memory that models and activations may take: a CUDA graph holds activations
of its own beside those that its first steps left to the allocator."""

Arm = frozenset[tuple[str, str]]
"""The params of a run that its seconds depend on."""


@dataclass
class Timed:
    """What earlier runs of an arm took.

    Arguments:
        train: The members of the stack, and the seconds of its training, by run.
        score: The seconds of one importance sample of one image, by run.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    score: list[float] = field(default_factory=list)


def timed(store: Store, device: str) -> dict[Arm, Timed]:
    """Returns what the complete runs of a store took on the same type of device, by arm."""
    found: dict[Arm, Timed] = {}
    for run in store.complete():
        tags, metrics = run.data.tags, run.data.metrics
        if tags.get("device", "").partition(":")[0] != device.partition(":")[0]:
            continue
        arm = frozenset((k, v) for k, v in run.data.params.items() if k not in FREE)
        entry = found.setdefault(arm, Timed())
        if seconds := metrics.get("time/train_seconds"):
            entry.train.append((int(tags["stack"]), seconds))
        if (speed := metrics.get("time/evaluation_images_per_second")) and "nll_samples" in tags:
            entry.score.append(1 / (speed * int(tags["nll_samples"])))
    return found


class _Count(NamedTuple):
    """What a block of torch takes: calls, flops with all else in their measure, bytes saved."""

    calls: int
    flops: float
    saved: int


class _Counter(TorchDispatchMode):
    """Counts calls and flops in the block.

    torch's `FlopCounterMode` counts the same flops by the same registry, and imports a compiler
    first, which takes seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.flops = 0, 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if not func.is_view:
            self.calls += 1
            self.flops += NUMBER * sum(x.numel() for x in tree_leaves(made) if torch.is_tensor(x))
            if flops := flop_registry.get(func._overloadpacket):
                self.flops += flops(*args, **kwargs, out_val=made)
        return made


class _Line(NamedTuple):
    """A straight line in the number of images."""

    start: float
    slope: float

    @classmethod
    def through(cls, small: float, large: float) -> _Line:
        """Returns the line through the values at both of `SIZES`."""
        slope = (large - small) / (SIZES[1] - SIZES[0])
        return cls(small - slope * SIZES[0], slope)

    def at(self, images: int) -> float:
        return self.start + self.slope * images


class _Law(NamedTuple):
    """What one model of an arm takes.

    Arguments:
        calls: Operations of a training step.
        step: Flops of a training step, by the batch.
        sample: Flops of one importance sample of an image.
        weights: Bytes of the weights, with a gradient and Adam's two moments of those trained.
        saved: Bytes that a step keeps for its gradients, by the batch.
        draws: Bytes of an image's draws.
    """

    calls: int
    step: _Line
    sample: float
    weights: int
    saved: _Line
    draws: int


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes in one thread: of tiny batches several are slower, on a busy machine by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _law(trial: Trial, data: Dataset) -> _Law:
    """Counts what one model of a trial takes, on two tiny batches."""
    vae = build(trial, data.shape, data.train, data.levels)
    if trial.base:
        vae.encoder.requires_grad_(False)
        vae.decoder.requires_grad_(False)
    weights = sum(
        p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in vae.parameters()
    )
    own, pixels = int(getattr(vae.prior, "draws", 0)), math.prod(data.shape)
    number = DTYPES[trial.precision].itemsize
    small, large = (_step(vae, size, own) for size in SIZES)
    settle(vae)
    few, more = (_scoring(vae, size) for size in SIZES)
    return _Law(
        large.calls,
        _Line.through(small.flops, large.flops),
        _Line.through(few, more).slope,
        weights,
        _Line.through(small.saved, large.saved),
        pixels + number * trial.latent * (1 + own),
    )


def _normal(vae: VAE, *shape: int) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    return torch.randn(*shape, vae.latent, generator=stream, dtype=DTYPES[vae.precision])


def _step(vae: VAE, images: int, draws: int) -> _Count:
    """Counts a training step without its optimiser."""
    batch = [torch.zeros(images, math.prod(vae.shape)), _normal(vae, images)]
    if draws:
        batch.append(_normal(vae, images * draws))
    weights = {p.untyped_storage().data_ptr() for p in vae.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    free = [p for p in vae.parameters() if p.requires_grad]
    with _Counter() as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.autograd.grad(vae.elbo(*batch).elbo.sum(), free, allow_unused=True)
    return _Count(counter.calls, counter.flops, sum(saved.values()))


@torch.no_grad()
def _scoring(vae: VAE, samples: int) -> float:
    """Counts the flops of importance samples of one image."""
    with _Counter() as counter:
        log_weights(vae, torch.zeros(1, math.prod(vae.shape)), _normal(vae, 1, samples))
    return counter.flops


class Costs:
    """What the jobs of a grid take on a device.

    Arguments:
        trials: The trials of the grid; earlier runs of theirs set the scale for others.
        data: Their data set.
        device: Where they are computed.
        known: What earlier runs took, as `timed` returns it.
    """

    def __init__(
        self, trials: Iterable[Trial], data: Dataset, device: str, known: dict[Arm, Timed]
    ) -> None:
        self.trials, self.data, self.known = trials, data, known
        self._flops, self._call = RATES[device.partition(":")[0]]
        self._laws: dict[Trial, _Law | None] = {}
        self._arms: dict[Trial, Timed] = {}

    @cached_property
    def measured(self) -> bool:
        """Whether some trial of the grid has runs of its arm, so that the seconds mean something.

        Without any they only rank.
        """
        return any(self._timed(t).train or self._timed(t).score for t in self.trials)

    def seconds(
        self, stack: Sequence[Trial], evaluation: Evaluation | None, *, fitted: bool = False
    ) -> float:
        """Returns what a job takes, s; infinity for one whose model cannot be built or counted.

        If it cannot be built the job ends at once, and the reason is known early; if it can, it
        may be the longest.

        Arguments:
            stack: Its trials.
            evaluation: How they are scored, or none where they are not.
            fitted: Whether they are only scored.
        """
        spent = 0.0 if fitted else self._train(stack[0], len(stack))
        return spent + (len(stack) * self._score(stack[0], evaluation) if evaluation else 0.0)

    def members(self, trial: Trial, room: int) -> int:
        """Returns how many members of a stack fit into so many bytes; one at least.

        A model that cannot be counted is taken to be small.
        """
        law = self._law(trial)
        if law is None:
            return 2**31
        draws = law.draws * len(self.data.train)
        return max(1, int(SHARE * room / (law.weights + law.saved.at(trial.batch) + draws)))

    def _timed(self, trial: Trial) -> Timed:
        if trial not in self._arms:
            params = {k: write(v) for k, v in described(trial).items() if k not in FREE}
            self._arms[trial] = self.known.get(frozenset(params.items()), Timed())
        return self._arms[trial]

    def _law(self, trial: Trial) -> _Law | None:
        arm = trial.but(seed=0, lr=1.0)
        if arm not in self._laws:
            try:
                with _one_thread():
                    self._laws[arm] = _law(arm, self.data)
            except Exception:  # a builder may be anybody's; its trial will say what is wrong
                self._laws[arm] = None
        return self._laws[arm]

    def _train(self, trial: Trial, size: int) -> float:
        if runs := self._timed(trial).train:
            return median(seconds * self._growth(trial, of, size) for of, seconds in runs)
        return self._scales[0] * self._estimated_train(trial, size)

    def _growth(self, trial: Trial, before: int, after: int) -> float:
        """Returns how much longer a stack of another size takes."""
        if before == after:
            return 1.0
        if self._law(trial) is None:
            return after / before
        return self._estimated_train(trial, after) / self._estimated_train(trial, before)

    def _score(self, trial: Trial, evaluation: Evaluation) -> float:
        one = self._timed(trial).score
        sample = median(one) if one else self._scales[1] * self._estimated_sample(trial)
        images = getattr(self.data, evaluation.split)[: evaluation.images]
        return sample * evaluation.samples * len(images)

    def _estimated_train(self, trial: Trial, size: int) -> float:
        law = self._law(trial)
        if law is None:
            return math.inf
        whole, rest = divmod(len(self.data.train), trial.batch)
        flops = whole * law.step.at(trial.batch) + (law.step.at(rest) if rest else 0.0)
        calls = law.calls * (whole + bool(rest))
        return trial.epochs * (calls * self._call + size * flops / self._flops)

    def _estimated_sample(self, trial: Trial) -> float:
        law = self._law(trial)
        return math.inf if law is None else law.sample / self._flops

    @cached_property
    def _scales(self) -> tuple[float, float]:
        """The median ratios of measured to estimated seconds, of training and of scoring.

        Where only one of them was measured, it serves both.
        """
        arms = {trial.but(seed=0): self._timed(trial) for trial in self.trials}
        train = _ratios(
            (seconds, self._estimated_train(trial, size))
            for trial, known in arms.items()
            for size, seconds in known.train
        )
        score = _ratios(
            (seconds, self._estimated_sample(trial))
            for trial, known in arms.items()
            for seconds in known.score
        )
        return median(train or score or [1.0]), median(score or train or [1.0])


def _ratios(pairs: Iterable[tuple[float, float]]) -> list[float]:
    return [seconds / estimated for seconds, estimated in pairs if 0 < estimated < math.inf]
