"""Stacks to results: each job is fitted, scored and recorded by a worker of an executor.

A job carries all that a worker needs and can be pickled; what it reports on the way are small
events. An error ends a job's trials as failed and no other's.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mlflow.exceptions import MlflowException

from flowvae.data import Dataset, load_data
from flowvae.errors import InputError
from flowvae.evaluation import evaluate
from flowvae.folder import save
from flowvae.surgery import dissect
from flowvae.train import Fitted, fit, fit_prior
from flowvae.trial import Evaluation, Trial
from flowvae.vae import VAE

from . import pictures
from .memory import Peak, peak_memory
from .sampling import samples_per_second
from .tracking import Record, Store, load_run

__all__ = ["Event", "Job", "Outcome", "Serial", "choose_device", "device_name", "launch"]


@dataclass(frozen=True)
class Job:
    """A stack to fit and score, or fitted runs to score once more.

    Arguments:
        number: Its place in the grid.
        trials: The stack, or the one trial whose model is scored.
        evaluation: How it is scored; not at all in a tuning, which sees no test image.
        data_dir: The folder of the data sets.
        data_hash: The hash that the data set must have there.
        device: Where it runs.
        uri: The MLflow store.
        experiment: The MLflow experiment's name.
        keep_weights: Whether the models are kept.
        run_id: The run whose kept model is only to be scored; none for a fit.
    """

    number: int
    trials: tuple[Trial, ...]
    evaluation: Evaluation | None
    data_dir: Path
    data_hash: str
    device: str
    uri: str
    experiment: str
    keep_weights: bool = True
    run_id: str | None = None

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
        reason: Why it is not complete.
        means: Its test scores, or in a tuning its validation ELBO, nats per image.
        seconds: Its stack's training time, s.
    """

    trial: Trial
    status: Literal["complete", "diverged", "failed"]
    reason: str = ""
    means: dict[str, float] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Event:
    """A step of a job: `done` of `total` epochs or images, and the mean ELBO where known, nats."""

    job: Job
    phase: Literal["fit", "evaluate"]
    done: int
    total: int
    elbo: float | None = None


Report = Callable[[Event], None]


class Serial(Executor):
    """Runs each call at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Calls `fn` and returns a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def launch(
    jobs: Sequence[Job], executor: Executor, report: Report | None = None
) -> Iterator[tuple[Job, list[Outcome]]]:
    """Runs jobs on an executor; yields each with its outcomes as it ends.

    Post-hoc fits take up models of the same grid: in another process they start when all else is
    done; in this one jobs run in the order in which they come.

    Arguments:
        jobs: The jobs, in the order in which they should start.
        executor: Where they run.
        report: Called with each event; only a worker in this process can reach it.
    """
    if isinstance(executor, Serial):  # its jobs run inside `submit`: yield between them
        for job in jobs:
            yield job, executor.submit(work, job, report).result()
        return
    for later in (False, True):
        wave = [job for job in jobs if (job.trials[0].base is not None) == later]
        futures = {_submit(executor, job): job for job in wave}
        for future in as_completed(futures):
            job, error = futures[future], future.exception()
            if isinstance(error, Exception):  # its worker died, say
                yield job, [_failed(trial, error, None) for trial in job.trials]
            else:
                yield job, future.result()


def _submit(executor: Executor, job: Job) -> Future[list[Outcome]]:
    try:
        return executor.submit(work, job)
    except Exception as error:  # a pool that broke takes no more
        future: Future[list[Outcome]] = Future()
        future.set_exception(error)
        return future


@lru_cache(maxsize=2)
def _data(spec: str, root: Path, known: str) -> Dataset:
    """Loads the data whose hash is known from the planning."""
    data = load_data(spec, root)
    if data.hash != known:
        raise InputError(
            f"the data set {data.name} below {root} has the hash {data.hash}; these trials were "
            f"planned on {known}: give every worker the same files"
        )
    return data


def choose_device(text: str) -> str:
    """Returns the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for here.

    Raises:
        InputError: It is none of these, or torch does not see it.
    """
    count = torch.cuda.device_count()
    if text == "auto":
        return "cuda" if count else "cpu"
    kind, colon, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise InputError(f"bad --device '{text}': expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= count:
        raise InputError(f"no device '{text}': torch sees {count} CUDA devices; try --device cpu")
    return text


def device_name(device: str) -> str:
    """Returns the device's name with what decides its speed, such as `cuda: NVIDIA H200`."""
    if torch.device(device).type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((ln.split(":")[1].strip() for ln in lines if "model name" in ln), "")
    threads = torch.get_num_threads()
    return f"cpu: {model or 'unknown'}, {threads} thread{'s' if threads > 1 else ''}"


