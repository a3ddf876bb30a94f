"""Runs one job in a worker: claims its trials, then fits, scores and records them.

An error fails this job's trials only. Progress is checkpointed, so an interrupted job resumes.
"""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bench.execution.checkpoints import checkpoint_path
from bench.execution.scoring import Scoring, begin_at, warn
from bench.grid.job import Event, Job, Outcome, Report
from bench.store.claims import Claim, TrialState
from bench.store.retry import STORE_ERRORS, with_retries
from bench.store.run_writer import OvertakenError, RunWriter
from bench.store.runs import SHARED_TAG, Store, load_run
from bench.store.sqlite import explain
from bench.system.devices import device_name
from bench.system.memory import Peak, peak_memory
from bench.system.signals import defer_signals, requested_end
from flowvae.checkpoint import Checkpoint
from flowvae.data import Dataset, data_dir, load_data
from flowvae.errors import USER_CODE_ERRORS, InputError, out_of_memory
from flowvae.models.vae import VAE
from flowvae.training.trainer import Fitted, fit, fit_prior
from flowvae.trial import Trial

__all__ = ["StackTooLargeError", "fail_lost_job", "failed", "open_store", "run_job"]


class StackTooLargeError(Exception):
    """A stack of several trials does not fit in memory."""


def open_store(job: Job) -> Store:
    """Returns the store that a job is recorded in."""
    return Store(job.uri, job.experiment, job.data_hash, session=job.session, known=True)


def run_job(
    job: Job, report: Report | None = None, *, waited: bool = False
) -> list[Outcome] | None:
    """Runs a job and records it; an error is the outcome of the trials that it concerns.

    Arguments:
        job: The job.
        report: Called with each event.
        waited: Whether another process was running one of its trials before, and has ended.

    Returns:
        The outcomes; none if another process is running one of the trials.

    Raises:
        StackTooLargeError: Its trials do not fit in memory together.
    """
    store = open_store(job)
    try:
        bases = _base_states(job, store)
        with store.claim(job.trials, job.replaces) as claim:
            if bases is None or claim.busy:
                return None
            outcomes = _known_outcomes(job, store, claim, report, waited=waited)
            remaining = [trial for trial in job.trials if trial not in outcomes]
            if remaining:
                outcomes |= _fit_and_score(job, remaining, claim, bases, report)
            store.locks.remove([t.id for t, o in outcomes.items() if o.status != "failed"])
            return [outcomes[trial] for trial in job.trials]
    except OvertakenError:
        return None
    except (InputError, *STORE_ERRORS) as error:  # the store or the locks cannot be used
        return [failed(trial, error) for trial in job.trials]


def _base_states(job: Job, store: Store) -> dict[str, TrialState] | None:
    """Returns the states of the trials whose models the job starts from, by id.

    None if another process is running one of them.
    """
    bases = {trial.base.id: trial.base for trial in job.trials if trial.base}
    states = store.states(bases.values())
    missing = [base for key, base in bases.items() if states[key].kind != "done"]
    if not missing:
        return states
    with store.claim(missing) as claim:
        return None if claim.busy else states | claim.states


def _known_outcomes(
    job: Job, store: Store, claim: Claim, report: Report | None, *, waited: bool
) -> dict[Trial, Outcome]:
    """Returns the outcomes of the trials that need no fit; scores those that need only this."""
    outcomes: dict[Trial, Outcome] = {}
    for trial in job.trials:
        state = claim.states[trial.id]
        if state.kind == "failed" and waited:  # just now, in the other process
            outcomes[trial] = Outcome(trial, "failed", f"{state.reason} (in another process)")
        elif state.kind == "done" and state.run:
            if job.evaluation is not None and not store.scored(state.run, job.evaluation):
                outcomes[trial] = _score_again(job, trial, state.run.info.run_id, report)
            elif state.run.data.tags.get("status") == "diverged":
                outcomes[trial] = Outcome(trial, "diverged", state.reason)
            else:
                outcomes[trial] = Outcome(trial, "complete", "done by another process")
    return outcomes


def _score_again(job: Job, trial: Trial, run_id: str, report: Report | None) -> Outcome:
    """Scores the model that a run kept."""
    job = replace(job, trials=(trial,), run_id=run_id)
    with _checkpointed(job, job.trials) as checkpoint:
        try:
            data = _data_of(trial.dataset, job.data_dir, job.data_hash)
            outcome = Scoring(job, data, checkpoint, report).score_again(run_id)
        except USER_CODE_ERRORS as error:
            outcome = failed(trial, error, None, job)
        _keep_if_failed(checkpoint, [outcome])
    return outcome


