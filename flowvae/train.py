"""The one trainer: maximises the mean ELBO of a stack of models that differ in the seed alone.

    minimise  sum_s  -(1/B) sum_b ELBO(x_sb; theta_s)      with Adam, for members s of the stack

Members share no parameter, so the sum's gradient is each member's own, and training them together
is the same function as training them one by one (to rounding), with matrix products large enough
for a GPU. Images stay on the device as uint8; indices and noise are drawn for an epoch at a time
from the CPU's streams, while the epoch before is trained on; nothing is copied to the host inside
an epoch.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .ahead import ahead
from .data import Dataset
from .errors import InputError
from .precision import DTYPES, matrix_products
from .stack import Stack, stackable
from .steps import Epoch, Recipe, Steps
from .streams import generator, pinned
from .trial import Trial
from .vae import VAE, Terms, build

__all__ = [
    "Fitted",
    "OnEpoch",
    "Timing",
    "fit",
    "fit_prior",
    "synchronise",
]

VALID_CHUNK = 1000

OnEpoch = Callable[[int, list[dict[str, float] | None]], None]
"""Called after each epoch with its number, from 1, and each member's means, nats per image; None
for a member that diverged, or whose patience ended, in an earlier epoch."""


@dataclass(frozen=True)
class Timing:
    """What the training took, by synchronised clocks, without validation and logging.

    Arguments:
        train_seconds: All epochs, s.
        epoch_seconds: The median epoch, s; the first one is warm-up where there are more.
        images_per_second: Training images a second in the median epoch, all members counted.
        stack: The number of members trained together.
    """

    train_seconds: float
    epoch_seconds: float
    images_per_second: float
    stack: int


@dataclass(frozen=True)
class Fitted:
    """A trial's outcome.

    Arguments:
        trial: The description.
        vae: The model with the selected weights; those of a diverged one are not to be used.
        status: `complete`, or `diverged` when an epoch's mean or a kept weight was not finite.
        reason: Why it diverged.
        epoch: The epoch, from 1, whose weights are kept.
        history: Means by epoch, nats per image: `train/elbo`, `train/rate`, `train/distortion`,
            and `valid/...` where there are validation images.
        timing: What it took.
    """

    trial: Trial
    vae: VAE
    status: Literal["complete", "diverged"]
    reason: str
    epoch: int
    history: dict[str, list[float]]
    timing: Timing


class _Feed:
    """What one member meets in an epoch, drawn from its seed's streams."""

    def __init__(self, trial: Trial, data: Dataset, draws: int, device: torch.device) -> None:
        self.device = device
        self.images, self.levels, self.draws = data.train, data.levels, draws
        self.latent, self.dtype = trial.latent, DTYPES[trial.precision]
        purposes = ("order", "posterior noise", "binarise", "prior noise")
        self.order, self.noise, self.grain, self.own = (
            generator(trial.seed, name) for name in purposes
        )

    def epoch(self, _: int) -> Epoch:
        """Draws the next epoch."""
        order = torch.randperm(len(self.images), generator=self.order)
        noise = self._normal(self.noise)
        grain = proposals = None
        if self.levels > 1:
            grain = torch.empty_like(self.images).random_(0, self.levels, generator=self.grain)
        if self.draws:
            proposals = self._normal(self.own, self.draws)
        return Epoch(order, noise, grain, proposals).each(partial(pinned, device=self.device))

    def _normal(self, stream: torch.Generator, *each: int) -> Tensor:
        """Draws N(0, I) for each image, (N, *each, D)."""
        shape = (len(self.images), *each, self.latent)
        return torch.randn(shape, generator=stream, dtype=self.dtype)


