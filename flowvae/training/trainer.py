"""The one trainer: maximises the mean ELBO of a stack of models that differ in the seed alone.

    minimise  sum_s  -(1/B) sum_b ELBO(x_sb; theta_s)      with Adam, for members s of the stack

Members share no parameter, so the sum's gradient is each member's own, and training them together
is the same function as training them one by one (to rounding), with matrix products large enough
for a GPU. Images stay on the device as uint8; indices and noise are drawn for an epoch at a time
from the CPU's streams, while the epoch before is trained on; nothing is copied to the host inside
an epoch.
"""

from __future__ import annotations

import hashlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowvae.checkpoint import Checkpoint, CheckpointError, State, code
from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.models.vae import VAE, Terms, build
from flowvae.numerics.precision import DTYPES, matrix_products
from flowvae.numerics.streams import generator
from flowvae.training.batches import Drawn, Feed, drawn
from flowvae.training.optimiser_steps import Recipe, Steps
from flowvae.training.progress import Progress
from flowvae.training.stack import Stack, stackable
from flowvae.trial import Trial

__all__ = ["FIT", "Fitted", "OnEpoch", "Timing", "fit", "fit_prior", "synchronise"]


VALID_CHUNK = 1000
VERSION = str(torch.__version__)
IDENTITY_FACTS = ("trials", "data", "frozen weights", "code", "torch", "device")
"""What a checkpoint must share with the fit that goes on from it: its numbers depend on it."""
FIT = "fit"
"""The part of a checkpoint that holds a fit; its facts tell the `trials` and the `data`."""
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
        threads: The numbers of threads that it had: several where it went on with others.
    """

    train_seconds: float
    epoch_seconds: float
    images_per_second: float
    stack: int
    threads: tuple[int, ...]


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
    checkpoint: Checkpoint | None = None,
) -> list[Fitted]:
    """Fits a stack of trials that differ in nothing but the seed.

    Arguments:
        trials: The trials, one or more.
        data: Their data set.
        device: Where to train.
        on_epoch: Called after each epoch, and first for those that a checkpoint holds.
        checkpoint: Where the fit begins if it holds its state, and keeps it. The numbers are those
            of a fit that was never ended: to the bit on the same device and number of threads.

    Returns:
        The outcomes, in order. A member that diverges ends there; the others go on.

    Raises:
        InputError: The trials are no stack, or are for another data set or for `fit_prior`; the
            checkpoint is not of this fit.
        KeyboardInterrupt: The checkpoint was asked to stop; the state is saved.

    Example:
        >>> from flowvae import Trial, load_data
        >>> trial = Trial(prior="gauss", latent=2, net="mlp[hidden=32]", epochs=2)
        >>> (fitted,) = fit([trial], load_data(trial.dataset))
        >>> fitted.status, len(fitted.history["valid/elbo"])
        ('complete', 2)
    """
    _check_stack(trials, data, "joint")
    models = [build(t, data.shape, data.train, data.levels) for t in trials]
    return _Training(trials, models, data, torch.device(device)).run(on_epoch, checkpoint)


def fit_prior(
    trials: Sequence[Trial],
    bases: Sequence[VAE],
    data: Dataset,
    *,
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[Fitted]:
    """Fits priors to the frozen aggregate posteriors of trained models, a second stage.

        maximise  (1/N) sum_n E_{q(z|x_n)} log p(z)      over the prior alone

    With encoder and decoder frozen this is the ELBO up to a constant, so it is the same training
    in all else: images, order, noise, optimiser, epochs, selection. What it gains on the base is
    due to the better prior; what a jointly trained model gains beyond it, to an encoder and a
    decoder that learned with that prior.

    References:
        Diagnosing and Enhancing VAE Models (Dai and Wipf, 2019), https://arxiv.org/abs/1903.05789

    Arguments:
        trials: The trials, one or more, with `training` post-hoc.
        bases: The model of each trial's `base`; left as they are.
        data: Their data set.
        device: Where to train.
        on_epoch: See `fit`.
        checkpoint: See `fit`.

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
    fitted = _Training(trials, models, data, torch.device(device)).run(on_epoch, checkpoint)
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


