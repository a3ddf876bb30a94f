"""Estimates of how long jobs take, so that the longest starts first.

The operations of a training step are counted, and the fit of a stack of S members takes

    seconds = steps (c calls + S flops / F)

with `flops` the operations of matrix products, plus NUMBER_FLOPS for each number that any
operation returns, and `calls` the number of operations, each launched once for all members: on a
GPU a stack is faster than its members one by one, until arithmetic takes longer than the launches.
F and c are a guess at the device, so by themselves the seconds only rank. If the store holds runs
of the same arm on the same type of device, the ratio of their seconds to the estimate corrects it;
other arms take the median ratio.
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

from bench.store.names import EARLIER_ESTIMATOR, ENDED_AS, ESTIMATOR_TAG, TRIAL
from bench.store.run_info import trial_columns
from bench.store.runs import Store
from flowvae.data import Dataset
from flowvae.errors import USER_CODE_ERRORS
from flowvae.models.vae import VAE, build
from flowvae.numerics.precision import DTYPES
from flowvae.specs.values import write
from flowvae.trial import Evaluation, Trial

__all__ = ["Costs", "Measured", "Operations", "measured_seconds", "step_operations"]


RATES = {"cpu": (3e10, 5e-6), "cuda": (1e13, 3e-6)}
"""Flops a second and seconds a call; the first as measured on a core, the second from data sheets.
"""
NUMBER_FLOPS = 50
"""Flops of a matrix product in the time of one number that any operation returns."""
COUNTED_BATCHES = 8, 16
"""The batch sizes that are counted; the count is a straight line in the batch size."""
SCORING_SHARE = 1 / 3
"""The flops of one importance sample of an image, as a share of its training step's."""
FREE_PARAMS = ("seed", "lr", TRIAL, ENDED_AS)
"""Params of a run that do not change its seconds."""
Arm = frozenset[tuple[str, str]]
"""The params of a run that change its seconds."""


class Measured(NamedTuple):
    """The seconds of earlier runs of an arm.

    Arguments:
        fits: The members of the stack, and the seconds of its training, by run.
        samples: The seconds of one importance sample of one image, by run.
    """

    fits: list[tuple[int, float]]
    samples: list[float]


def measured_seconds(store: Store, device: str, estimator: str | None) -> dict[Arm, Measured]:
    """Returns the seconds of a store's complete runs on the same type of device, by arm.

    Arguments:
        store: The store.
        device: The device.
        estimator: The estimator whose seconds of scoring are returned; none without one.
    """
    arms: dict[Arm, Measured] = {}
    for run in store.complete():
        tags, metrics = run.data.tags, run.data.metrics
        if tags.get("device", "").partition(":")[0] != device.partition(":")[0]:
            continue
        params = frozenset((k, v) for k, v in run.data.params.items() if k not in FREE_PARAMS)
        arm = arms.setdefault(params, Measured([], []))
        if seconds := metrics.get("time/train_seconds"):
            arm.fits.append((int(tags["stack"]), seconds))
        used = tags.get(ESTIMATOR_TAG, EARLIER_ESTIMATOR) if "nll_samples" in tags else ""
        if used == estimator and (speed := metrics.get("time/evaluation_images_per_second")):
            arm.samples.append(1 / (speed * int(tags["nll_samples"])))
    return arms


class Operations(NamedTuple):
    """The number of operations, and their flops: those of matrix products, and equivalents."""

    calls: int
    flops: float


def step_operations(trial: Trial, data: Dataset) -> Operations:
    """Counts the operations of one training step of a trial, without its optimiser."""
    vae = build(trial, data.shape, data.train, data.levels)
    if trial.base:
        vae.encoder.requires_grad_(False)
        vae.decoder.requires_grad_(False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for tiny batches more are slower, on a busy machine much slower
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
        output = func(*args, **kwargs)
        if not func.is_view:
            self.calls += 1
            numbers = sum(x.numel() for x in tree_leaves(output) if torch.is_tensor(x))
            self.flops += NUMBER_FLOPS * numbers
            if flops := flop_registry.get(func._overloadpacket):
                self.flops += flops(*args, **kwargs, out_val=output)
        return output


class Costs:
    """Estimates of the seconds that the jobs of a grid take on a device.

    Arguments:
        trials: The trials of the grid; their earlier runs set the scale for the others.
        data: Their data set.
        device: The device that they are computed on.
        known: The seconds of earlier runs, as `measured_seconds` returns them.
    """

    def __init__(
        self, trials: Iterable[Trial], data: Dataset, device: str, known: dict[Arm, Measured]
    ) -> None:
        self._trials, self._data, self._known = trials, data, known
        self._flops, self._call = RATES[device.partition(":")[0]]
        self._operations: dict[Trial, Operations | None] = {}

    @cached_property
    def measured(self) -> bool:
        """Whether an arm of the grid has earlier runs; if none has, the seconds only rank."""
        return any(map(any, self._arms))

    def seconds(
        self, stack: Sequence[Trial], evaluation: Evaluation | None, *, fitted: bool = False
    ) -> float:
        """Returns the seconds of a job; infinity if its model cannot be built or counted.

        Such a job starts first: if its model cannot be built it fails at once, with the reason;
        else it may be the longest.

        Arguments:
            stack: Its trials.
            evaluation: How they are scored; none if they are not.
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
            except USER_CODE_ERRORS:  # its trial reports it
                self._operations[arm] = None
        return self._operations[arm]

    def _fit(self, trial: Trial, size: int) -> float:
        """Estimates the training of a stack, s."""
        step = self._counted(trial)
        assert step is not None, "an arm that cannot be counted is not estimated"
        steps = trial.epochs * len(self._data.train) / trial.batch
        return steps * (step.calls * self._call + size * step.flops / self._flops)

    def _sample(self, trial: Trial) -> float:
        """Estimates one importance sample of one image, s."""
        step = self._counted(trial)
        assert step is not None, "an arm that cannot be counted is not estimated"
        return SCORING_SHARE * step.flops / trial.batch / self._flops

    def _ratios(self, trial: Trial) -> tuple[list[float], list[float]]:
        """Returns the ratios of measured to estimated seconds of an arm: fits, and samples."""
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
        """The ratios of all arms; if only fits or samples were measured, they serve as both."""
        fits, samples = ([r for arm in self._arms for r in arm[of]] for of in (0, 1))
        return fits or samples or [1.0], samples or fits or [1.0]