def work(job: Job, report: Report | None = None) -> list[Outcome]:
    """Does one job and records it; an error is the outcome of the trials it hits."""
    records: list[Record] = []
    with _killed_when_interrupted(records):
        try:
            data = _data(job.trials[0].dataset, job.data_dir, job.data_hash)
            if job.run_id is not None:
                return [_score_again(job, job.run_id, data, report)]
            store = Store(job.uri, job.experiment, job.data_hash)
            tags = {
                "device": device_name(job.device),
                "threads": str(torch.get_num_threads()),
                "stack": str(len(job.trials)),
                "load": f"{os.getloadavg()[0]:.1f}",
                **({"role": "tuning"} if job.evaluation is None else {}),
            }
            for trial in job.trials:
                records.append(store.start(trial, data, tags))
            bases, lost = _bases(job, store, records)
            held = [record for record in records if not record.closed]
            with peak_memory(job.device) as peak:
                fitted = _fit(job, data, held, bases, report) if held else []
        except Exception as error:
            opened = itertools.zip_longest(job.trials, records)
            return [
                _failed(trial, error, record)
                for trial, record in opened
                if record is None or not record.closed
            ]
        members = zip(fitted, held, strict=True)
        return lost + [_settle(job, data, each, peak, record, report) for each, record in members]


def _bases(
    job: Job, store: Store, records: Sequence[Record]
) -> tuple[dict[Trial, VAE], list[Outcome]]:
    """Returns the model that each post-hoc trial starts from; closes those that have none."""
    bases: dict[Trial, VAE] = {}
    lost: list[Outcome] = []
    if job.trials[0].base is None:
        return bases, lost
    fitted = store.fitted(trial.base for trial in job.trials if trial.base)
    for trial, record in zip(job.trials, records, strict=True):
        assert trial.base is not None, "a stack is of one training"
        run = fitted.get(trial.base.id)
        if run is not None and run.data.tags["status"] == "diverged":
            reason = f"{trial.base.name}, which it starts from, diverged"
            record.finish("diverged", reason)
            lost.append(Outcome(trial, "diverged", reason))
            continue
        try:
            if run is None:
                raise InputError(f"{trial.base.name}, which it starts from, is not complete")
            bases[trial] = load_run(run.info.run_id, job.uri)[0]
            record.tag(base=run.info.run_id)
        except InputError as error:
            lost.append(_failed(trial, error, record))
    return bases, lost


