"""Where jobs keep how far they have come, and what those left that were cut short."""

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

__all__ = ["checkpoint_path", "forget_complete", "is_begun", "stacks_begun"]


CHECKPOINTS = "checkpoints"


def checkpoint_path(job: Job, trials: Sequence[Trial]) -> Path:
    """Returns where a job keeps how far it has come with a stack of trials."""
    content = [*(trial.id for trial in trials), job.data_hash, job.run_id or FIT]
    key = hashlib.sha256("/".join(content).encode()).hexdigest()[:16]
    return RESULTS_FOLDER / job.experiment / CHECKPOINTS / f"{key}.safetensors"


def is_begun(job: Job) -> bool:
    """Tells whether this folder holds how far a fit has come."""
    return job.run_id is None and checkpoint_path(job, job.trials).exists()


def stacks_begun(experiment: str, data_hash: str) -> list[list[str]]:
    """Returns the ids of each stack of trials of an experiment that has a checkpoint."""
    return [keys for _, keys in _begun(experiment, data_hash)]


def _begun(experiment: str, data_hash: str) -> Iterator[tuple[Path, list[str]]]:
    for path in sorted((RESULTS_FOLDER / experiment / CHECKPOINTS).glob("*.safetensors")):
        known = facts(path, FIT)
        keys = known.get("trials")
        if known.get("data") == data_hash and isinstance(keys, list):
            yield path, list(map(str, keys))


def forget_complete(store: Store, data_hash: str, complete: Container[str]) -> None:
    """Removes the checkpoints of stacks that are complete: their process died before it could.

    Arguments:
        store: Where the trials are recorded.
        data_hash: The hash of their data.
        complete: The ids of those that are complete.
    """
    for path, keys in _begun(store.name, data_hash):
        if all(key in complete for key in keys):
            with store.claims.held(keys) as held, suppress(OSError):
                if held:
                    path.unlink()
