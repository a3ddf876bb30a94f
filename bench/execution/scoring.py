"""How fast a prior is sampled: latents a second, on the device that scores it."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from bench.execution import artifacts
from bench.grid.job import Event, Job, Outcome, Report
from bench.store.run_writer import RunWriter
from bench.store.runs import SHARED_TAG, THREADS_TAG, Store, load_run
from bench.system.memory import Peak, peak_memory
from bench.system.signals import waiting
from flowvae.checkpoint import Checkpoint, CheckpointError
from flowvae.data import Dataset
from flowvae.evaluation.elbo_surgery import dissect
from flowvae.evaluation.importance_weighting import Scores, evaluate
from flowvae.models.saved_model import save
from flowvae.models.vae import VAE
from flowvae.numerics.streams import global_stream
from flowvae.training.trainer import Fitted, synchronise
from flowvae.trial import Trial

__all__ = ["Scoring", "begin_at", "samples_per_second", "warn"]


BATCH, MOST, SECONDS = 500, 10_000, 0.2
"""Latents at a time, in all, and the time after which no more are drawn, s."""


@torch.no_grad()
def samples_per_second(vae: VAE, device: str) -> float:
    """Returns the latents drawn from the prior a second, after a small draw to warm up."""
    density, place = vae.prior(), torch.device(device)
    with global_stream(0, "sampling speed"):
        density.sample((8,))
        synchronise(place)
        start, drawn, seconds = time.perf_counter(), 0, 0.0
        while drawn < MOST and seconds < SECONDS:
            density.sample((BATCH,))
            synchronise(place)
            drawn, seconds = drawn + BATCH, time.perf_counter() - start
    return drawn / seconds


Done = TypeVar("Done")


@dataclass(frozen=True)
class Scoring:
    """Scores the trials of a job, and records them.

    Arguments:
        job: The job.
        data: Its data set.
        checkpoint: Where the scoring saves how far it has come.
        report: Called with each event.
    """

    job: Job
    data: Dataset
    checkpoint: Checkpoint
    report: Report | None

    def record(self, fitted: Fitted, peak: Peak, record: RunWriter) -> Outcome:
        """Scores a fitted trial and writes all that is kept of it; marks it complete last.

        Arguments:
            fitted: The trial.
            peak: What its fit took of memory.
            record: Its run.

        Raises:
            OvertakenError: Another process took the trial over.
        """
        record.metrics(_costs(fitted) | peak.metrics("train"))
        threads = ", ".join(map(str, fitted.timing.threads))
        record.tag(selected_epoch=str(fitted.epoch), **{THREADS_TAG: threads})
        record.flush()  # scoring may take long: the curves can be looked at meanwhile
        seconds = fitted.timing.train_seconds
        if fitted.status == "diverged":
            record.finish("diverged", fitted.reason)
            return Outcome(fitted.trial, "diverged", fitted.reason, seconds=seconds)
        with tempfile.TemporaryDirectory() as scratch:
            if self.job.keep_weights:
                save(fitted.vae, fitted.trial, Path(scratch) / "model")
            if self.job.evaluation is not None:  # the pictures show test images
                _draw(fitted.vae, fitted.trial, self.data, Path(scratch) / "pictures")
            record.folder(Path(scratch))
        if self.job.evaluation is None:
            means = {"valid/elbo": fitted.history["valid/elbo"][fitted.epoch - 1]}
        else:
            means = self._score(fitted.vae, fitted.trial, record)
        outcome = _scored(fitted.trial, means, seconds)
        record.finish(outcome.status, outcome.reason)
        if record.apart:
            return replace(outcome, reason=f"kept in {record.apart}")
        return outcome

    def again(self, run_id: str) -> Outcome:
        """Scores the model that a complete run kept."""
        job = self.job
        (trial,) = job.trials
        vae = load_run(run_id, job.uri)[0].to(job.device)
        record = RunWriter(Store(job.uri, job.experiment).client, run_id)
        if job.shared > 1:  # one mark for all timings of a run: those to come are shared
            record.tag(**{SHARED_TAG: str(job.shared), "timing.measured": "as run"})
            record.flush()
        means = self._score(vae, trial, record)
        record.flush()
        return _scored(trial, means)

    def _score(self, vae: VAE, trial: Trial, record: RunWriter) -> dict[str, float]:
        job, evaluation = self.job, self.job.evaluation
        assert evaluation is not None
        data = evaluation.scored(self.data)
        images = data.test if evaluation.split == "test" else data.valid

        def on_chunk(done: int, total: int) -> None:
            if self.report:
                self.report(Event(job.number, job.name, "evaluate", done, total))

        start = time.perf_counter()  # the scores come back to the host: no need to synchronise

        def once() -> Scores:
            with waiting():
                return evaluate(
                    vae,
                    images,
                    evaluation,
                    seed=trial.seed,
                    device=job.device,
                    on_chunk=on_chunk,
                    checkpoint=self.checkpoint,
                )

        with peak_memory(job.device) as peak:
            scores = begin_at(self.checkpoint, once)
        speed = len(images) / (time.perf_counter() - start)
        speeds = {
            "time/evaluation_images_per_second": speed,
            "time/samples_per_second": samples_per_second(vae, job.device),
        }
        record.metrics(speeds | peak.metrics("evaluation"))
        surgery = dissect(vae, data, seed=trial.seed, split=evaluation.split, device=job.device)
        return record.scores(evaluation, scores, surgery)


def _scored(trial: Trial, means: dict[str, float], seconds: float = 0.0) -> Outcome:
    """Says what the scores mean: one that is not finite is a divergence."""
    for name, value in means.items():
        if not math.isfinite(value):
            return Outcome(trial, "diverged", f"{name} is {value}", seconds=seconds)
    return Outcome(trial, "complete", means=means, seconds=seconds)


def _costs(fitted: Fitted) -> dict[str, float]:
    names = ("train_seconds", "epoch_seconds", "images_per_second")
    return {f"time/{name}": getattr(fitted.timing, name) for name in names} | {
        "model/parameters": sum(p.numel() for p in fitted.vae.parameters()),
        "model/prior_parameters": sum(p.numel() for p in fitted.vae.prior.parameters()),
    }


def _draw(vae: VAE, trial: Trial, data: Dataset, folder: Path) -> None:
    folder.mkdir()
    drawn = artifacts.samples(vae)
    np.save(folder / "samples.npy", drawn)
    np.save(folder / "test_images.npy", artifacts.real_images(data))
    artifacts.sheet(drawn).save(folder / "samples.png")
    artifacts.sheet(artifacts.reconstructions(vae, data)).save(folder / "reconstructions.png")
    if trial.latent == 2:
        arrays = artifacts.latent_map(vae, data, seed=trial.seed)
        np.savez(folder / "latent_map.npz", allow_pickle=False, **arrays)


def begin_at(checkpoint: Checkpoint, body: Callable[[], Done]) -> Done:
    """Does what begins at a checkpoint; from the start, where that is of something else."""
    try:
        return body()
    except CheckpointError as error:
        warn(f"{error}: it begins anew")
        checkpoint.remove()
        return body()


def warn(text: str) -> None:
    """Warns the person who waits for the job."""
    warnings.warn(text, RuntimeWarning, stacklevel=3)
