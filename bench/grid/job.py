"""Jobs that workers are given, and the events and outcomes that they return, all plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowvae.errors import InputError
from flowvae.trial import Evaluation, Trial

__all__ = ["Event", "Job", "Notice", "Outcome", "Report", "UnfinishedError"]


@dataclass(frozen=True)
class Job:
    """A stack to fit and score, or fitted runs to score once more.

    Arguments:
        number: Its place in the grid.
        trials: The stack, or the one trial whose model is scored.
        evaluation: How it is scored; not at all in a tuning, which sees no test image.
        data_dir: The folder of the data sets; none for the worker's own, see `data_dir`.
        data_hash: The hash that the data set must have there.
        device: Where it runs.
        uri: The MLflow store.
        experiment: The MLflow experiment's name.
        keep_weights: Whether the models are kept.
        run_id: The ID of a finished run to score again; none to train.
        resumed: Whether its fit has a checkpoint.
        every: The time between two checkpoints, s.
        replaces: The IDs of the complete runs that it replaces.
        session: The command that it belongs to, which gives each trial to one worker at a time.
        seconds: How long it should take, going by earlier runs, s; none where that is not known.
        shared: How many jobs compute on its device at once, itself counted.
    """

    number: int
    trials: tuple[Trial, ...]
    evaluation: Evaluation | None
    data_dir: Path | None
    data_hash: str
    device: str
    uri: str
    experiment: str
    keep_weights: bool = True
    run_id: str | None = None
    resumed: bool = False
    every: float = 60.0
    replaces: tuple[str, ...] = ()
    session: str = ""
    seconds: float | None = None
    shared: int = 1

    @property
    def bases(self) -> list[str]:
        """The ids of the trials whose models it starts from."""
        return [trial.base.id for trial in self.trials if trial.base]

    @property
    def name(self) -> str:
        """A name for the display, such as `maf-z16-s0` or `maf-z16-s0..4`."""
        first, last = self.trials[0], self.trials[-1]
        return first.name if len(self.trials) == 1 else f"{first.name}..{last.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Arguments:
        trial: The trial.
        status: `complete` and `diverged` are results; `failed` is tried again on the next start.
        reason: Why it is not complete, or where its results are.
        means: Its test scores, or in a tuning its validation ELBO, nats per image.
        seconds: Its stack's training time, s.
        details: The traceback of a failure.
    """

    trial: Trial
    status: Literal["complete", "diverged", "failed"]
    reason: str = ""
    means: dict[str, float] | None = None
    seconds: float = 0.0
    details: str = ""


@dataclass(frozen=True)
class Event:
    """A step of a job: `done` of `total` epochs or images, and the mean ELBO where known, nats."""

    number: int
    name: str
    phase: Literal["fit", "evaluate"]
    done: int
    total: int
    elbo: float | None = None


@dataclass(frozen=True)
class Notice:
    """What a worker has to say besides: a warning, in a line."""

    text: str


Report = Callable[[Event | Notice], None]


class UnfinishedError(InputError):
    """A stage of a grid is not done, so that the next one cannot begin."""
