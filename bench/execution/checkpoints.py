"""Paths of the jobs' checkpoint files, and the checkpoints of interrupted jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from bench.grid.job import Job
from bench.store.runs import Store
from bench.system.paths import RESULTS_FOLDER
from flowvae.checkpoint import facts
from flowvae.training.trainer import FIT
from flowvae.trial import Trial

__all__ = ["checkpoint_path", "interrupted_stacks", "remove_done"]


CHECKPOINTS = "checkpoints"


def checkpoint_path(job: Job, trials: Sequence[Trial]) -> Path:
    """Returns the checkpoint file of a job for a stack of trials."""
    content = [*(trial.id for trial in trials), job.data_hash, job.run_id or FIT]
    key = hashlib.sha256("/".join(content).encode()).hexdigest()[:16]
    return RESULTS_FOLDER / job.experiment / CHECKPOINTS / f"{key}.safetensors"


def interrupted_stacks(experiment: str, data_hash: str) -> list[list[str]]:
    """Returns the trial ids of each stack of an experiment whose fit has a checkpoint."""
    return [keys for _, keys in _checkpoints(experiment, data_hash)]


def _checkpoints(experiment: str, data_hash: str) -> Iterator[tuple[Path, list[str]]]:
    for path in sorted((RESULTS_FOLDER / experiment / CHECKPOINTS).glob("*.safetensors")):
        fit = facts(path, FIT)
        keys = fit.get("trials")
        if fit.get("data") == data_hash and isinstance(keys, list):
            yield path, list(map(str, keys))


def remove_done(store: Store, data_hash: str, done: Container[str]) -> None:
    """Removes the checkpoints of stacks that are done, whose process died before it could.

    Arguments:
        store: The store of the trials.
        data_hash: The hash of their data.
        done: The ids of the trials that are done.
    """
    for path, keys in _checkpoints(store.name, data_hash):
        if all(key in done for key in keys):
            with store.locks.held(keys) as held, suppress(OSError):
                if held:
                    path.unlink()
