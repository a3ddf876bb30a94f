"""Shared stores: one process runs a trial, none is stale too soon, no trial completes twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from support.claimed_runs import start
from support.jobs import TAGS, job_of, small_trial

from bench.execution import waiting, worker
from bench.execution.waiting import StaleWatch
from bench.store import heartbeat
from bench.store.claims import SESSION_TAG, close_run
from bench.store.heartbeat import heartbeats
from bench.store.names import ENDED_AS, SUPERSEDED
from bench.store.run_writer import OvertakenError, RunWriter, end_as
from bench.store.runs import Store
from flowvae.data import Dataset
from flowvae.trial import Evaluation, Trial

ELSEWHERE = {**TAGS, "host": "elsewhere", "pid": "1", "process.start": "a/b/c"}
"""The tags of a run that a process of another machine opened."""


@pytest.fixture
def store(
    make_store: Callable[[Path], Path],
    tmp_path: Path,
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> Store:
    """A store that is taken for a server's; its runs lie in a file."""
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(f"sqlite:///{make_store(tmp_path)}")
    monkeypatch.setattr(Store, "client", property(lambda _: client))
    return Store("http://127.0.0.1:1", "digits", digits.hash, known=True)


def score(record: RunWriter) -> None:
    """Say that a run was scored as `job` wants it, though it was not."""
    record.tag(**{f"evaluation.{Evaluation(samples=5).id}": "complete"})


def ended(store: Store) -> list[tuple[str, str, str]]:
    """Return what became of each run: status, our status, what it ended as; the oldest first."""
    runs = store.client.search_runs([store.experiment], order_by=["attribute.start_time ASC"])
    return [
        (run.info.status, run.data.tags.get("status", ""), run.data.params.get(ENDED_AS, ""))
        for run in runs
    ]