@contextmanager
def _killed_when_interrupted(records: list[Record]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        for record in records:
            if not record.closed:
                record.finish("killed", "interrupted")
        raise


def _failed(trial: Trial, error: Exception, record: Record | None) -> Outcome:
    """Records an error as far as the store can be reached."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    reason = f"{kind}{error}".splitlines()[0][:500]
    if record is not None:
        with suppress(MlflowException, OSError):  # the store itself may be what failed
            details = "".join(traceback.format_exception(error))
            record.client.log_text(record.run_id, details, "traceback.txt")
            record.finish("failed", reason)
    return Outcome(trial, "failed", reason)


def _fit(
    job: Job,
    data: Dataset,
    records: Sequence[Record],
    bases: Mapping[Trial, VAE],
    report: Report | None,
) -> list[Fitted]:
    def on_epoch(epoch: int, means: list[dict[str, float] | None]) -> None:
        alive = [(r, values) for r, values in zip(records, means, strict=True) if values]
        for record, values in alive:
            record.curve(epoch, values)
        if report:
            elbo = sum(values["train/elbo"] for _, values in alive) / len(alive)
            report(Event(job, "fit", epoch, job.trials[0].epochs, elbo))

    if not bases:
        return fit(job.trials, data, device=job.device, on_epoch=on_epoch)
    models = list(bases.values())
    return fit_prior(list(bases), models, data, device=job.device, on_epoch=on_epoch)


def _settle(
    job: Job, data: Dataset, fitted: Fitted, peak: Peak, record: Record, report: Report | None
) -> Outcome:
    """Records one member of a stack: what befalls it is its own."""
    try:
        return _record(job, data, fitted, peak, record, report)
    except Exception as error:
        return _failed(fitted.trial, error, record)


def _record(
    job: Job, data: Dataset, fitted: Fitted, peak: Peak, record: Record, report: Report | None
) -> Outcome:
    """Scores a fitted trial and writes all that is kept of it; marks it complete last."""
    record.metrics(_costs(fitted) | peak.metrics("train"))
    record.tag(selected_epoch=str(fitted.epoch))
    record.flush()  # scoring may take long: the curves can be looked at meanwhile
    seconds = fitted.timing.train_seconds
    if fitted.status == "diverged":
        record.finish("diverged", fitted.reason)
        return Outcome(fitted.trial, "diverged", fitted.reason, seconds=seconds)
    with tempfile.TemporaryDirectory() as scratch:
        if job.keep_weights:
            save(fitted.vae, fitted.trial, Path(scratch) / "model")
        if job.evaluation is not None:  # the pictures show test images
            _draw(fitted.vae, fitted.trial, data, Path(scratch) / "pictures")
        record.folder(Path(scratch))
    if job.evaluation is None:
        means = {"valid/elbo": fitted.history["valid/elbo"][fitted.epoch - 1]}
    else:
        means = _score(job, fitted.vae, fitted.trial, data, record, report)
    outcome = _scored(fitted.trial, means, seconds)
    record.finish(outcome.status, outcome.reason)
    return outcome


def _scored(trial: Trial, means: dict[str, float], seconds: float = 0.0) -> Outcome:
    """Says what the scores mean: one that is not finite is a divergence."""
    for name, value in means.items():
        if not math.isfinite(value):
            return Outcome(trial, "diverged", f"{name} is {value}", seconds=seconds)
    return Outcome(trial, "complete", means=means, seconds=seconds)


def _costs(fitted: Fitted) -> dict[str, float]:
    times = {f"time/{name}": value for name, value in asdict(fitted.timing).items()}
    times.pop("time/stack")
    sizes = {
        "model/parameters": sum(p.numel() for p in fitted.vae.parameters()),
        "model/prior_parameters": sum(p.numel() for p in fitted.vae.prior.parameters()),
    }
    return times | sizes


def _draw(vae: VAE, trial: Trial, data: Dataset, folder: Path) -> None:
    folder.mkdir()
    drawn = pictures.samples(vae)
    np.save(folder / "samples.npy", drawn)
    pictures.sheet(drawn).save(folder / "samples.png")
    pictures.sheet(pictures.reconstructions(vae, data)).save(folder / "reconstructions.png")
    if trial.latent == 2:
        arrays = pictures.latent_map(vae, data, seed=trial.seed)
        np.savez(folder / "latent_map.npz", allow_pickle=False, **arrays)


def _score(
    job: Job, vae: VAE, trial: Trial, data: Dataset, record: Record, report: Report | None
) -> dict[str, float]:
    assert job.evaluation is not None
    data = job.evaluation.scored(data)
    images = data.test if job.evaluation.split == "test" else data.valid

    def on_chunk(done: int, total: int) -> None:
        if report:
            report(Event(job, "evaluate", done, total))

    start = time.perf_counter()  # the scores come back to the host: no need to synchronise
    with peak_memory(job.device) as peak:
        scores = evaluate(
            vae, images, job.evaluation, seed=trial.seed, device=job.device, on_chunk=on_chunk
        )
    speed = len(images) / (time.perf_counter() - start)
    speeds = {
        "time/evaluation_images_per_second": speed,
        "time/samples_per_second": samples_per_second(vae, job.device),
    }
    record.metrics(speeds | peak.metrics("evaluation"))
    surgery = dissect(vae, data, seed=trial.seed, split=job.evaluation.split, device=job.device)
    return record.scores(job.evaluation, scores, surgery)


def _score_again(job: Job, run_id: str, data: Dataset, report: Report | None) -> Outcome:
    """Scores the model that a complete run kept."""
    (trial,) = job.trials
    vae = load_run(run_id, job.uri)[0].to(job.device)
    record = Record(Store(job.uri, job.experiment).client, run_id)
    means = _score(job, vae, trial, data, record, report)
    record.flush()
    return _scored(trial, means)
