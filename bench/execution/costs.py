"""Estimates of how long jobs take, so that the longest starts first.

The operations of a training step are counted, and the fit of a stack of S members takes

    seconds = steps (c calls + S flops / F)

with `flops` those of matrix products and, for each number that any operation makes, as many more
as take its time; and `calls` the operations, launched once for all members: on a GPU a stack takes
less than its members until its arithmetic outweighs them. F and c are a guess at the device: by
themselves the seconds only rank. Where the store holds runs of the same arm on the same type of
device, the ratio of what they took to the estimate corrects it; other arms take the median ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.store.names import ENDED_AS, TRIAL
from bench.store.run_info import trial_columns
from bench.store.runs import Store
from flowvae.data import Dataset
from flowvae.models.vae import VAE, build
from flowvae.numerics.precision import DTYPES
from flowvae.specs.values import write
from flowvae.trial import Evaluation, Trial

__all__ = ["Costs", "Measured", "Operations", "measured_seconds", "step_operations"]


RATES = {"cpu": (3e10, 5e-6), "cuda": (1e13, 3e-6)}
"""Flops a second and seconds a call; the first as measured on a core, the second from data sheets.
"""
NUMBER_FLOPS = 50
"""Flops of a matrix product in the time of one number that any operation makes."""
COUNTED_BATCHES = 8, 16
"""The batches that are counted; what they take is a straight line in the batch."""
SCORING_SHARE = 1 / 3
"""The flops of one importance sample of an image, of those of its training step: no gradients."""
FREE_PARAMS = ("seed", "lr", TRIAL, ENDED_AS)
"""Params of a run that its seconds do not depend on."""
Arm = frozenset[tuple[str, str]]
"""The params of a run that its seconds depend on."""


class Measured(NamedTuple):
    """What earlier runs of an arm took.

    Arguments:
        fits: The members of the stack, and the seconds of its training, by run.
        samples: The seconds of one importance sample of one image, by run.
    """

    fits: list[tuple[int, float]]
    samples: list[float]


def measured_seconds(store: Store, device: str) -> dict[Arm, Measured]:
    """Returns what the complete runs of a store took on the same type of device, by arm."""
    arms: dict[Arm, Measured] = {}
    for run in store.complete():
        tags, metrics = run.data.tags, run.data.metrics
        if tags.get("device", "").partition(":")[0] != device.partition(":")[0]:
            continue
        params = frozenset((k, v) for k, v in run.data.params.items() if k not in FREE_PARAMS)
        arm = arms.setdefault(params, Measured([], []))
        if seconds := metrics.get("time/train_seconds"):
            arm.fits.append((int(tags["stack"]), seconds))
        if (speed := metrics.get("time/evaluation_images_per_second")) and "nll_samples" in tags:
            arm.samples.append(1 / (speed * int(tags["nll_samples"])))
    return arms


class Operations(NamedTuple):
    """The calls of operations, and their flops, all else than matrix products in their measure."""

    calls: int
    flops: float


def step_operations(trial: Trial, data: Dataset) -> Operations:
    """Counts the operations of one training step of a trial, without its optimiser."""
    vae = build(trial, data.shape, data.train, data.levels)
    if trial.base:
        vae.encoder.requires_grad_(False)
        vae.decoder.requires_grad_(False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of tiny batches several are slower, on a busy machine by far
    try:
        small, large = (_count(vae, images) for images in COUNTED_BATCHES)
    finally:
        torch.set_num_threads(threads)
    slope = (large.flops - small.flops) / (COUNTED_BATCHES[1] - COUNTED_BATCHES[0])
    return Operations(large.calls, large.flops + slope * (trial.batch - COUNTED_BATCHES[1]))


def _count(vae: VAE, images: int) -> Operations:
    stream = torch.Generator().manual_seed(0)
    batch = [torch.zeros(images, math.prod(vae.shape))]
    for draws in (1, int(getattr(vae.prior, "draws", 0))):
        if draws:
            shape, dtype = (images * draws, vae.latent), DTYPES[vae.precision]
            batch.append(torch.randn(shape, generator=stream, dtype=dtype))
    trained = [p for p in vae.parameters() if p.requires_grad]
    with _Counter() as counter:
        torch.autograd.grad(vae.elbo(*batch).elbo.sum(), trained, allow_unused=True)
    return Operations(counter.calls, counter.flops)


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
            numbers = sum(x.numel() for x in tree_leaves(made) if torch.is_tensor(x))
            self.flops += NUMBER_FLOPS * numbers
            if flops := flop_registry.get(func._overloadpacket):
                self.flops += flops(*args, **kwargs, out_val=made)
        return made


class Costs:
    """What the jobs of a grid take on a device.

    Arguments:
        trials: The trials of the grid; earlier runs of theirs set the scale for others.
        data: Their data set.
        device: Where they are computed.
        known: What earlier runs took, as `measured_seconds` returns it.
    """

    def __init__(
        self, trials: Iterable[Trial], data: Dataset, device: str, known: dict[Arm, Measured]
    ) -> None:
        self._trials, self._data, self._known = trials, data, known
        self._flops, self._call = RATES[device.partition(":")[0]]
        self._operations: dict[Trial, Operations | None] = {}

    @cached_property
    def measured(self) -> bool:
        """Whether some arm of the grid has earlier runs: else the seconds only rank."""
        return any(map(any, self._arms))

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
        trial, size = stack[0], len(stack)
        if self._counted(trial) is None:
            return math.inf
        fits, samples = (
            median(own or every)
            for own, every in zip(self._ratios(trial), self._scales, strict=True)
        )
        seconds = 0.0 if fitted else fits * self._fit(trial, size)
        if evaluation:
            images = getattr(self._data, evaluation.split)[: evaluation.images]
            samples *= size * evaluation.samples * len(images)
            seconds += samples * self._sample(trial)
        return seconds

    def _counted(self, trial: Trial) -> Operations | None:
        arm = trial.but(seed=0, lr=1.0)
        if arm not in self._operations:
            try:
                self._operations[arm] = step_operations(arm, self._data)
            except Exception:  # a builder may be anybody's; its trial will say what is wrong
                self._operations[arm] = None
        return self._operations[arm]

    def _fit(self, trial: Trial, size: int) -> float:
        """Estimates the training of a stack, s."""
        step = self._counted(trial)
        assert step is not None, "what cannot be counted is not estimated"
        steps = trial.epochs * len(self._data.train) / trial.batch
        return steps * (step.calls * self._call + size * step.flops / self._flops)

    def _sample(self, trial: Trial) -> float:
        """Estimates one importance sample of one image, s."""
        step = self._counted(trial)
        assert step is not None, "what cannot be counted is not estimated"
        return SCORING_SHARE * step.flops / trial.batch / self._flops

    def _ratios(self, trial: Trial) -> tuple[list[float], list[float]]:
        """Returns measured by estimated seconds of earlier runs of an arm: fits, and samples."""
        params = {k: write(v) for k, v in trial_columns(trial).items() if k not in FREE_PARAMS}
        known = self._known.get(frozenset(params.items()))
        if known is None or self._counted(trial) is None:
            return [], []
        fits = [seconds / self._fit(trial, size) for size, seconds in known.fits]
        return fits, [seconds / self._sample(trial) for seconds in known.samples]

    @cached_property
    def _arms(self) -> list[tuple[list[float], list[float]]]:
        """The ratios of each arm of the grid."""
        return [self._ratios(arm) for arm in dict.fromkeys(t.but(seed=0) for t in self._trials)]

    @cached_property
    def _scales(self) -> tuple[list[float], list[float]]:
        """The ratios of all arms: where only fits or samples were measured, they serve both."""
        fits, samples = ([r for arm in self._arms for r in arm[of]] for of in (0, 1))
        return fits or samples or [1.0], samples or fits or [1.0]
