"""Claims of trials: what state a trial is in, and that one process at a time runs it.

At most one process runs a trial at a time, and at most one run of a trial becomes complete:

- Processes that share a file, an sqlite store, lock a file of the trial's own for as long as they
  run it (`bench.store.locks`). The system releases a lock when its process ends, however that
  happens, so an open run of a trial whose lock is free is stale: its process is gone.
- Processes that share only a server see no common lock. There the open run itself is the claim:
  a process opens its run, looks whether others opened one at the same moment (the smallest run id
  stays), and sends heartbeats (`bench.store.heartbeat`). An open run is stale if its process was
  one of this machine and has ended, if this same command opened it, which hands a trial to one
  worker at a time, or if its heartbeats stopped (`bench.execution.waiting`).
- A process that was only cut off may come back. What a run ends as is therefore a param, which
  MLflow writes once and never changes: `complete`, `diverged` or `superseded`. Who takes a trial
  over first writes `superseded` to its earlier runs; whichever process writes first decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from bench.store.finder import RunFinder, is_open, is_result
from bench.store.heartbeat import heartbeats
from bench.store.names import ENDED_AS, SUPERSEDED
from bench.store.retry import with_retries
from bench.store.run_info import run_params, run_tags
from bench.store.run_writer import OvertakenError, RunWriter, end_as
from bench.system.process import has_ended
from bench.system.signals import defer_signals
from flowvae.data import Dataset
from flowvae.trial import Trial

__all__ = ["Claim", "TrialState", "claimed", "close_run", "may_live", "trial_state"]


SESSION_TAG = "session"
SAME_COMPUTATION = ("device", "threads", "stack", "version.", "data.hash", "git.", "precision")
"""How the tags begin that an interrupted run shares with a process that resumes it."""
CURVE_PREFIXES = ("train/", "valid/")
"""How the names of metrics begin that have a value per epoch."""
MAX_NAME = 250
"""Characters of a run's name; its params hold the rest."""


@dataclass(frozen=True)
class TrialState:
    """What the runs of a trial say about it.

    Arguments:
        kind: `new`: it has no run to go on from. `resume`: its run was interrupted. `done`: it has
            a result, complete or diverged. `busy`: another process is running it. `failed`: its
            newest run failed.
        run: That run; none for a new trial, and for one that is locked by another process.
    """

    kind: Literal["new", "resume", "done", "busy", "failed"]
    run: Run | None = None

    @property
    def reason(self) -> str:
        """Why the run ended as it did, if it says so."""
        return "" if self.run is None else self.run.data.tags.get("reason", "")


def trial_state(
    runs: Sequence[Run], replaced: Collection[str], others: Sequence[Run]
) -> TrialState:
    """Returns the state of a trial.

    Arguments:
        runs: All its runs, the newest first.
        replaced: The ids of results that do not count, because they are to be replaced.
        others: The open runs at which another process may be.
    """
    if result := _result(runs, replaced):
        return TrialState("done", result)
    if others:
        return TrialState("busy", others[0])
    if runs and runs[0].data.tags.get("status") == "failed":
        return TrialState("failed", runs[0])
    if interrupted := [run for run in runs if _is_interrupted(run)]:
        return TrialState("resume", interrupted[0])
    return TrialState("new")


def _result(runs: Sequence[Run], replaced: Collection[str]) -> Run | None:
    """Returns the newest result of a trial, unless it is to be replaced."""
    newest = next((run for run in runs if is_result(run)), None)
    return None if newest is None or newest.info.run_id in replaced else newest


def _is_interrupted(run: Run) -> bool:
    """Tells whether a run without a living process may be resumed."""
    if ENDED_AS in run.data.params:
        return False
    if run.info.status == "RUNNING":
        return True
    return not is_result(run) and run.data.tags.get("status", "killed") == "killed"


def may_live(store: RunFinder, run: Run) -> bool:
    """Tells whether the process of an open run may still live, as far as the store can tell.

    In an sqlite store the lock tells, and whoever asks holds it.
    """
    if not store.shared or (store.session and run.data.tags.get(SESSION_TAG) == store.session):
        return False
    return not has_ended(run.data.tags)