def _fit_and_score(
    job: Job,
    remaining: Sequence[Trial],
    claim: Claim,
    bases: Mapping[str, TrialState],
    report: Report | None,
) -> dict[Trial, Outcome]:
    """Fits, scores and records the remaining trials of a job, which are claimed."""
    job = replace(job, run_id=None)
    writers: dict[Trial, RunWriter] = {}
    outcomes: dict[Trial, Outcome] = {}
    # A stack with a checkpoint is resumed as a whole, with the trials that others have done since.
    whole = checkpoint_path(job, job.trials).exists()
    stack = list(job.trials if whole else remaining)
    try:
        data = _data_of(stack[0].dataset, job.data_dir, job.data_hash)
        checkpointed = checkpoint_path(job, stack).exists()
        tags = _tags(job, stack, claim.states.values() if whole else ())
        for trial in remaining:
            writers[trial] = claim.start(trial, data, tags, checkpointed=checkpointed)
        models = _base_models(job, stack, bases, writers, outcomes)
        stack = [trial for trial in stack if trial not in outcomes]
        with _checkpointed(job, stack) as checkpoint:
            if stack:
                with peak_memory(job.device) as peak:
                    all_fitted = _fit(job, stack, data, writers, models, checkpoint, report)
                scoring = Scoring(job, data, checkpoint, report)
                for fitted in all_fitted:
                    if writer := writers.get(fitted.trial):
                        outcomes[fitted.trial] = _record(scoring, fitted, peak, writer)
            if any(writer.overtaken for writer in writers.values()):
                raise OvertakenError
            _keep_if_failed(checkpoint, outcomes.values())
    except (OvertakenError, StackTooLargeError):
        raise  # the claim closes the runs
    except USER_CODE_ERRORS as error:
        for trial in remaining:
            if trial not in writers or not writers[trial].closed:
                outcomes[trial] = failed(trial, error, writers.get(trial), job)
    return outcomes


@contextmanager
def _checkpointed(job: Job, stack: Sequence[Trial]) -> Iterator[Checkpoint]:
    """Yields the checkpoint of a stack, which is saved if the block is interrupted."""
    checkpoint = Checkpoint(checkpoint_path(job, stack), job.every, stop=requested_end)
    try:
        yield checkpoint
    except (KeyboardInterrupt, OvertakenError):
        _save(checkpoint)
        raise


def _keep_if_failed(checkpoint: Checkpoint, outcomes: Collection[Outcome]) -> None:
    """Removes a checkpoint, unless a trial failed: what was computed is not computed again."""
    if any(outcome.status == "failed" for outcome in outcomes):
        _save(checkpoint)
    else:
        with suppress(OSError):  # the next plan removes it
            checkpoint.remove()


def _save(checkpoint: Checkpoint) -> None:
    """Saves what is not saved yet, or warns that it cannot be."""
    if checkpoint.pending:
        try:
            checkpoint.save()
        except OSError as error:
            warn(f"cannot write the checkpoint {checkpoint.path}: {error.strerror or error}")


def _tags(job: Job, stack: Sequence[Trial], before: Iterable[TrialState]) -> dict[str, str]:
    """Returns the tags that say how a stack is run.

    Arguments:
        job: The job.
        stack: The stack.
        before: The states of its trials, if it is resumed: the device may have been shared then.
    """
    runs = [state.run for state in before if state.run]
    shared = max(job.shared, *(int(run.data.tags.get(SHARED_TAG, 1)) for run in runs), 1)
    return {
        "device": device_name(job.device),
        "threads": str(torch.get_num_threads()),
        "stack": str(len(stack)),
        "load": f"{os.getloadavg()[0]:.1f}",
        SHARED_TAG: str(shared),
        **({"role": "tuning"} if job.evaluation is None else {}),
    }


@lru_cache(maxsize=2)
def _data_of(spec: str, root: Path | None, expected: str) -> Dataset:
    """Loads the data that the trials were planned on.

    Raises:
        InputError: The files here have another hash.
    """
    folder = data_dir(root)
    data = load_data(spec, folder)
    if data.hash != expected:
        raise InputError(
            f"the data set {data.name} below {folder.resolve()} on {platform.node()} has the "
            f"hash {data.hash}; these trials were planned on {expected}: give every worker the "
            "same files"
        )
    return data


def _base_models(
    job: Job,
    stack: Sequence[Trial],
    bases: Mapping[str, TrialState],
    writers: Mapping[Trial, RunWriter],
    outcomes: dict[Trial, Outcome],
) -> dict[Trial, VAE]:
    """Returns the model that each post-hoc trial starts from; closes the trials without one."""
    models: dict[Trial, VAE] = {}
    for trial in stack:
        if trial.base is None:
            continue
        base, writer = bases[trial.base.id], writers.get(trial)
        run = base.run if base.kind == "done" else None
        if run is not None and run.data.tags["status"] == "diverged":
            reason = f"{trial.base.name}, which it starts from, diverged"
            outcomes[trial] = Outcome(trial, "diverged", reason)
            if writer:
                writer.finish("diverged", reason)
            continue
        try:
            if run is None:
                raise InputError(f"{trial.base.name}, which it starts from, is not complete")
            models[trial] = load_run(run.info.run_id, job.uri)[0]
            if writer:
                writer.tag(base=run.info.run_id)
        except InputError as error:
            outcomes[trial] = failed(trial, error, writer)
    return models


