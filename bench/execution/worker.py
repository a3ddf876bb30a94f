"""A worker's part: fits, scores and records one job, and leaves alone what others have done.

An error ends a job's trials as failed and no other's. How far a job has come is saved on the way,
so that it goes on there when its process is ended, by whatever.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from bench.execution.checkpoints import checkpoint_path
from bench.execution.scoring import Scoring, begin_at, warn
from bench.grid.job import Event, Job, Outcome, Report
from bench.store.heartbeat import heartbeats
from bench.store.names import STORE_ERRORS, OvertakenError, is_temporary
from bench.store.run_writer import TRIES, RunWriter
from bench.store.runs import SHARED_TAG, Store, load_run
from bench.system.devices import device_name
from bench.system.memory import Peak, peak_memory
from bench.system.signals import defer_signals, requested_end
from flowvae.checkpoint import Checkpoint, code
from flowvae.data import Dataset, data_dir, load_data
from flowvae.errors import InputError, out_of_memory
from flowvae.models.vae import VAE
from flowvae.training.trainer import Fitted, fit, fit_prior
from flowvae.trial import Trial

__all__ = ["StackTooLargeError", "failed", "give_up", "open_store", "run_job"]


_OTHERS = "done by another process"


class StackTooLargeError(Exception):
    """A stack of several trials does not fit in memory."""


def open_store(job: Job) -> Store:
    """Returns the store that a job is recorded in."""
    return Store(job.uri, job.experiment, job.data_hash, known=True)


def run_job(
    job: Job, report: Report | None = None, *, waited: bool = False
) -> list[Outcome] | None:
    """Does one job and records it; an error is the outcome of the trials it hits.

    Arguments:
        job: The job.
        report: Called with each event.
        waited: Whether another process was at one of its trials before, and has ended.

    Returns:
        The outcomes; none where another process is at it.

    Raises:
        StackTooLargeError: Its trials do not fit in memory together.
    """
    store = open_store(job)
    keys = [trial.id for trial in job.trials]
    try:
        _check(job, store)
        if not _settled(job, store):
            return None
        with store.claims.held(keys) as held:
            if not held or store.busy(keys, job):
                return None
            outcomes = _others(job, store, waited=waited)
            left = [trial for trial in job.trials if trial not in outcomes]
            for outcome in _work(job, left, store, report) if left else []:
                outcomes[outcome.trial] = outcome
            store.claims.forget([t.id for t, o in outcomes.items() if o.status != "failed"])
            return [outcomes[trial] for trial in job.trials]
    except OvertakenError:
        return None
    except (
        InputError,
        *STORE_ERRORS,
    ) as error:  # the store or the folder of claims cannot be used
        return [failed(trial, error) for trial in job.trials]


def _check(job: Job, store: Store) -> None:
    """Refuses a worker that would train to other numbers, or write to no store.

    Raises:
        InputError: It has other code, or does not see the file of an sqlite store.
    """
    if job.code not in ("", code()):
        raise InputError(
            f"the worker on {platform.node()} has another flowvae than the command that gives it "
            "work: install the same version, or commit, on both"
        )
    if job.host not in ("", platform.node()) and not store.shared:
        raise InputError(
            f"the worker on {platform.node()} cannot write to {job.uri}, a file on {job.host}: "
            f"{store.served_by(job.host)}"
        )


def _settled(job: Job, store: Store) -> bool:
    """Tells whether no other process is at a model that the job starts from."""
    if not job.bases:
        return True
    done = store.fitted(trial.base for trial in job.trials if trial.base)
    left = [key for key in job.bases if key not in done]
    with store.claims.held(left) as held:
        return held and not store.busy(left, job)


def _others(job: Job, store: Store, *, waited: bool) -> dict[Trial, Outcome]:
    """Returns the outcomes of the trials that others did since the job was planned."""
    done: dict[Trial, Outcome] = {}
    for trial in job.trials:
        if letter := store.letter(trial.id):
            done[trial] = Outcome(trial, "complete", f"{_OTHERS}, kept in {letter}")
    try:
        runs = store.fitted(job.trials)
    except STORE_ERRORS as error:
        if not is_temporary(error):
            raise
        return done  # the store is away, and cannot tell: the runs are kept until it is back
    for trial in job.trials:
        run = runs.get(trial.id)
        if trial in done:
            continue
        if run is None or run.info.run_id in job.replaces:
            reason = store.failed(trial) if waited else None  # just now, in the other's hands
            if reason is not None:
                done[trial] = Outcome(trial, "failed", f"{reason} (in another process)")
        elif job.evaluation is None or store.scored(run, job.evaluation):
            diverged = run.data.tags.get("status") == "diverged"
            reason = run.data.tags.get("reason", "") if diverged else _OTHERS
            done[trial] = Outcome(trial, "diverged" if diverged else "complete", reason)
        elif job.run_id is None:  # fitted, and scored in another way
            (done[trial],) = _work(
                replace(job, trials=(trial,), run_id=run.info.run_id), [trial], store, None
            )
    return done


def _work(job: Job, left: Sequence[Trial], store: Store, report: Report | None) -> list[Outcome]:
    """Does what is left of a job whose claims are held."""
    records: dict[Trial, RunWriter] = {}
    outcomes: dict[Trial, Outcome] = {}
    kept: list[Checkpoint] = []
    with _killed_when_interrupted(records, kept), _living(store, records):
        try:
            data = _data_of(job.trials[0].dataset, job.data_dir, job.data_hash)
            # A stack that was cut short goes on as a whole, also for those who are done.
            whole = checkpoint_path(job, job.trials).exists()
            stack = list(job.trials if whole else left)
            if job.run_id is None:
                begun, tags = checkpoint_path(job, stack).exists(), _tags(job, stack)
                if whole:
                    tags[SHARED_TAG] = str(_shared(job, store))
                for trial in left:
                    with defer_signals():  # no run is open of which there is no record
                        records[trial] = store.start(trial, data, tags, job, begun=begun)
            bases = _bases_of(job, store, stack, records, outcomes)
            stack = [t for t in stack if t not in outcomes]
            path = checkpoint_path(job, stack)
            checkpoint = Checkpoint(path, job.every, stop=requested_end)
            kept.append(checkpoint)
            scoring = Scoring(job, data, checkpoint, report)
            if job.run_id is not None:
                outcomes[left[0]] = scoring.score_again(job.run_id)
            elif stack:
                with peak_memory(job.device) as peak:
                    fitted = _fit(job, stack, data, records, bases, checkpoint, report)
                for each in fitted:
                    if each.trial in records:
                        outcomes[each.trial] = _settle(scoring, each, peak, records[each.trial])
                if any(record.overtaken for record in records.values()):
                    raise OvertakenError
        except OvertakenError:
            raise
        except StackTooLargeError as error:
            for record in records.values():
                if not record.closed:
                    record.finish("killed", str(error))
            raise
        except Exception as error:
            closed = [t for t in left if t in records and records[t].closed]
            return [
                outcomes[t] if t in closed else failed(t, error, records.get(t), job) for t in left
            ]
        if all(outcome.status != "failed" for outcome in outcomes.values()):
            with suppress(OSError):  # the next plan removes it
                checkpoint.remove()
        else:
            _save(checkpoint)  # what is trained is not trained again
    return list(outcomes.values())


@contextmanager
def _killed_when_interrupted(
    records: Mapping[Trial, RunWriter], kept: Sequence[Checkpoint]
) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, OvertakenError) as end:
        for checkpoint in kept:
            _save(checkpoint)
        why = "interrupted" if isinstance(end, KeyboardInterrupt) else "given way to others:"
        for record in records.values():
            if not record.closed:
                record.finish("killed", f"{why} {end}".strip())
        raise


def _living(store: Store, records: Mapping[Trial, RunWriter]) -> AbstractContextManager[None]:
    """Gives signs of life to those who share the store from other machines."""
    return heartbeats(records.values()) if store.shared else nullcontext()


def _save(checkpoint: Checkpoint) -> None:
    """Saves what is not saved yet, if that can be done."""
    if checkpoint.pending:
        try:
            checkpoint.save()
        except OSError as error:
            warn(f"cannot write the checkpoint {checkpoint.path}: {error.strerror or error}")


def _tags(job: Job, stack: Sequence[Trial]) -> dict[str, str]:
    return {
        "device": device_name(job.device),
        "threads": str(torch.get_num_threads()),
        "stack": str(len(stack)),
        "load": f"{os.getloadavg()[0]:.1f}",
        SHARED_TAG: str(job.shared),
        "timing.measured": "as run",
        **({"role": "tuning"} if job.evaluation is None else {}),
    }


def _shared(job: Job, store: Store) -> int:
    """Returns how many jobs shared the device at most, of a job that goes on and before it."""
    try:
        runs = store.runs(job.trials).values()
    except STORE_ERRORS as error:
        if not is_temporary(error):
            raise
        return job.shared
    return max(job.shared, *(int(run.data.tags.get(SHARED_TAG, 1)) for run in runs), 1)


@lru_cache(maxsize=2)
def _data_of(spec: str, root: Path | None, known: str) -> Dataset:
    """Loads the data whose hash is known from the planning."""
    folder = data_dir(root)
    data = load_data(spec, folder)
    if data.hash != known:
        raise InputError(
            f"the data set {data.name} below {folder.resolve()} on {platform.node()} has the "
            f"hash {data.hash}; these trials were planned on {known}: give every worker the same "
            "files"
        )
    return data


def _bases_of(
    job: Job,
    store: Store,
    stack: Sequence[Trial],
    records: Mapping[Trial, RunWriter],
    outcomes: dict[Trial, Outcome],
) -> dict[Trial, VAE]:
    """Returns the model that each post-hoc trial starts from; closes those that have none."""
    bases: dict[Trial, VAE] = {}
    if job.trials[0].base is None or job.run_id is not None:
        return bases
    fitted = store.fitted(trial.base for trial in stack if trial.base)
    for trial in stack:
        assert trial.base is not None, "a stack is of one training"
        run, record = fitted.get(trial.base.id), records.get(trial)
        if run is not None and run.data.tags["status"] == "diverged":
            reason = f"{trial.base.name}, which it starts from, diverged"
            outcomes[trial] = Outcome(trial, "diverged", reason)
            if record:
                record.finish("diverged", reason)
            continue
        try:
            if run is None:
                raise InputError(f"{trial.base.name}, which it starts from, is not complete")
            bases[trial] = load_run(run.info.run_id, job.uri)[0]
            if record:
                record.tag(base=run.info.run_id)
        except InputError as error:
            outcomes[trial] = failed(trial, error, record)
    return bases


def failed(
    trial: Trial, error: Exception, record: RunWriter | None = None, job: Job | None = None
) -> Outcome:
    """Records an error as far as the store can be reached; returns it as an outcome."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    reason = (f"{kind}{error}".splitlines() or [kind])[0][:500]
    details = "".join(traceback.format_exception(error))
    if out_of_memory(error) and job is not None:
        _free_memory(error, job)
        reason = f"out of memory: {_sizes(job, trial)} ({reason})"
    if record is not None:
        with suppress(*STORE_ERRORS):  # the store itself may be what failed
            record.text("traceback.txt", details)
            record.finish("failed", reason)
    return Outcome(trial, "failed", reason, details=details)


