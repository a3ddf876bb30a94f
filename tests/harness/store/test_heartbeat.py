"""Shared stores: one process at a trial, none forsaken too soon, and no trial complete twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from test_runs import TAGS, job, make

from bench.execution import waiting, worker
from bench.execution.waiting import StaleWatch
from bench.store import heartbeat
from bench.store.heartbeat import heartbeats
from bench.store.names import ENDED_AS, SUPERSEDED, OvertakenError
from bench.store.run_info import opening
from bench.store.run_writer import RunWriter, end_as
from bench.store.runs import Store
from bench.store.spool import letters, send
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
    trial = make()
    theirs = store.start(trial, digits, ELSEWHERE)
    assert [run.info.run_id for run in store.busy([trial.id])] == [theirs.run_id]
    assert worker.run_job(job(store, trial)) is None
    assert ended(store) == [("RUNNING", "", "")]
    score(theirs)
    theirs.finish("complete")
    (outcome,) = worker.run_job(job(store, trial)) or []
    assert (outcome.status, outcome.reason) == ("complete", "done by another process")
    assert ended(store) == [("FINISHED", "complete", "complete")]


def test_a_run_that_is_forsaken_is_taken_over_and_its_process_cannot_complete_it(
    store: Store, digits: Dataset
) -> None:
    trial = make()
    theirs = store.start(trial, digits, ELSEWHERE)
    (outcome,) = worker.run_job(job(store, trial, forsaken=(theirs.run_id,))) or []
    assert outcome.status == "complete"
    both = [("KILLED", "killed", SUPERSEDED), ("FINISHED", "complete", "complete")]
    assert ended(store) == both
    with pytest.raises(OvertakenError):  # it was only cut off, and comes back
        theirs.finish("complete")
    theirs.finish("killed", "overtaken")
    assert ended(store) == both


def test_a_run_that_completes_while_it_is_taken_over_stays(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make()
    theirs = store.start(trial, digits, ELSEWHERE)
    of = store._of

    def last_moment(key: str) -> list:
        found = of(key)
        if not theirs.closed:
            theirs.finish("complete")
        return found

    monkeypatch.setattr(Store, "_of", lambda _, key: last_moment(key))
    forsaken = job(store, trial, forsaken=(theirs.run_id,))
    with pytest.raises(OvertakenError):
        store.start(trial, digits, TAGS, forsaken)
    monkeypatch.undo()
    assert theirs.closed


def test_what_the_same_command_handed_out_before_is_taken_over_at_once(
    store: Store, digits: Dataset
) -> None:
    trial = make()
    mine = job(store, trial, session="s")
    lost = store.start(trial, digits, ELSEWHERE, mine)
    assert store.busy([trial.id], replace(mine, session="t"))
    (outcome,) = worker.run_job(mine) or []
    assert outcome.status == "complete"
    assert outcome.means is not None
    lost.closed = False
    with pytest.raises(OvertakenError):
        lost.finish("diverged")


def test_of_two_that_open_a_trial_at_once_one_stays(store: Store, digits: Dataset) -> None:
    """Whoever looks first, whoever has the smaller id, and also if both see each other."""
    counts = []
    for seed in range(12):
        trial = make(seed=seed)
        together = threading.Barrier(2)
        got: list[RunWriter] = []

        def begin(trial: Trial = trial) -> None:
            together.wait()  # noqa: B023
            try:
                record = store.start(trial, digits, ELSEWHERE, job(store, trial))
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


def test_a_late_delivery_gives_way_to_the_one_that_is_at_it(store: Store, digits: Dataset) -> None:
    trial = make()
    mine = job(store, trial, session="s")
    second = store.start(trial, digits, ELSEWHERE, mine)

    late = []
    for _ in range(8):  # the first delivery, which was cut off before it opened its run
        run_id = store.client.create_run(store.experiment, tags={"trial": trial.id}).info.run_id
        store.client.set_tag(run_id, "data.hash", digits.hash)
        late.append(run_id)
        try:
            store._assert_alone(run_id, trial.id, mine)
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
    trial = make()
    done = store.start(trial, digits, TAGS)
    done.finish("complete")
    with pytest.raises(OvertakenError):
        store.start(trial, digits, TAGS, job(store, trial))
    forced = job(store, trial, replaces=(done.run_id,))
    again = store.start(trial, digits, TAGS, forced)
    score(again)
    again.finish("complete")
    assert store.runs([trial])[trial.id].info.run_id == again.run_id  # the newest is read
    third = store.start(trial, digits, TAGS, job(store, trial, replaces=(again.run_id,)))
    third.finish("killed")  # of two complete ones it is to replace the newest
    # a second delivery of the forced job finds it done
    (outcome,) = worker.run_job(forced) or []
    assert outcome.reason == "done by another process"


def test_what_is_given_up_is_ones_own_and_cannot_complete_later(
    store: Store, digits: Dataset
) -> None:
    trial = make()
    mine = job(store, trial, session="s")
    lost = store.start(trial, digits, ELSEWHERE, mine)
    store.give_up(trial.id, "enough", replace(mine, session="t"))
    assert ended(store) == [("RUNNING", "", "")]
    store.give_up(trial.id, "enough", mine)
    assert ended(store) == [("FAILED", "failed", SUPERSEDED)]
    with pytest.raises(OvertakenError):
        lost.finish("complete")


def test_a_forced_result_waits_in_its_letter_and_replaces_what_was_there(
    store: Store, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make()
    old = store.start(trial, digits, TAGS)
    old.finish("complete")
    forced = job(store, trial, replaces=(old.run_id,))
    ours = store.start(trial, digits, TAGS, forced)
    store.client.set_terminated(ours.run_id, "KILLED")
    ours.run_id = ""  # as where the store was away from the start
    ours.go_apart(MlflowException("away"))
    ours.finish("complete")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # another machine, which is at it too
    theirs = store.start(trial, digits, ELSEWHERE, forced)
    monkeypatch.chdir(tmp_path)
    sent, kept = send(store)  # the one whose run has the smaller id stays
    if kept:
        assert "another process is at this trial" in kept[0]
        theirs.finish("killed")
        sent, kept = send(store)
    assert (sent, kept) == (1, [])
    assert store.runs([trial])[trial.id].info.run_id not in (old.run_id, theirs.run_id)


def test_an_interrupted_run_is_taken_up_where_its_checkpoint_is(
    store: Store, digits: Dataset
) -> None:
    trial = make()
    first = store.start(trial, digits, TAGS)
    first.finish("killed")
    assert store.start(trial, digits, TAGS, begun=True).run_id == first.run_id
    store.give_up(trial.id, "enough", job(store, trial, forsaken=(first.run_id,)))
    assert ended(store) == [("FAILED", "failed", SUPERSEDED)]
    other = make(seed=1)
    second = store.start(other, digits, TAGS)
    second.finish("killed")
    assert store.start(other, digits, TAGS).run_id != second.run_id


def test_a_letter_of_a_trial_that_others_did_since_is_dropped(
    store: Store, digits: Dataset
) -> None:
    trial, other = make(), make(seed=1)
    opened = store.start(trial, digits, TAGS)
    unopened = store.start(other, digits, TAGS)
    for record in (opened, unopened):
        record.go_apart(MlflowException("away"))
    store.client.set_terminated(unopened.run_id, "KILLED")
    unopened.run_id = ""  # as where the store was away from the start
    for record in (opened, unopened):
        record.finish("complete")
    assert len(letters(store)) == 2
    for each in (trial, other):  # another machine meanwhile
        for run in store._of(each.id):
            end_as(store.client, run.info.run_id, SUPERSEDED)
            store.client.set_terminated(run.info.run_id, "KILLED")
        theirs = store.open(opening(each, digits, ELSEWHERE))
        RunWriter(store.client, theirs, shared=True).finish("complete")
    assert send(store) == (0, [])
    assert letters(store) == []
    complete = [each for each in ended(store) if each[2] == "complete"]
    assert complete == [("FINISHED", "complete", "complete")] * 2


def test_a_process_gives_signs_of_life(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    record = store.start(make(), digits, TAGS)
    away = RunWriter(store.client, "")
    gone = RunWriter(store.client, "no such run")

    def sign() -> str:
        return store.client.get_run(record.run_id).data.tags.get("alive", "")

    with heartbeats([gone, away, record]):
        deadline = time.monotonic() + 30
        while sign() in ("", "1"):
            assert time.monotonic() < deadline
    last = sign()
    time.sleep(0.2)
    assert sign() == last


def test_a_run_is_forsaken_when_it_gave_no_sign_for_as_long_as_one_could_be_heard(
    store: Store, digits: Dataset
) -> None:
    now = 0.0
    watch = StaleWatch(lambda _: store, clock=lambda: now)
    trial = make()
    theirs = store.start(trial, digits, ELSEWHERE)
    mine = job(store, trial)
    assert watch.ready(mine) is None
    while now < waiting.LEASE - 10:
        now += 5
        assert watch.ready(mine) is None
    store.client.set_tag(theirs.run_id, "alive", "7")
    for _ in range(int(waiting.LEASE / 5)):
        assert watch.ready(mine) is None
        now += 5
    found = watch.ready(mine)
    assert found is not None
    assert found.forsaken == (theirs.run_id,)

    now += waiting.LEASE  # nobody heard anything, as where the store was away
    assert watch.ready(mine) is None
    theirs.finish("complete")
    assert watch.ready(mine) == mine


def test_a_trial_is_not_ready_while_a_process_of_this_folder_holds_it(store: Store) -> None:
    trial = make()
    watch = StaleWatch(lambda _: store)
    with store.claims.held([trial.id]):
        assert watch.ready(job(store, trial)) is None
    assert watch.ready(job(store, trial)) is not None