def _fit(
    job: Job,
    stack: Sequence[Trial],
    data: Dataset,
    writers: Mapping[Trial, RunWriter],
    models: Mapping[Trial, VAE],
    checkpoint: Checkpoint,
    report: Report | None,
) -> list[Fitted]:
    """Fits a stack, from the models of its bases if it is post hoc.

    Raises:
        StackTooLargeError: It does not fit in memory.
    """
    fits = False

    def on_epoch(epoch: int, means: list[dict[str, float] | None]) -> None:
        nonlocal fits
        fits = True
        alive = [(t, values) for t, values in zip(stack, means, strict=True) if values]
        for trial, values in alive:
            if trial in writers:
                writers[trial].curve(epoch, values)
        if report:
            elbo = sum(values["train/elbo"] for _, values in alive) / len(alive)
            report(Event(job.number, job.name, "fit", epoch, job.trials[0].epochs, elbo))

    def once() -> list[Fitted]:
        options: dict[str, Any] = {
            "device": job.device,
            "on_epoch": on_epoch,
            "checkpoint": checkpoint,
        }
        with defer_signals():
            if not models:
                return fit(stack, data, **options)
            return fit_prior(stack, [models[trial] for trial in stack], data, **options)

    try:
        return begin_at(checkpoint, once)
    except Exception as error:
        # A stack that has trained for a while fits in memory: it is resumed as it is.
        fits = fits or checkpoint.path.exists()
        if fits or len(stack) == 1 or not out_of_memory(error):
            raise
        _free_memory(error, job)
        raise StackTooLargeError(f"a stack of {len(stack)} does not fit in memory") from None


def _record(scoring: Scoring, fitted: Fitted, peak: Peak, writer: RunWriter) -> Outcome:
    """Scores and records one trial of a stack; an error is its own outcome."""
    try:
        return scoring.record(fitted, peak, writer)
    except OvertakenError as error:
        writer.overtaken = True
        writer.finish("killed", str(error))
        return Outcome(fitted.trial, "failed", str(error))  # not reported: the job is run again
    except USER_CODE_ERRORS as error:
        return failed(fitted.trial, error, writer, scoring.job)


def failed(
    trial: Trial, error: BaseException, writer: RunWriter | None = None, job: Job | None = None
) -> Outcome:
    """Returns an error as an outcome, and records it if the store answers."""
    kind = "" if isinstance(error, InputError) else type(error).__name__
    message = explain(error) if isinstance(error, STORE_ERRORS) else f"{error}"
    first = next(iter(message.splitlines()), "")
    reason = ": ".join(part for part in (kind, first) if part)[:500]
    details = "".join(traceback.format_exception(error))
    if out_of_memory(error) and job is not None:
        _free_memory(error, job)
        reason = f"out of memory: {_sizes(job, trial)} ({reason})"
    if writer is not None:
        with suppress(*STORE_ERRORS):  # the next command closes a run that stays open
            writer.text("traceback.txt", details)
            writer.finish("failed", reason)
    return Outcome(trial, "failed", reason, details=details)


def fail_lost_job(job: Job, error: Exception) -> list[Outcome]:
    """Closes a job as failed whose workers died."""
    outcomes = [failed(trial, error) for trial in job.trials]
    for outcome in outcomes:
        key, reason = outcome.trial.id, f"given up: {outcome.reason}"
        with suppress(*STORE_ERRORS):  # the next command closes a run that stays open
            with_retries(lambda: open_store(job).fail_stale_runs(key, reason))  # noqa: B023
    return outcomes


def _free_memory(error: BaseException, job: Job) -> None:
    """Frees the memory that an error's frames hold, so that the next trial may fit."""
    traceback.clear_frames(error.__traceback__)
    if torch.device(job.device).type == "cuda":
        torch.cuda.empty_cache()


def _sizes(job: Job, trial: Trial) -> str:
    """Says what takes memory, and how to need less."""
    sizes = [f"batch {trial.batch}", f"net {trial.labels['net']}", f"D = {trial.latent}"]
    if len(job.trials) > 1:
        sizes.insert(0, f"a stack of {len(job.trials)}")
    if torch.device(job.device).type == "cuda":
        free, total = torch.cuda.mem_get_info(job.device)
        sizes.append(f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free on {job.device}")
    return f"{', '.join(sizes)}; a smaller --batch or net may fit"
