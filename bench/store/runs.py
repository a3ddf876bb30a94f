"""The store of one experiment: finds, claims and closes the MLflow runs of its trials.

A run is one trial. The tag `complete`, written last, makes it a result; each evaluation has a tag
of its own, so that a fitted model can be scored again. `bench.results.read` reads the results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from bench.store.address import tracking_uri
from bench.store.claims import Claim, TrialState, claimed, close_run, may_live, trial_state
from bench.store.finder import RunFinder, is_open
from bench.store.names import SUPERSEDED, TRIAL
from bench.store.run_writer import OvertakenError, RunWriter, end_as
from bench.system.process import has_ended
from flowvae.errors import InputError
from flowvae.models.saved_model import load
from flowvae.models.vae import VAE
from flowvae.trial import Evaluation, Trial

__all__ = ["SHARED_TAG", "THREADS_TAG", "Store", "load_run", "run_timings"]


SHARED_TAG, THREADS_TAG = "timing.shared", "timing.threads"
"""The tags that hold the most jobs that shared the device while a run was timed, and its numbers
of threads: several if it was resumed with another one."""


class Store(RunFinder):
    """The runs of one experiment, and the states of its trials."""

    def states(self, trials: Iterable[Trial]) -> dict[str, TrialState]:
        """Returns the state of each trial by its id, without a claim.

        An open run counts as another process's: only a claim can tell that it is stale.
        """
        runs = self.of_trials(trial.id for trial in trials)
        return {
            key: trial_state(some, (), [run for run in some if is_open(run)])
            for key, some in runs.items()
        }

    def claim(
        self, trials: Iterable[Trial], replaced: Collection[str] = ()
    ) -> AbstractContextManager[Claim]:
        """Claims trials in a block, all of them or none; see `bench.store.claims`.

        Arguments:
            trials: The trials.
            replaced: The ids of complete runs that are to be replaced, and so do not count.
        """
        return claimed(self, [trial.id for trial in trials], replaced)

    def close_stale_runs(self) -> list[str]:
        """Closes the runs that stayed open when their process died; returns their names."""
        names = []
        for run in self._search("attributes.status = 'RUNNING'"):
            key = run.data.tags.get(TRIAL)
            if key is None:
                continue
            with self.locks.held([key]) as held:
                if not held:
                    continue
                now = self.client.get_run(run.info.run_id)  # it may have ended meanwhile
                stale = not self.shared or has_ended(now.data.tags)
                if now.info.status == "RUNNING" and stale:
                    with suppress(OvertakenError):
                        close_run(self, now)
                        names.append(run.info.run_name)
        return names

    def fail_stale_runs(self, key: str, reason: str) -> None:
        """Closes the stale runs of a trial as failed, after its workers died.

        Arguments:
            key: The trial's id.
            reason: Why it failed.
        """
        with self.locks.held([key]) as held:
            for run in self.of_trials([key])[key] if held else []:
                if not is_open(run) or may_live(self, run):
                    continue
                # A worker that was only cut off may come back.
                if not self.shared or end_as(self.client, run.info.run_id, SUPERSEDED):
                    RunWriter(self.client, run.info.run_id).finish("failed", reason)

    def scored(self, run: Run, evaluation: Evaluation) -> bool:
        """Tells whether a run holds an evaluation, or can never hold one."""
        tags = run.data.tags
        return f"evaluation.{evaluation.id}" in tags or tags.get("status") == "diverged"

    def artifact(self, run: Run, path: str) -> Path | None:
        """Returns a local path of an artifact, or None if the run has none of that name."""
        return _artifact(self.client, run, path)


def run_timings(run: Run) -> str:
    """Returns how a run was timed: `alone`, `shared` or `resumed`."""
    if int(run.data.tags.get(SHARED_TAG, 1)) > 1:
        return "shared"
    return "resumed" if "," in run.data.tags.get(THREADS_TAG, "") else "alone"


def _artifact(client: MlflowClient, run: Run, path: str) -> Path | None:
    root = run.info.artifact_uri
    if is_local_uri(root):
        local = Path(local_file_uri_to_path(root)) / path
        return local if local.exists() else None
    run_id = run.info.run_id
    parent = path.rpartition("/")[0] or None
    if path not in {item.path for item in client.list_artifacts(run_id, parent)}:
        return None
    return Path(client.download_artifacts(run_id, path))


def load_run(run_id: str, uri: str | None = None) -> tuple[VAE, Trial]:
    """Loads the model of a run.

    Arguments:
        run_id: The run's id, as `mlflow ui` shows it.
        uri: The MLflow store; see `tracking_uri`.

    Returns:
        The model, on the CPU, and its description.

    Raises:
        InputError: The store has no such run, or the run kept no model.
    """
    store = Store(tracking_uri(uri), "")
    if not store.exists:
        raise InputError(f"there is no MLflow store at {store.uri}")
    client = store.client
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        absent = error.error_code == "RESOURCE_DOES_NOT_EXIST"
        why = "expected an id, such as `run_id` in trials.csv" if absent else error.message
        raise InputError(f"no run '{run_id}' in {store.uri}: {why}") from None
    folder = _artifact(client, run, "model")
    if folder is None:
        raise InputError(
            f"run '{run_id}' kept no weights: `python -m bench.run` with --force trains it again"
        )
    return load(folder, trusted=True)  # its own commands wrote what this store holds
