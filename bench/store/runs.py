"""The record of every trial in MLflow: what is written, and what is found again.

A run is one trial. What makes it *complete* is our own tag, written last; an evaluation is
complete by a tag of its own, so that a new one attaches to a fitted model. `bench.results.read`
reads it back.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from bench.grid.job import Job
from bench.store.address import tracking_uri
from bench.store.connection import Connection
from bench.store.names import (
    COMPLETE_TAG,
    ENDED_AS,
    STORE_ERRORS,
    SUPERSEDED,
    TRIAL,
    OvertakenError,
    is_temporary,
)
from bench.store.run_info import opening
from bench.store.run_writer import RunWriter, end_as
from bench.system.process import has_ended
from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.models.saved_model import load
from flowvae.models.vae import VAE
from flowvae.trial import Evaluation, Trial

__all__ = ["SHARED_TAG", "THREADS_TAG", "Store", "load_run", "run_timings"]


Key = TypeVar("Key")
CURVES = ("train/", "valid/")
"""How the names of metrics begin that have a value an epoch."""
SESSION = "session"
PLACE = ("device", "threads", "stack", "version.", "data.hash", "git.", "precision")
"""How the tags begin in which a run that is taken up again must agree."""
SHARED_TAG, THREADS_TAG = "timing.shared", "timing.threads"
"""The tags that tell how many jobs were on the device at once when a run was timed, and the
numbers of threads that it had: several where it went on with others."""
FEW = 8
"""Up to how many trials are searched one by one rather than among all."""
LONGEST = 250
"""Characters of a run's name; its params hold the whole."""