def give_up(job: Job, error: Exception) -> list[Outcome]:
    """Closes a job as failed at which its workers died."""
    outcomes = [failed(trial, error) for trial in job.trials]
    for outcome in outcomes:
        for wait in (*TRIES, None):
            try:
                open_store(job).give_up(outcome.trial.id, f"given up: {outcome.reason}", job)
                break
            except STORE_ERRORS:  # a run that stays open is closed by the next command
                if wait is None:
                    break
            time.sleep(wait)
    return outcomes


def _free_memory(error: Exception, job: Job) -> None:
    """Lets go of what an error's frames hold of memory that ran out: the next trial may fit."""
    traceback.clear_frames(error.__traceback__)
    if torch.device(job.device).type == "cuda":
        torch.cuda.empty_cache()


def _sizes(job: Job, trial: Trial) -> str:
    """Says what takes memory, and what takes less of it."""
    sizes = [f"batch {trial.batch}", f"net {trial.labels['net']}", f"D = {trial.latent}"]
    if len(job.trials) > 1:
        sizes.insert(0, f"a stack of {len(job.trials)}")
    if torch.device(job.device).type == "cuda":
        free, total = torch.cuda.mem_get_info(job.device)
        sizes.append(f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free on {job.device}")
    return f"{', '.join(sizes)}; a smaller --batch or net may fit"


def _fit(
    job: Job,
    stack: Sequence[Trial],
    data: Dataset,
    records: Mapping[Trial, RunWriter],
    bases: Mapping[Trial, VAE],
    checkpoint: Checkpoint,
    report: Report | None,
) -> list[Fitted]:
    fits = False

    def on_epoch(epoch: int, means: list[dict[str, float] | None]) -> None:
        nonlocal fits
        fits = True
        alive = [(t, values) for t, values in zip(stack, means, strict=True) if values]
        for trial, values in alive:
            if trial in records:
                records[trial].curve(epoch, values)
        if report:
            elbo = sum(values["train/elbo"] for _, values in alive) / len(alive)
            report(Event(job.number, job.name, "fit", epoch, job.trials[0].epochs, elbo))

    def once() -> list[Fitted]:
        where = job.device
        with defer_signals():
            if not bases:
                return fit(stack, data, device=where, on_epoch=on_epoch, checkpoint=checkpoint)
            models = [bases[trial] for trial in stack]
            return fit_prior(
                stack, models, data, device=where, on_epoch=on_epoch, checkpoint=checkpoint
            )

    try:
        return begin_at(checkpoint, once)
    except Exception as error:
        # What has trained for a while fits: it goes on as the stack that it is, another time.
        fits = fits or checkpoint.path.exists()
        if fits or len(stack) == 1 or not out_of_memory(error):
            raise
        _free_memory(error, job)
        raise StackTooLargeError(f"a stack of {len(stack)} does not fit in memory") from None


def _settle(scoring: Scoring, fitted: Fitted, peak: Peak, record: RunWriter) -> Outcome:
    """Records one member of a stack: what befalls it is its own."""
    try:
        return scoring.record(fitted, peak, record)
    except OvertakenError as error:
        record.overtaken = True
        record.finish("killed", str(error))
        return Outcome(fitted.trial, "failed", str(error))  # of which nobody hears
    except Exception as error:
        return failed(fitted.trial, error, record, scoring.job)
