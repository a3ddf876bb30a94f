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
    """A stack to train and score, or a finished run to score again.

    Arguments:
        number: The job's position in the plan.
        trials: The stack, or the one trial to score again.
        evaluation: How the models are scored; None in a tuning, which uses no test image.
        data_dir: The folder of the data sets; None for the worker's own, see `data_dir`.
        data_hash: The hash that the worker's data set must have.
        device: The device that computes.
        uri: The MLflow store.
        experiment: The MLflow experiment's name.
        keep_weights: Whether the models are stored.
        run_id: The ID of a finished run to score again; None to train.
        resumed: Whether there is a checkpoint of the training.
        every: The time between two checkpoints, s.
        replaces: The IDs of the complete runs that the new ones replace.
        session: The id of the command, which gives each trial to one worker at a time.
        seconds: The duration estimated from earlier runs, s; None if unknown.
        shared: The number of jobs on the device at once, this one included.
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
        """The ids of the trials whose models the training starts from."""
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
        status: `complete` and `diverged` are results; `failed` is tried again by the next command.
        reason: Why the trial is not complete, or which process completed it.
        means: The test scores, or in a tuning the validation ELBO, nats per image.
        seconds: The training time of the stack, s.
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
    """Progress of a job: `done` of `total` epochs or images, and the mean ELBO if known, nats."""

    number: int
    name: str
    phase: Literal["fit", "evaluate"]
    done: int
    total: int
    elbo: float | None = None


@dataclass(frozen=True)
class Notice:
    """A worker's warning, in one line."""

    text: str


Report = Callable[[Event | Notice], None]


class UnfinishedError(InputError):
    """A stage of a grid is unfinished, so that the next one cannot begin."""