class Store(Connection):
    """The runs of one experiment: written, taken up, closed, and found again.

    In a store that other machines share, the runs themselves tell who is at a trial; see
    `bench.store.heartbeat`.
    """

    def start(
        self,
        trial: Trial,
        data: Dataset,
        tags: Mapping[str, str],
        job: Job | None = None,
        *,
        begun: bool = False,
    ) -> RunWriter:
        """Opens the run of a trial on its data set, or the one that was interrupted, again.

        The claim on the trial must be held: what others left open is then nobody's.

        Arguments:
            trial: The trial.
            data: Its data set.
            tags: What else is to be known of how it is run.
            job: The job that it is part of.
            begun: Whether this folder holds how far an interrupted run has come.

        Raises:
            OvertakenError: In a shared store, another process is at it or has completed it.
        """  # fmt: skip
        away = self.unsent / trial.id
        shutil.rmtree(away, ignore_errors=True)  # of a process that died before it laid it down
        given = opening(trial, data, tags)
        if job is not None:
            given["tags"][SESSION] = job.session
            given["replaces"] = list(job.replaces)
        try:
            abandoned = [run for run in self._of(trial.id) if self._abandoned(run, job)]
            for run in abandoned:
                # Elsewhere than beside its checkpoint a run would begin anew, maybe twice.
                if _same_place(run, given["tags"]) and (begun or not self.shared):
                    record = self._again(run, given, away)
                    self._assert_alone(record.run_id, trial.id, given["replaces"])
                    return record
            for run in abandoned:
                self._bury(run)
            run_id = self.open(given)
        except STORE_ERRORS as error:
            if not is_temporary(error):
                raise
            record = RunWriter(self.client, "", away=away, opening=given, shared=self.shared)
            record.go_apart(error)
            return record
        return RunWriter(self.client, run_id, away=away, opening=given, shared=self.shared)

    def open(self, given: Mapping[str, Any]) -> str:
        """Opens a run; returns its id.

        Raises:
            OvertakenError: In a shared store, another process is at it or has completed it.
        """
        self._count(given)
        run = self.client.create_run(
            self.experiment, tags=given["tags"], run_name=given["name"][:LONGEST]
        )
        run_id = str(run.info.run_id)
        self._assert_alone(run_id, given["tags"][TRIAL], given["replaces"])
        self._describe(run_id, given)
        return run_id

    def busy(self, keys: Iterable[str], job: Job | None = None) -> list[Run]:
        """Returns the open runs of a shared store at which another process may be.

        Arguments:
            keys: The ids of the trials.
            job: The job that would do them: what its command handed out before is no other's.
        """
        if not self.shared:
            return []  # the claims tell
        runs = [run for key in keys for run in self._of(key)]
        return [run for run in runs if _open(run) and not self._over(run, job)]

    def _over(self, run: Run, job: Job | None) -> bool:
        """Tells whether nobody is at an open run of a shared store, as far as can be known."""
        if job is not None and run.info.run_id in job.forsaken:
            return True
        if job is not None and job.session and run.data.tags.get(SESSION) == job.session:
            return True  # its worker was lost: a command hands out a trial to one at a time
        return has_ended(run.data.tags)

    def _assert_alone(self, run_id: str, key: str, replaced: Collection[str]) -> None:
        """Gives way to others that opened a run of a trial at the same moment, or ends theirs.

        Each looks after it opened its own, so that of two at least one sees the other; the one
        whose run has the smaller id stays.
        """
        if not self.shared:
            return
        others = [run for run in self._of(key) if run.info.run_id != run_id]
        done = _done(others, replaced)
        # Also those of this command: a worker that was lost may come back late.
        opened = [run for run in others if _open(run) and not has_ended(run.data.tags)]
        if not done and all(run_id < run.info.run_id for run in opened):
            try:
                for run in opened:
                    self._bury(run, "another process was at it first")
            except OvertakenError:
                pass
            else:
                return
        end_as(self.client, run_id, SUPERSEDED)
        RunWriter(self.client, run_id).finish("killed", "another process was at it first")
        raise OvertakenError("another process was at it first")

    def _count(self, given: Mapping[str, Any]) -> None:
        """Numbers an attempt: of several runs of a trial the last is read, whatever the clock."""
        given["tags"]["attempt"] = str(1 + len(self._of(given["tags"][TRIAL])))

    def _describe(self, run_id: str, given: Mapping[str, Any]) -> None:
        """Writes what a run is of; a second time it changes nothing."""
        self.client.log_batch(run_id, params=[Param(*item) for item in given["params"].items()])
        self.client.log_text(run_id, given["trial"], "trial.json")
        spec, known = given["data"]
        source = DatasetEntity(spec, known, source_type="code", source="flowvae.data")
        try:
            self.client.log_inputs(run_id, [DatasetInput(source, [])])
        except MlflowException:  # another process wrote down the same data set just now
            self.client.log_inputs(run_id, [DatasetInput(source, [])])

    def _again(self, run: Run, given: Mapping[str, Any], away: Path) -> RunWriter:
        """Takes up a run that was interrupted: its fit goes on to the same numbers."""
        run_id, tags = run.info.run_id, run.data.tags
        self._count(given)
        self.client.update_run(run_id, status="RUNNING")
        for name in ("status", "reason"):
            if name in tags:
                self.client.delete_tag(run_id, name)
        resumed = {"resumed": str(1 + int(tags.get("resumed", 0)))}
        renewed = [RunTag(k, v) for k, v in {**given["tags"], **resumed}.items()]
        self.client.log_batch(run_id, tags=renewed)
        self._describe(run_id, given)
        return RunWriter(
            self.client,
            run_id,
            away=away,
            opening=given,
            logged=self.logged(run_id),
            held=run.data.metrics,
            shared=self.shared,
        )

    def logged(self, run_id: str) -> dict[str, int]:
        """Returns the last epoch that a run holds of each of its curves."""
        curves = [n for n in self.client.get_run(run_id).data.metrics if n.startswith(CURVES)]
        history = self.client.get_metric_history
        return {name: max(point.step for point in history(run_id, name)) for name in curves}

    def is_complete(self, run_id: str) -> bool:
        """Tells whether a run is complete."""
        return _complete(self.client.get_run(run_id))

    def _of(self, key: str) -> list[Run]:
        """Returns all runs of a trial, by its id, the newest first."""
        found = self._find()
        if found is None:
            return []
        wanted = f"tags.{TRIAL} = '{key}'"
        runs = self._pages([found.experiment_id], wanted)
        return sorted((run for run in runs if self._of_data(run)), key=_attempt, reverse=True)

    def _abandoned(self, run: Run, job: Job | None = None) -> bool:
        """Tells whether a run whose trial's claim is held stopped where it can go on."""
        if ENDED_AS in run.data.params:
            return False
        if run.info.status == "RUNNING":  # all who write an sqlite store see its claims
            return not self.shared or self._over(run, job)
        return not _complete(run) and run.data.tags.get("status", "killed") == "killed"

    def give_up(self, key: str, reason: str, job: Job | None = None) -> None:
        """Closes the open runs of a trial as failed: their processes died at it.

        Arguments:
            key: The trial's id.
            reason: What is known of it.
            job: The job at which they died; in a shared store, runs of others are theirs.
        """
        with self.claims.held([key]) as held:
            for run in self._of(key) if held else []:
                if not _open(run) or (self.shared and not self._over(run, job)):
                    continue
                # One that was cut off only may come back.
                if not self.shared or end_as(self.client, run.info.run_id, SUPERSEDED):
                    RunWriter(self.client, run.info.run_id).finish("failed", reason)

    def done(self, key: str, replaced: Collection[str]) -> bool:
        """Tells whether a trial is complete, by a run that is not to be replaced."""
        return _done(self._of(key), replaced)

    def bury(self) -> list[str]:
        """Closes the runs that stayed open when their process died; returns their names."""
        found = self._find()
        if found is None:
            return []
        lost = []
        for run in self._pages([found.experiment_id], "attributes.status = 'RUNNING'"):
            key = run.data.tags.get(TRIAL)
            if key is None or self.letter(key):
                continue
            with self.claims.held([key]) as held:
                if not held:
                    continue
                now = self.client.get_run(run.info.run_id)  # it may have ended meanwhile
                gone = not self.shared or has_ended(now.data.tags)
                if now.info.status == "RUNNING" and gone:
                    with suppress(OvertakenError):
                        self._bury(now)
                        lost.append(run.info.run_name)
        return lost

    def _bury(self, run: Run, reason: str = "") -> None:
        """Closes a run whose process is gone, or is taken to be, or has to give way.

        Raises:
            OvertakenError: It is complete after all.
        """
        if run.info.status != "RUNNING":
            return
        tags = run.data.tags
        if _complete(run):  # it died between its last two words
            self.client.set_terminated(run.info.run_id, "FINISHED")
            return
        if self.shared and not end_as(self.client, run.info.run_id, SUPERSEDED):
            raise OvertakenError("another process completed it just now")
        where = f"process {tags.get('pid', '?')} on {tags.get('host', '?')}"
        record = RunWriter(self.client, run.info.run_id)
        record.finish("killed", reason or f"{where} ended without a word")

    def runs(self, trials: Iterable[Trial]) -> dict[str, Run]:
        """Returns the run to read for each trial that has one, by trial id.

        Of several, the newest complete one; else the newest that ended.
        """
        wanted = {trial.id for trial in trials}
        found = self._find()
        if found is None:
            return {}
        if len(wanted) <= FEW:  # of what may be many thousands
            runs = [run for key in wanted for run in self._of(key)]
        else:
            pages = self._pages([found.experiment_id], "")
            runs = [run for run in pages if run.data.tags.get(TRIAL) in wanted]
            runs = [run for run in runs if self._of_data(run)]
        return _chosen((run.data.tags[TRIAL], run) for run in runs)

    def every(self) -> list[Run]:
        """Returns the run to read for each trial on each data set, as they were first started."""
        found = self._find()
        if found is None:
            return []
        runs = [run for run in self._pages([found.experiment_id], "") if TRIAL in run.data.tags]
        keys = [(run.data.tags[TRIAL], run.data.tags.get("data.hash")) for run in runs]
        chosen = _chosen(zip(keys, runs, strict=True))
        return [chosen[key] for key in dict.fromkeys(keys)]

    def _of_data(self, run: Run) -> bool:
        return self.data_hash in (None, run.data.tags.get("data.hash"))

    def _pages(self, experiments: list[str], wanted: str) -> Iterator[Run]:
        """Yields all runs that a filter finds, the oldest first."""
        token: str | None = None
        while True:
            page = self.client.search_runs(
                experiments, wanted, order_by=["attribute.start_time ASC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def fitted(self, trials: Iterable[Trial]) -> dict[str, Run]:
        """Returns the runs whose fit is a result, by trial id: complete or diverged."""
        return {key: run for key, run in self.runs(trials).items() if _complete(run)}

    def complete(self) -> list[Run]:
        """Returns the complete runs of any trial, the oldest first; not the diverged ones."""
        found = self._find()
        if found is None:
            return []
        wanted = f"tags.{COMPLETE_TAG} = 'true' and tags.status = 'complete'"
        runs = self._pages([found.experiment_id], wanted)
        return [run for run in runs if TRIAL in run.data.tags and self._of_data(run)]

    def failed(self, trial: Trial) -> str | None:
        """Returns why the newest run of a trial failed, or none if it did not."""
        tags = next((run.data.tags for run in self._of(trial.id)), {})
        return tags.get("reason", "") if tags.get("status") == "failed" else None

    def scored(self, run: Run, evaluation: Evaluation) -> bool:
        """Tells whether a run holds an evaluation, or can never hold one."""
        tags = run.data.tags
        return f"evaluation.{evaluation.id}" in tags or tags.get("status") == "diverged"

    def artifact(self, run: Run, path: str) -> Path | None:
        """Returns a local path of an artifact, or None when the run has none of that name."""
        return _artifact(self.client, run, path)


def _complete(run: Run) -> bool:
    """Tells whether a run is a result; one that ended as such may not have come to its tag."""
    ended_as = run.data.params.get(ENDED_AS, SUPERSEDED)
    return run.data.tags.get(COMPLETE_TAG) == "true" or ended_as != SUPERSEDED


def _done(runs: Iterable[Run], replaced: Collection[str]) -> bool:
    """Tells whether the newest complete run of a trial, if any, is not to be replaced."""
    complete = [run for run in runs if _complete(run)]
    return bool(complete) and max(complete, key=_attempt).info.run_id not in replaced


def _open(run: Run) -> bool:
    """Tells whether a run may still come to a result."""
    return run.info.status == "RUNNING" and ENDED_AS not in run.data.params


def run_timings(run: Run) -> str:
    """Returns how a run was timed: `alone`, or one of `EXCLUDED_TIMINGS`."""
    if int(run.data.tags.get(SHARED_TAG, 1)) > 1:
        return "shared"
    return "resumed" if "," in run.data.tags.get(THREADS_TAG, "") else "alone"


def _same_place(run: Run, here: Mapping[str, str]) -> bool:
    """Tells whether a run was of the same code, versions and device: it is one computation."""
    names = [k for k in here if k.startswith(PLACE)]
    return all(run.data.tags.get(name) == here[name] for name in names)


def _attempt(run: Run) -> tuple[int, int]:
    """Orders a trial's runs in time, by a count first: clocks may be set back."""
    return int(run.data.tags.get("attempt", 0)), run.info.start_time


def _chosen(runs: Iterable[tuple[Key, Run]]) -> dict[Key, Run]:
    """Returns the run to read for each key: the newest complete, else the newest that ended."""
    chosen: dict[Key, Run] = {}
    for key, run in sorted(runs, key=lambda pair: _attempt(pair[1])):
        if key not in chosen or _worth(run) >= _worth(chosen[key]):
            chosen[key] = run
    return chosen


def _worth(run: Run) -> tuple[bool, bool, tuple[int, int]]:
    """Ranks a trial's runs: a complete one, then one that ended, then any; the last of equals."""
    closed = run.data.tags.get("status", "killed") != "killed"
    return _complete(run), closed, _attempt(run)


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
    return load(folder, trusted=True)  # what this store holds, its own commands ran