def close_run(store: RunFinder, run: Run, reason: str = "") -> None:
    """Closes a run whose process died, or which has to give way to another run.

    Raises:
        OvertakenError: It became a result just now.
    """
    if run.info.status != "RUNNING":
        return
    if is_result(run):  # its process died between the tag and the end of the run
        store.client.set_terminated(run.info.run_id, "FINISHED")
        return
    if store.shared and not end_as(store.client, run.info.run_id, SUPERSEDED):
        raise OvertakenError("another process completed the trial just now")
    tags = run.data.tags
    process = f"process {tags.get('pid', '?')} on {tags.get('host', '?')}"
    reason = reason or f"{process} ended without closing the run"
    RunWriter(store.client, run.info.run_id).finish("killed", reason)


class Claim:
    """Trials that this process may run, or that turned out to be another's; see `claimed`.

    Arguments:
        store: The store.
        runs: All runs of each trial by its id, the newest first; none where the trial is locked.
        replaced: The ids of complete runs that are to be replaced.
    """

    def __init__(
        self, store: RunFinder, runs: Mapping[str, list[Run] | None], replaced: Collection[str]
    ) -> None:
        self._store, self._replaced = store, replaced
        self._runs = {key: some for key, some in runs.items() if some is not None}
        self.writers: list[RunWriter] = []
        self.states = {key: self._state(key) for key in runs}

    def _state(self, key: str) -> TrialState:
        if key not in self._runs:
            return TrialState("busy")
        return trial_state(self._runs[key], self._replaced, self._others(key))

    def _others(self, key: str) -> list[Run]:
        runs = self._runs.get(key, [])
        return [run for run in runs if is_open(run) and may_live(self._store, run)]

    @property
    def busy(self) -> bool:
        """Whether another process is running one of the trials."""
        return any(state.kind == "busy" for state in self.states.values())

    @property
    def others(self) -> list[Run]:
        """The open runs of other processes that make trials busy."""
        busy = [key for key, state in self.states.items() if state.kind == "busy"]
        return [run for key in busy for run in self._others(key)]

    def start(
        self, trial: Trial, data: Dataset, tags: Mapping[str, str], *, checkpointed: bool = False
    ) -> RunWriter:
        """Opens a run of a trial, or the interrupted run of the same computation again.

        Arguments:
            trial: A trial of this claim.
            data: Its data set.
            tags: Tags that say how it is run.
            checkpointed: Whether this folder holds a checkpoint of it.

        Raises:
            OvertakenError: In a shared store, another process opened a run first, or completed it.
        """
        with defer_signals():  # so that every open run has a writer
            writer = with_retries(lambda: self._start(trial, data, tags, checkpointed))
            self.writers.append(writer)
        return writer

    def _start(
        self, trial: Trial, data: Dataset, tags: Mapping[str, str], checkpointed: bool
    ) -> RunWriter:
        store, key = self._store, trial.id
        # A second try asks anew: the first one may have opened a run before it failed.
        runs = self._runs.pop(key) if key in self._runs else store.of_trials([key])[key]
        # Of several runs the last attempt is read, whatever the clock says.
        session = {SESSION_TAG: store.session, "attempt": str(1 + len(runs))}
        tags = {**run_tags(trial, data, tags), **session}
        interrupted = [r for r in runs if _is_interrupted(r) and not self._is_anothers(r)]
        for run in interrupted:
            # Without a checkpoint a run restarts, and on a server may also be resumed elsewhere.
            if _same_computation(run, tags) and (checkpointed or not store.shared):
                return self._reopen(run, trial, data, tags)
        for run in interrupted:
            close_run(store, run)
        name = trial.name[:MAX_NAME]
        run_id = store.client.create_run(store.experiment, tags=tags, run_name=name).info.run_id
        self._resolve_race(run_id, key)
        self._describe(run_id, trial, data)
        return RunWriter(store.client, run_id, shared=store.shared)

    def _is_anothers(self, run: Run) -> bool:
        return run.info.status == "RUNNING" and may_live(self._store, run)

    def _reopen(self, run: Run, trial: Trial, data: Dataset, tags: Mapping[str, str]) -> RunWriter:
        """Opens an interrupted run again: its fit goes on to the same numbers."""
        store, run_id, before = self._store, run.info.run_id, run.data.tags
        store.client.update_run(run_id, status="RUNNING")
        for name in ("status", "reason"):
            if name in before:
                store.client.delete_tag(run_id, name)
        tags = {**tags, "resumed": str(1 + int(before.get("resumed", 0)))}
        store.client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
        self._describe(run_id, trial, data)
        curves = [name for name in run.data.metrics if name.startswith(CURVE_PREFIXES)]
        history = store.client.get_metric_history
        epochs = {name: max(point.step for point in history(run_id, name)) for name in curves}
        writer = RunWriter(
            store.client,
            run_id,
            logged_epochs=epochs,
            logged_metrics=run.data.metrics,
            shared=store.shared,
        )
        self._resolve_race(run_id, trial.id)
        return writer

    def _describe(self, run_id: str, trial: Trial, data: Dataset) -> None:
        """Writes the trial and its data set; a second time this changes nothing."""
        client = self._store.client
        client.log_batch(run_id, params=[Param(*item) for item in run_params(trial).items()])
        client.log_text(run_id, trial.to_json(), "trial.json")
        source = DatasetEntity(data.spec, data.hash, source_type="code", source="flowvae.data")
        try:
            client.log_inputs(run_id, [DatasetInput(source, [])])
        except MlflowException:  # another process wrote the same data set at the same moment
            client.log_inputs(run_id, [DatasetInput(source, [])])

    def _resolve_race(self, run_id: str, key: str) -> None:
        """Closes the runs that others opened of a trial at the same moment, or gives way to them.

        Each process looks after it opened its own run, so of two at least one sees the other; the
        run with the smallest id stays.

        Raises:
            OvertakenError: The other stays, or has a result; ours is closed.
        """
        store = self._store
        if not store.shared:
            return
        others = [run for run in store.of_trials([key])[key] if run.info.run_id != run_id]
        # Those of this command count too: a worker that was given up may come back late.
        rivals = [run for run in others if is_open(run) and not has_ended(run.data.tags)]
        reason = "another process opened a run of the trial first"
        first = all(run_id < run.info.run_id for run in rivals)
        if first and not _result(others, self._replaced):
            try:
                for run in rivals:
                    close_run(store, run, reason)
            except OvertakenError:
                pass
            else:
                return
        end_as(store.client, run_id, SUPERSEDED)
        RunWriter(store.client, run_id).finish("killed", reason)
        raise OvertakenError(reason)

    def close(self, error: BaseException) -> None:
        """Closes the runs that are still open as killed, for the error that ends the claim."""
        reason = str(error)
        if isinstance(error, KeyboardInterrupt):
            reason = f"interrupted by {reason}" if reason else "interrupted"
        for writer in self.writers:
            if not writer.closed:
                writer.finish("killed", reason)


@contextmanager
def claimed(store: RunFinder, keys: Collection[str], replaced: Collection[str]) -> Iterator[Claim]:
    """Locks trials, all of them or none, and sends heartbeats for the runs that are opened.

    An error that leaves the block closes the open runs as killed.

    Arguments:
        store: The store.
        keys: The ids of the trials.
        replaced: The ids of complete runs that are to be replaced.
    """
    with store.locks.held(keys) as held:
        runs: Mapping[str, list[Run] | None] = dict.fromkeys(keys)
        if held:
            runs = with_retries(lambda: store.of_trials(keys))
        claim = Claim(store, runs, replaced)
        with heartbeats(claim.writers) if store.shared else nullcontext():
            try:
                yield claim
            except BaseException as error:
                claim.close(error)
                raise


def _same_computation(run: Run, tags: Mapping[str, str]) -> bool:
    """Tells whether a run had the same code, versions and device as a run with these tags."""
    names = [name for name in tags if name.startswith(SAME_COMPUTATION)]
    return all(run.data.tags.get(name) == tags[name] for name in names)