@contextmanager
def _epochs(feeds: Sequence[_Feed], count: int) -> Iterator[Iterator[tuple[Epoch, ...]]]:
    """Draws epochs for the members, each while the one before it is trained on."""
    with ExitStack() as open_:
        draws = [open_.enter_context(closing(ahead(f.epoch, range(count)))) for f in feeds]
        yield zip(*draws, strict=True)


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fit(
    trials: Sequence[Trial],
    data: Dataset,
    *,
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch | None = None,
) -> list[Fitted]:
    """Fits a stack of trials that differ in nothing but the seed.

    Arguments:
        trials: The trials, one or more.
        data: Their data set.
        device: Where to train.
        on_epoch: Called after each epoch.

    Returns:
        The outcomes, in order. A member that diverges ends there; the others go on.

    Raises:
        InputError: The trials are no stack, or are for another data set or for `fit_prior`.

    Example:
        >>> from flowvae import Trial, load_data
        >>> trial = Trial(prior="gauss", latent=2, net="mlp[hidden=32]", epochs=2)
        >>> (fitted,) = fit([trial], load_data(trial.dataset))
        >>> fitted.status, len(fitted.history["valid/elbo"])
        ('complete', 2)
    """
    _check_stack(trials, data, "joint")
    models = [build(t, data.shape, data.train, data.levels) for t in trials]
    return _fit(trials, models, data, torch.device(device), on_epoch)


def fit_prior(
    trials: Sequence[Trial],
    bases: Sequence[VAE],
    data: Dataset,
    *,
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch | None = None,
) -> list[Fitted]:
    """Fits priors to the frozen aggregate posteriors of trained models, a second stage.

        maximise  (1/N) sum_n E_{q(z|x_n)} log p(z)      over the prior alone

    With encoder and decoder frozen this is the ELBO up to a constant, so it is the same training
    in all else: images, order, noise, optimiser, epochs, selection. What it gains on the base is
    owed to the better prior; what a jointly trained model gains beyond it, to an encoder and a
    decoder that learned with that prior.

    References:
        Diagnosing and Enhancing VAE Models (Dai and Wipf, 2019), https://arxiv.org/abs/1903.05789

    Arguments:
        trials: The trials, one or more, with `training` post-hoc.
        bases: The model of each trial's `base`; left as they are.
        data: Their data set.
        device: Where to train.
        on_epoch: Called after each epoch.

    Returns:
        The outcomes, in order; see `fit`.

    Raises:
        InputError: The trials are no stack, are for another data set or for `fit`, or a base is of
            another shape.

    Example:
        >>> from flowvae import Trial, load_data
        >>> trial = Trial(
        ...     prior="maf[hidden=8]", latent=2, net="mlp[hidden=8]", epochs=1, training="post-hoc"
        ... )
        >>> data = load_data(trial.dataset)
        >>> (first,) = fit([trial.base], data)
        >>> (second,) = fit_prior([trial], [first.vae], data)
        >>> bool((second.vae.encoder[0].weight == first.vae.encoder[0].weight).all())
        True
    """
    _check_stack(trials, data, "post-hoc")
    if len(bases) != len(trials) or not all(isinstance(base, VAE) for base in bases):
        raise InputError(f"expected {len(trials)} models as bases, such as Fitted.vae; got others")
    models = []
    for trial, base in zip(trials, bases, strict=True):
        model = build(trial, data.shape, data.train, data.levels)
        for part in ("encoder", "decoder"):
            body = getattr(model, part)
            try:
                body.load_state_dict(getattr(base, part).state_dict())
            except RuntimeError as error:
                raise InputError(f"the base does not fit {trial.name}: {error}") from None
            body.requires_grad_(False)
        models.append(model)
    fitted = _fit(trials, models, data, torch.device(device), on_epoch)
    for each in fitted:
        each.vae.requires_grad_(True)
    return fitted


def _check_stack(trials: Sequence[Trial], data: Dataset, training: str) -> None:
    if not trials:
        raise InputError("there is no trial to fit")
    recipe = trials[0]
    if recipe.training != training:
        right = "fit_prior" if training == "joint" else "fit"
        raise InputError(f"{recipe.name} has training {recipe.training}: it is for {right}")
    if any(trial.but(seed=recipe.seed) != recipe for trial in trials):
        raise InputError("a stack takes trials that differ in nothing but the seed")
    if len(trials) > 1 and not stackable(recipe):
        raise InputError(f"the prior {recipe.prior} cannot be stacked: fit its seeds one by one")
    if (recipe.select == "best" or recipe.patience) and not len(data.valid):
        raise InputError(
            f"select 'best' and patience need validation images, and {data.name} has none: hold "
            "some out, or keep the 'last' of all epochs"
        )
    if data.spec != recipe.dataset:
        raise InputError(f"the trials are for {recipe.dataset}; got the data set {data.spec}")