def test_what_a_run_ends_as_is_written_once_whoever_writes(store: Store, digits: Dataset) -> None:
    for _ in range(10):
        run_id = store.client.create_run(store.experiment).info.run_id
        told: dict[str, bool] = {}
        together = threading.Barrier(4)

        def write(what: str) -> None:
            together.wait()  # noqa: B023
            told[what] = end_as(store.client, run_id, what)  # noqa: B023

        threads = [threading.Thread(target=write, args=(f"v{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [what for what, first in told.items() if first]
        assert store.client.get_run(run_id).data.params[ENDED_AS] == winner
        assert end_as(store.client, run_id, winner)
        assert len(told) == 4
    with pytest.raises(MlflowException):
        end_as(store.client, "no such run", "complete")


def test_a_trial_that_another_machine_is_at_is_left_alone(store: Store, digits: Dataset) -> None:
    trial = small_trial()
    theirs = start(store, trial, digits, ELSEWHERE)
    with store.claim([trial]) as claim:
        assert [run.info.run_id for run in claim.others] == [theirs.run_id]
    assert worker.run_job(job_of(store, trial)) is None
    assert ended(store) == [("RUNNING", "", "")]
    score(theirs)
    theirs.finish("complete")
    (outcome,) = worker.run_job(job_of(store, trial)) or []
    assert (outcome.status, outcome.reason) == ("complete", "done by another process")
    assert ended(store) == [("FINISHED", "complete", "complete")]


def test_a_stale_run_is_taken_over_and_its_process_cannot_complete_it(
    store: Store, digits: Dataset
) -> None:
    trial = small_trial()
    theirs = start(store, trial, digits, ELSEWHERE)
    close_run(store, store.client.get_run(theirs.run_id))
    (outcome,) = worker.run_job(job_of(store, trial)) or []
    assert outcome.status == "complete"
    both = [("KILLED", "killed", SUPERSEDED), ("FINISHED", "complete", "complete")]
    assert ended(store) == both
    with pytest.raises(OvertakenError):  # it was only cut off, and comes back
        theirs.finish("complete")
    theirs.finish("killed", "overtaken")
    assert ended(store) == both


def test_a_run_that_completes_while_it_is_taken_over_stays(store: Store, digits: Dataset) -> None:
    trial = small_trial()
    store.session = "s"
    theirs = start(store, trial, digits, ELSEWHERE)
    with store.claim([trial]) as claim:
        theirs.finish("complete")  # at the last moment
        with pytest.raises(OvertakenError):
            claim.start(trial, digits, TAGS)
    assert ended(store) == [("FINISHED", "complete", "complete")]


def test_what_the_same_command_handed_out_before_is_taken_over_at_once(
    store: Store, digits: Dataset
) -> None:
    trial = small_trial()
    store.session = "s"
    lost = start(store, trial, digits, ELSEWHERE)
    assert store.client.get_run(lost.run_id).data.tags[SESSION_TAG] == "s"
    assert worker.run_job(job_of(store, trial, session="t")) is None
    (outcome,) = worker.run_job(job_of(store, trial, session="s")) or []
    assert outcome.status == "complete"
    assert outcome.means is not None
    lost.closed = False
    with pytest.raises(OvertakenError):
        lost.finish("diverged")


def test_of_two_that_open_a_trial_at_once_one_stays(store: Store, digits: Dataset) -> None:
    """Whoever looks first, whoever has the smaller id, and also if both see each other."""
    counts = []
    for seed in range(12):
        trial = small_trial(seed=seed)
        together = threading.Barrier(2)
        got: list[RunWriter] = []

        def begin(trial: Trial = trial) -> None:
            together.wait()  # noqa: B023
            try:
                record = start(store, trial, digits, ELSEWHERE)
                got.append(record)  # noqa: B023
            except OvertakenError:
                pass

        threads = [threading.Thread(target=begin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        complete = 0
        for record in got:
            try:
                record.finish("complete")
                complete += 1
            except OvertakenError:
                record.finish("killed")
        assert complete <= 1
        counts.append(complete)
    assert sum(counts) >= 6  # both may give way, and try again; but not for ever
    runs = store.client.search_runs([store.experiment])
    assert not [run for run in runs if run.info.status == "RUNNING"]


def test_a_late_delivery_gives_way_to_the_one_that_runs(store: Store, digits: Dataset) -> None:
    trial = small_trial()
    store.session = "s"
    second = start(store, trial, digits, ELSEWHERE)

    late = []
    for _ in range(8):  # the first delivery, which was cut off before it opened its run
        run_id = store.client.create_run(store.experiment, tags={"trial": trial.id}).info.run_id
        store.client.set_tag(run_id, "data.hash", digits.hash)
        late.append(run_id)
        with store.claim([trial]) as claim:
            try:
                claim._resolve_race(run_id, trial.id)
            except OvertakenError:
                store.client.set_terminated(run_id, "KILLED")
            else:
                break
    fates = [store.client.get_run(each).data.params.get(ENDED_AS) for each in late]
    other = store.client.get_run(second.run_id).data.params.get(ENDED_AS)
    assert [*fates, other].count(None) == 1  # one of them all can be complete


def test_a_complete_trial_is_not_opened_again_unless_it_is_replaced(
    store: Store, digits: Dataset
) -> None:
    trial = small_trial()
    done = start(store, trial, digits, TAGS)
    done.finish("complete")
    with pytest.raises(OvertakenError):
        start(store, trial, digits, TAGS)
    again = start(store, trial, digits, TAGS, replaced=[done.run_id])
    score(again)
    again.finish("complete")
    assert store.runs([trial])[trial.id].info.run_id == again.run_id  # the newest is read
    third = start(store, trial, digits, TAGS, replaced=[again.run_id])
    third.finish("killed")  # of two complete ones it is to replace the newest
    # a second delivery of the forced job finds it done
    (outcome,) = worker.run_job(job_of(store, trial, replaces=(done.run_id,))) or []
    assert outcome.reason == "done by another process"


def test_a_lost_run_is_failed_by_its_own_command_and_cannot_complete_later(
    store: Store, digits: Dataset
) -> None:
    trial = small_trial()
    store.session = "s"
    lost = start(store, trial, digits, ELSEWHERE)
    store.session = "t"
    store.fail_stale_runs(trial.id, "enough")
    assert ended(store) == [("RUNNING", "", "")]
    store.session = "s"
    store.fail_stale_runs(trial.id, "enough")
    assert ended(store) == [("FAILED", "failed", SUPERSEDED)]
    with pytest.raises(OvertakenError):
        lost.finish("complete")


def test_an_interrupted_run_is_resumed_where_its_checkpoint_is(
    store: Store, digits: Dataset
) -> None:
    trial = small_trial()
    store.session = "s"
    first = start(store, trial, digits, TAGS)
    first.finish("killed")
    assert start(store, trial, digits, TAGS, checkpointed=True).run_id == first.run_id
    store.fail_stale_runs(trial.id, "enough")
    assert ended(store) == [("FAILED", "failed", SUPERSEDED)]
    other = small_trial(seed=1)
    second = start(store, other, digits, TAGS)
    second.finish("killed")
    assert start(store, other, digits, TAGS).run_id != second.run_id


def test_a_process_sends_heartbeats(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)
    record = start(store, small_trial(), digits, TAGS)
    gone = RunWriter(store.client, "no such run")

    def sign() -> str:
        return store.client.get_run(record.run_id).data.tags.get("alive", "")

    with heartbeats([gone, record]):
        deadline = time.monotonic() + 30
        while sign() in ("", "1"):
            assert time.monotonic() < deadline
    last = sign()
    time.sleep(0.2)
    assert sign() == last


def test_a_run_is_stale_when_it_sent_no_heartbeat_for_as_long_as_one_could_be_seen(
    store: Store, digits: Dataset
) -> None:
    now = 0.0
    watch = StaleWatch(lambda _: store, clock=lambda: now)
    trial = small_trial()
    theirs = start(store, trial, digits, ELSEWHERE)
    mine = job_of(store, trial)
    assert not watch.ready(mine)
    while now < waiting.STALE_SECONDS - 10:
        now += 5
        assert not watch.ready(mine)
    store.client.set_tag(theirs.run_id, "alive", "7")
    for _ in range(int(waiting.STALE_SECONDS / 5)):
        assert not watch.ready(mine)
        now += 5
    assert ended(store) == [("RUNNING", "", "")]
    assert watch.ready(mine)
    assert ended(store) == [("KILLED", "killed", SUPERSEDED)]
    with pytest.raises(OvertakenError):
        theirs.finish("complete")

    theirs = start(store, trial, digits, ELSEWHERE)
    assert not watch.ready(mine)
    now += waiting.STALE_SECONDS  # no heartbeat was looked for, as where the store was away
    assert not watch.ready(mine)
    theirs.finish("complete")
    assert watch.ready(mine)


def test_of_several_runs_that_keep_a_job_waiting_all_must_be_stale(
    store: Store, digits: Dataset
) -> None:
    now = 0.0
    watch = StaleWatch(lambda _: store, clock=lambda: now)
    trials = [small_trial(seed=seed) for seed in (0, 1)]
    theirs = [start(store, trial, digits, ELSEWHERE) for trial in trials]
    mine = job_of(store, *trials)
    while now < waiting.STALE_SECONDS:
        store.client.set_tag(theirs[1].run_id, "alive", str(now))
        assert not watch.ready(mine)
        now += 5
    store.client.set_tag(theirs[1].run_id, "alive", str(now))
    assert not watch.ready(mine)
    assert ended(store) == [("KILLED", "killed", SUPERSEDED), ("RUNNING", "", "")]
    theirs[1].finish("failed")
    assert watch.ready(mine)


def test_a_trial_is_not_ready_while_a_process_of_this_folder_locks_it(store: Store) -> None:
    trial = small_trial()
    watch = StaleWatch(lambda _: store)
    with store.locks.held([trial.id]):
        assert not watch.ready(job_of(store, trial))
    assert watch.ready(job_of(store, trial))
