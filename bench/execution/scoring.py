"""Scores the trials of a job and writes what was measured to their runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bench.execution.measurement import files_of_model, measure, measure_fit
from bench.grid.job import Event, Job, Outcome, Report
from bench.statistics.metrics import scores_in
from bench.store.run_writer import RunWriter
from bench.store.runs import SHARED_TAG, Store, load_run
from bench.system.memory import Peak
from flowvae.checkpoint import Checkpoint, CheckpointError
from flowvae.data import Dataset
from flowvae.models.vae import VAE
from flowvae.training.trainer import Fitted
from flowvae.trial import Trial

__all__ = ["Scoring", "begin_at", "warn"]


Result = TypeVar("Result")


@dataclass(frozen=True)
class Scoring:
    """Scores the trials of a job and writes their runs.

    Arguments:
        job: The job.
        data: Its data set.
        checkpoint: Where the scoring saves its progress.
        report: Called with each event.
    """

    job: Job
    data: Dataset
    checkpoint: Checkpoint
    report: Report | None

    def record(self, fitted: Fitted, peak: Peak, writer: RunWriter) -> Outcome:
        """Scores a fitted trial and writes its run, which is marked complete last.

        Arguments:
            fitted: The trial.
            peak: The peak memory of its fit.
            writer: Its run.

        Raises:
            OvertakenError: Another process took the trial over.
        """
        job, trial = self.job, fitted.trial
        seconds = fitted.timing.train_seconds
        writer.write(measure_fit(fitted, peak))
        writer.flush()  # scoring may take long: the curves can be looked at meanwhile
        if fitted.status == "diverged":
            writer.finish("diverged", fitted.reason)
            return Outcome(trial, "diverged", fitted.reason, seconds=seconds)
        draw = job.evaluation is not None  # a tuning sees no test image
        writer.write(
            files_of_model(
                fitted.vae, trial, self.data, keep_weights=job.keep_weights, draw_images=draw
            )
        )
        if job.evaluation is None:
            scores = {"valid/elbo": fitted.history["valid/elbo"][fitted.epoch - 1]}
        else:
            scores = self._score(fitted.vae, trial, writer)
        outcome = _outcome(trial, scores, seconds)
        writer.finish(outcome.status, outcome.reason)
        return outcome

    def score_again(self, run_id: str) -> Outcome:
        """Scores the model that a complete run kept."""
        job = self.job
        (trial,) = job.trials
        vae = load_run(run_id, job.uri)[0].to(job.device)
        writer = RunWriter(Store(job.uri, job.experiment).client, run_id)
        if job.shared > 1:  # one tag for all timings of a run, and those to come are shared
            writer.tag(**{SHARED_TAG: str(job.shared)})
            writer.flush()
        scores = self._score(vae, trial, writer)
        writer.flush()
        return _outcome(trial, scores)

    def _score(self, vae: VAE, trial: Trial, writer: RunWriter) -> dict[str, float]:
        """Measures a model and writes that to its run; returns its scores by metric."""
        job, evaluation, report = self.job, self.job.evaluation, self.report
        assert evaluation is not None

        def on_chunk(done: int, total: int) -> None:
            if report:
                report(Event(job.number, job.name, "evaluate", done, total))

        measurements = begin_at(
            self.checkpoint,
            lambda: measure(
                vae,
                trial,
                self.data,
                evaluation,
                device=job.device,
                on_chunk=on_chunk,
                checkpoint=self.checkpoint,
            ),
        )
        writer.write(measurements)
        return scores_in(measurements.metrics, evaluation.split)


def _outcome(trial: Trial, scores: dict[str, float], seconds: float = 0.0) -> Outcome:
    """Returns the outcome of a scored trial: a score that is not finite is a divergence."""
    for name, value in scores.items():
        if not math.isfinite(value):
            return Outcome(trial, "diverged", f"{name} is {value}", seconds=seconds)
    return Outcome(trial, "complete", means=scores, seconds=seconds)


def begin_at(checkpoint: Checkpoint, body: Callable[[], Result]) -> Result:
    """Runs what resumes at a checkpoint; from the start if the checkpoint does not fit."""
    try:
        return body()
    except CheckpointError as error:
        warn(f"{error}: starting over")
        checkpoint.remove()
        return body()


def warn(text: str) -> None:
    """Warns the user that waits for the job."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)