class _Training:
    """The training of what is free in a stack's models, with all that it takes to go on with it.

    Arguments:
        trials: The stack.
        models: Their models, as built.
        data: Their data set.
        device: Where to train.
    """

    def __init__(
        self, trials: Sequence[Trial], models: Sequence[VAE], data: Dataset, device: torch.device
    ) -> None:
        self.trials, self.models, self.data, self.device = trials, models, data, device
        self.recipe = trials[0]
        self.stack = Stack([model.to(device) for model in models])
        self.images, self.valid = data.train.to(device), data.valid.to(device)
        self.steps = Steps(self.stack, self.images, Recipe.of(self.recipe, len(self.images)))
        noise = torch.stack([_valid_noise(trial, data) for trial in trials])
        self.valid_noise = noise.to(device)
        self.feeds = [Feed(trial, data, self.stack.draws, device) for trial in trials]
        self.progress = [Progress() for _ in trials]
        self.seconds: list[float] = []  # by epoch
        self.after, self.spent = 0, 0.0  # images and seconds of the epoch that was cut short
        self.threads: tuple[int, ...] = (torch.get_num_threads(),)  # all that it had

    @property
    def _ended(self) -> bool:
        return all(each.ended for each in self.progress)

    def run(self, on_epoch: OnEpoch | None, checkpoint: Checkpoint | None) -> list[Fitted]:
        """Trains to the end, and returns the outcomes."""
        if checkpoint and (state := checkpoint.get(FIT)):
            self._begin(state, checkpoint)
        past = len(self.seconds)
        for epoch in range(1, past + 1):
            self._tell(epoch, on_epoch)
        left = range(past + 1, 1 if self._ended else self.recipe.epochs + 1)
        with (
            matrix_products(self.recipe.precision, self.device),
            drawn(self.feeds, left) as epochs,
        ):
            for epoch in left:
                self._epoch(epoch, next(epochs), checkpoint)
                self._tell(epoch, on_epoch)
                if self._ended:
                    break
        if checkpoint:  # written when there is time to, with what comes next
            weights = {name: value.cpu() for name, value in self.steps.weights().items()}
            checkpoint.put(FIT, self._state(weights))
        self.steps.close()
        return self._fitted()

    def _tell(self, epoch: int, on_epoch: OnEpoch | None) -> None:
        if on_epoch:
            on_epoch(epoch, [each.means_of(epoch) for each in self.progress])

    def _epoch(self, epoch: int, draws: Sequence[Drawn], checkpoint: Checkpoint | None) -> None:
        """Trains for an epoch, and records its means."""
        before = [member.before for member in draws]
        synchronise(self.device)
        start = time.perf_counter() - self.spent

        def between(done: int) -> None:
            nonlocal start
            if not (checkpoint and checkpoint.due()):
                return
            synchronise(self.device)
            now = time.perf_counter()
            tensors = self.steps.state()
            for s, states in enumerate(before):
                tensors |= {f"stream/{s}/{purpose}": value for purpose, value in states.items()}
            checkpoint.keep(FIT, self._state(tensors, done, now - start))
            start += time.perf_counter() - now  # a saving is no training

        sums = self.steps.epoch(
            [member.epoch for member in draws],
            self.recipe.batch,
            _beta(self.recipe, epoch),
            after=self.after,
            between=between if checkpoint else None,
        )
        means = _means("train", sums, len(self.images))
        self.seconds.append(time.perf_counter() - start)
        self.after, self.spent = 0, 0.0
        if len(self.valid):
            means |= _validate(self.stack, self.valid, self.valid_noise)
        for s, state in self.stack.members():
            mine = {name: values[s] for name, values in means.items()}
            self.progress[s].record(epoch, mine, state, self.recipe)

    def _facts(self) -> dict[str, Any]:
        """Returns the facts that a checkpoint must share with this fit, and with this machine."""
        return {
            "trials": [trial.id for trial in self.trials],
            "data": self.data.hash,
            "frozen weights": self._frozen(),
            "code": code(),
            "torch": VERSION,
            "device": self.device.type,
            "threads": self.threads,
        }

    def _frozen(self) -> str:
        """Returns a hash of what is not trained: the base of a fit post hoc."""
        content = hashlib.sha256()
        for value in self.stack.state.values():
            if not value.requires_grad:
                content.update(value.detach().cpu().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def _state(self, tensors: dict[str, Tensor], after: int = 0, spent: float = 0.0) -> State:
        """Returns the state: after so many images of an epoch, or when all is trained."""
        for s, each in enumerate(self.progress):
            tensors |= {f"kept/{s}/{name}": value for name, value in (each.kept or {}).items()}
        facts = {"seconds": self.seconds, "after": after, "spent": spent}
        facts |= {"progress": [each.facts() for each in self.progress]}
        return State(tensors, self._facts() | facts)

    def _begin(self, state: State, checkpoint: Checkpoint) -> None:
        """Restores a state.

        Raises:
            CheckpointError: It is not of this fit.
        """
        facts = dict(state.facts)
        here = self._facts()
        try:
            for name in IDENTITY_FACTS:
                if facts[name] != here[name]:
                    raise ValueError(f"different {name}")
            before = [int(count) for count in facts["threads"]]
            self.steps.restore(state.tensors)
            self.seconds = [float(second) for second in facts["seconds"]]
            self.after, self.spent = int(facts["after"]), float(facts["spent"])
            for s, (each, known) in enumerate(zip(self.progress, facts["progress"], strict=True)):
                each.restore(known, state.below(f"kept/{s}/"))
            if len(self.seconds) < self.recipe.epochs and not self._ended:
                for s, feed in enumerate(self.feeds):
                    feed.begin(state.below(f"stream/{s}/"))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} is not a checkpoint of {self.recipe.name}: {error}"
            ) from None
        self.threads = tuple(dict.fromkeys((*before, *self.threads)))
        if len(self.threads) > 1:
            warnings.warn(
                f"{self.recipe.name} resumes with {torch.get_num_threads()} threads, after "
                f"{', '.join(map(str, before))} before: its timings cover all of them, and its "
                "numbers may differ in the last digits from those of an uninterrupted fit",
                RuntimeWarning,
                stacklevel=4,
            )

    def _fitted(self) -> list[Fitted]:
        median = statistics.median(self.seconds[1:] or self.seconds)
        speed = len(self.trials) * len(self.images) / median
        timing = Timing(sum(self.seconds), median, speed, len(self.trials), self.threads)
        fitted = []
        for s, state in self.stack.members():
            outcome, vae = self.progress[s], self.models[s]
            kept = outcome.kept or state
            vae.load_state_dict(kept, strict=False)  # buffers are as built
            if not all(bool(weight.isfinite().all()) for weight in kept.values()):
                outcome.reason = outcome.reason or f"epoch {outcome.epoch}: a weight is not finite"
            fitted.append(
                Fitted(
                    trial=self.trials[s],
                    vae=vae.eval(),
                    status="diverged" if outcome.reason else "complete",
                    reason=outcome.reason,
                    epoch=outcome.epoch,
                    history=outcome.history,
                    timing=timing,
                )
            )
        return fitted


def _beta(trial: Trial, epoch: int) -> float:
    """The weight of the rate in an epoch, from 1."""
    return min(1.0, epoch / trial.warmup) if trial.warmup else 1.0


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