def _fit(
    trials: Sequence[Trial],
    models: Sequence[VAE],
    data: Dataset,
    device: torch.device,
    on_epoch: OnEpoch | None,
) -> list[Fitted]:
    """Fits what is free in the models; see `fit`."""
    recipe = trials[0]
    stack = Stack([model.to(device) for model in models])
    images, valid = data.train.to(device), data.valid.to(device)
    steps = Steps(stack, images, _recipe(recipe, len(images)))
    valid_noise = torch.stack([_valid_noise(t, data) for t in trials]).to(device)
    outcomes = [_Progress() for _ in trials]
    seconds: list[float] = []

    with (
        matrix_products(recipe.precision, device),
        _epochs([_Feed(t, data, stack.draws, device) for t in trials], recipe.epochs) as epochs,
    ):
        for epoch in range(1, recipe.epochs + 1):
            synchronise(device)
            start = time.perf_counter()
            sums = steps.epoch(next(epochs), recipe.batch, _beta(recipe, epoch))
            means = _means("train", sums, len(images))
            seconds.append(time.perf_counter() - start)
            if len(valid):
                means |= _validate(stack, valid, valid_noise)
            told: list[dict[str, float] | None] = []
            for s, state in stack.members():
                mine = {name: values[s] for name, values in means.items()}
                told.append(None if outcomes[s].ended else mine)
                outcomes[s].record(epoch, mine, state, recipe)
            if on_epoch:
                on_epoch(epoch, told)
            if all(outcome.ended for outcome in outcomes):
                break

    steps.close()
    median = statistics.median(seconds[1:] or seconds)
    speed = len(trials) * len(images) / median
    timing = Timing(sum(seconds), median, speed, len(trials))
    fitted = []
    for s, state in stack.members():
        outcome, vae = outcomes[s], models[s]
        kept = outcome.kept or state
        vae.load_state_dict(kept, strict=False)  # buffers are as built
        if not all(bool(weight.isfinite().all()) for weight in kept.values()):
            outcome.reason = outcome.reason or f"epoch {outcome.epoch}: a weight is not finite"
        fitted.append(
            Fitted(
                trial=trials[s],
                vae=vae.eval(),
                status="diverged" if outcome.reason else "complete",
                reason=outcome.reason,
                epoch=outcome.epoch,
                history=outcome.history,
                timing=timing,
            )
        )
    return fitted


def _recipe(trial: Trial, images: int) -> Recipe:
    return Recipe(
        lr=trial.lr,
        prior_lr=trial.prior_lr,
        clip=trial.clip,
        falls=images * trial.epochs if trial.schedule == "cosine" else None,
        warms=trial.warmup > 1,
    )


def _beta(trial: Trial, epoch: int) -> float:
    """The weight of the rate in an epoch, from 1."""
    return min(1.0, epoch / trial.warmup) if trial.warmup else 1.0


@dataclass
class _Progress:
    """What is known of one member so far."""

    history: dict[str, list[float]] = field(default_factory=dict)
    reason: str = ""
    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    kept: dict[str, Tensor] | None = None
    ended: bool = False

    def record(
        self, epoch: int, means: dict[str, float], state: dict[str, Tensor], recipe: Trial
    ) -> None:
        """Takes in an epoch: its means by metric, and the member's parameters after it."""
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


def _means(part: str, sums: Tensor, count: int) -> dict[str, list[float]]:
    """Names the sums over images, (3, S): one copy to the host."""
    rows = (sums / count).tolist()
    return {f"{part}/{term}": row for term, row in zip(Terms._fields, rows, strict=True)}


def _valid_noise(trial: Trial, data: Dataset) -> Tensor:
    """The same noise in every epoch, so that epochs differ by their weights alone."""
    shape = (len(data.valid), trial.latent)
    dtype = DTYPES[trial.precision]
    return torch.randn(shape, generator=generator(trial.seed, "validation"), dtype=dtype)


@torch.no_grad()
def _validate(stack: Stack, valid: Tensor, noise: Tensor) -> dict[str, list[float]]:
    """Returns the means over the validation images, by member."""
    sums = torch.zeros(3, stack.size, dtype=torch.float64, device=valid.device)
    for first in range(0, len(valid), VALID_CHUNK):
        chunk = slice(first, first + VALID_CHUNK)
        x = valid[chunk].expand(stack.size, -1, -1)
        sums += torch.stack(stack.terms(x, noise[:, chunk])).sum(dim=-1)
    return _means("valid", sums, len(valid))
