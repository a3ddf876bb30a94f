"""What is handed to a worker and what comes back: jobs, news and outcomes, all plain data."""

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
        run_id: The run whose kept model is only to be scored; none for a fit.
        every: How often a fit or a scoring saves how far it has come, s.
        replaces: The complete runs that it is to replace by new ones.
        session: The command that handed it out: what it handed out before is no other's.
        forsaken: The open runs that nobody is at any more, as far as can be known.
        code: The hash of the package that must run it; none for any.
        host: The machine that an sqlite store lives on; none where it is this one.
        seconds: What it should take, going by earlier runs, s; none where that is not known.
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
    every: float = 60.0
    replaces: tuple[str, ...] = ()
    session: str = ""
    forsaken: tuple[str, ...] = ()
    code: str = ""
    host: str = ""
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
