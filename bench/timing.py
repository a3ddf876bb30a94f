"""Takes the timings of complete runs once more, alone on the device.

What several jobs at once take on one device says little of what each takes, nor do the times of a
trial that went on with another number of threads. Numbers are not touched by that, so nothing is
trained or scored again for them: a few epochs and some scores tell
the speeds, with the trainer and the estimator that the runs had. Peak memory stands as it was:
it is counted by process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING

import torch
from mlflow.entities import Metric, Run
from mlflow.utils.time import get_current_time_millis

from flowvae.data import Dataset
from flowvae.evaluation import evaluate
from flowvae.train import Fitted, fit, fit_prior
from flowvae.trial import Trial
from flowvae.vae import VAE

from .announce import say_timing
from .devices import device_name
from .job import Job, Outcome
from .record import Record
from .sampling import samples_per_second
from .scoring import timings
from .tracking import SHARED, THREADS, Store, load_run, timed
from .work import OTHERS, bases_of, data_of, failed

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["retime", "retime_each"]

EPOCHS = 4
"""Epochs of a stack that are timed, the first of them its warm-up."""
IMAGES = 2000
"""Images of a trial that are scored, at most."""


def retime(job: Job) -> list[Outcome]:
    """Times a job's complete trials alone, those that were not.

    A stack is trained as the stack it was, of as many members, for a few epochs; its training
    time is theirs and their median for each epoch that it once took. Latents are drawn from the
    weights that were kept, else from those of the short fit.

    The mark of a run is taken off last: cut short, it is measured again.

    Arguments:
        job: Trials of one stack; nothing else may run on its device.

    Returns:
        What each trial's timings are now, in words, or why there are none.
    """
    store = Store(job.uri, job.experiment, job.data_hash, known=True)
    keys = [trial.id for trial in job.trials]
    try:
        with store.claims.held(keys, wait=True):
            runs = store.fitted(job.trials)
            left = {
                trial: runs[trial.id]
                for trial in job.trials
                if trial.id in runs and timed(runs[trial.id]) != "alone"
            }
            outcomes = {trial: Outcome(trial, "complete", OTHERS) for trial in job.trials}
            if left:
                outcomes |= _retime(job, store, left)
            store.claims.forget(keys)
            return list(outcomes.values())
    except Exception as error:
        return [failed(trial, error, job=job) for trial in job.trials]


def retime_each(console: Console, jobs: Sequence[Job], executor: Executor) -> None:
    """Times jobs once more, one at a time: nothing else of the grid runs meanwhile."""
    if not jobs:
        return
    say_timing(console, jobs)
    for job in jobs:
        try:
            outcomes = executor.submit(retime, job).result()
        except Exception as error:  # its worker died, say
            outcomes = [failed(trial, error) for trial in job.trials]
        for outcome in outcomes:
            told = outcome.reason if outcome.status == "complete" else f"failed: {outcome.reason}"
            console.print(f"{outcome.trial.name:<20} {told}", markup=False, soft_wrap=True)


def _retime(job: Job, store: Store, left: Mapping[Trial, Run]) -> dict[Trial, Outcome]:
    outcomes: dict[Trial, Outcome] = {}
    data = data_of(job.trials[0].dataset, job.data_dir, job.data_hash)
    bases = bases_of(job, store, list(left), {}, outcomes)
    stack = {trial: run for trial, run in left.items() if trial not in outcomes}
    if not stack:
        return outcomes
    load = f"{os.getloadavg()[0]:.1f}"
    epochs = max(store.logged(run.info.run_id)["train/elbo"] for run in stack.values())
    size = int(next(iter(stack.values())).data.tags["stack"])
    fitted = _fit(job, list(islice(cycle(stack), size)), data, bases, min(EPOCHS, epochs))
    training = _training(fitted, epochs)
    for (trial, run), each in zip(stack.items(), fitted, strict=False):
        kept = store.artifact(run, "model") is not None
        vae = load_run(run.info.run_id, job.uri)[0].to(job.device) if kept else each.vae
        times = training | {
            "time/evaluation_images_per_second": _scoring_speed(job, trial, vae, data),
            "time/samples_per_second": samples_per_second(vae, job.device),
        }
        tags = {
            "load": load,
            "timing.device": device_name(job.device),
            "timing.measured": "exclusive" if kept else "exclusive, weights of a short fit",
            SHARED: "1",
            THREADS: str(torch.get_num_threads()),
        }
        _write(store, run, times, tags)
        told = f"{times['time/images_per_second']:,.0f} training images/s, "
        told += f"{times['time/samples_per_second']:,.0f} samples/s"
        outcomes[trial] = Outcome(trial, "complete", told)
    return outcomes


def _fit(
    job: Job, stack: Sequence[Trial], data: Dataset, bases: Mapping[Trial, VAE], epochs: int
) -> list[Fitted]:
    short = [
        trial.but(epochs=epochs, warmup=min(trial.warmup, epochs), patience=None)
        for trial in stack
    ]
    if not bases:
        return fit(short, data, device=job.device)
    return fit_prior(short, [bases[trial] for trial in stack], data, device=job.device)


def _training(fitted: Sequence[Fitted], epochs: int) -> dict[str, float]:
    """Returns the timings of a fit of so many epochs, from those of a shorter one."""
    timing = fitted[0].timing
    done = max(len(each.history["train/elbo"]) for each in fitted)
    seconds = timing.train_seconds + (epochs - done) * timing.epoch_seconds
    return timings(replace(timing, train_seconds=seconds))


def _scoring_speed(job: Job, trial: Trial, vae: VAE, data: Dataset) -> float:
    """Returns the images that are scored a second."""
    assert job.evaluation is not None, "a tuning's timings are compared with none"
    data = job.evaluation.scored(data)
    images = (data.test if job.evaluation.split == "test" else data.valid)[:IMAGES]
    start = time.perf_counter()  # the scores come back to the host: no need to synchronise
    evaluate(vae, images, job.evaluation, seed=trial.seed, device=job.device)
    return len(images) / (time.perf_counter() - start)


def _write(store: Store, run: Run, times: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """Writes timings, later than those that the run holds by whatever clock, and then the tags."""
    run_id = run.info.run_id
    record = Record(store.client, run_id)
    for name, value in times.items():
        before = store.client.get_metric_history(run_id, name)
        now = max(get_current_time_millis(), *(point.timestamp + 1 for point in before), 0)
        record.take([Metric(name, value, now, 0)])
    record.flush()
    record.tag(**tags)
    record.flush()
