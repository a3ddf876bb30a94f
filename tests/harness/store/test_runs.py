"""The runs of a store: taken up, closed, numbered, and never two for one trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from support.claimed_runs import start
from support.jobs import TAGS, job_of, small_trial

from bench.execution import checkpoints, worker
from bench.execution.plan import Placement
from bench.store.runs import Store
from flowvae.checkpoint import Checkpoint
from flowvae.data import Dataset, data_dir
from flowvae.training.trainer import Fitted, fit
from flowvae.trial import Evaluation, Trial


@pytest.fixture
def store(
    make_store: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: Dataset,
) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(f"sqlite:///{make_store(tmp_path)}", "digits", digits.hash)


def place(store: Store, digits: Dataset, *, force: bool = False) -> Placement:
    return Placement(store, digits, data_dir(None), "cpu", 1, True, force, 60.0)


def ended(store: Store) -> list[tuple[str, str, str]]:
    """Return status, our status and attempt of all runs, the oldest first."""
    runs = store.client.search_runs([store.experiment], order_by=["attribute.start_time ASC"])
    return [(r.info.status, r.data.tags.get("status", ""), r.data.tags["attempt"]) for r in runs]


def test_a_run_that_was_left_open_is_taken_up_where_it_is_the_same_computation(
    store: Store, digits: Dataset
) -> None:
    trial = small_trial()
    first = start(store, trial, digits, TAGS)
    first.curve(1, {"train/elbo": -9.0})
    first.metrics({"test/nll": 3.0, "time/seconds": 1.0})
    first.flush()
    second = start(store, trial, digits, {**TAGS, "load": "7"})
    assert second.run_id == first.run_id
    second.curve(1, {"train/elbo": -9.0})  # it holds that
    second.curve(2, {"train/elbo": -8.0})
    second.metrics({"test/nll": 3.0, "time/seconds": 2.0})
    second.finish("complete")
    history = store.client.get_metric_history
    assert [p.value for p in history(first.run_id, "test/nll")] == [3.0]
    assert [p.value for p in history(first.run_id, "time/seconds")] == [1.0, 2.0]
    points = store.client.get_metric_history(first.run_id, "train/elbo")
    assert [(p.step, p.value) for p in points] == [(1, -9.0), (2, -8.0)]
    assert store.client.get_run(first.run_id).data.tags["resumed"] == "1"
    assert ended(store) == [("FINISHED", "complete", "2")]


def test_elsewhere_another_run_begins_and_the_first_is_closed(
    store: Store, digits: Dataset
) -> None:
    trial = small_trial()
    start(store, trial, digits, TAGS)
    start(store, trial, digits, {**TAGS, "threads": "2"}).finish("complete")
    assert ended(store) == [("KILLED", "killed", "1"), ("FINISHED", "complete", "2")]


def test_of_two_complete_runs_the_later_attempt_is_read_whatever_the_clock(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = small_trial()
    killed = start(store, trial, digits, TAGS)
    killed.finish("killed")
    start(store, trial, digits, {**TAGS, "threads": "2"}).finish("complete")
    monkeypatch.setattr("mlflow.tracking.client.get_current_time_millis", lambda: 1000)
    again = start(store, trial, digits, TAGS)  # the killed one, by --force, say
    assert again.run_id == killed.run_id
    again.finish("complete")
    assert store.runs([trial])[trial.id].info.run_id == again.run_id


def test_what_stays_open_is_closed_unless_somebody_is_at_it(store: Store, digits: Dataset) -> None:
    dead, alive, done = (small_trial(seed=seed) for seed in range(3))
    start(store, dead, digits, TAGS)
    start(store, alive, digits, TAGS)
    half = start(store, done, digits, TAGS)
    half.tag(status="complete")
    half.flush()
    store.client.set_tag(half.run_id, "complete", "true")  # and its process died
    with store.locks.held([alive.id]):
        assert sorted(store.close_stale_runs()) == [dead.name, done.name]
    assert [(s, t) for s, t, _ in ended(store)] == [
        ("KILLED", "killed"),
        ("RUNNING", ""),
        ("FINISHED", "complete"),
    ]
    assert store.close_stale_runs() == [alive.name]
    assert "ended without closing the run" in store.runs([alive])[alive.id].data.tags["reason"]


def test_a_run_that_ends_while_others_look_is_not_closed_twice(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = small_trial()
    mine = start(store, trial, digits, TAGS)
    search = store._search
    monkeypatch.setattr(store, "_search", lambda *given: [*search(*given)])

    def held(keys: list[str]) -> object:  # the other ends between the search and the lock
        mine.finish("complete")
        return locks.held(keys)

    locks = store.locks
    monkeypatch.setattr(type(locks), "held", lambda self, keys, **_: real(self, keys))

    def real(self: object, keys: list[str]) -> object:
        monkeypatch.undo()
        return held(keys)

    assert store.close_stale_runs() == []
    assert ended(store) == [("FINISHED", "complete", "1")]


def test_on_a_server_only_what_a_dead_process_of_this_machine_left_is_taken_up(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = small_trial()
    first = start(store, trial, digits, TAGS)
    client = store.client
    remote = Store("http://127.0.0.1:1", "digits", digits.hash, known=True)
    monkeypatch.setitem(remote.__dict__, "client", client)
    with remote.claim([trial]) as claim:
        assert [run.info.run_id for run in claim.others] == [first.run_id]  # it is alive
        assert claim.busy
    assert remote.close_stale_runs() == []
    client.set_tag(first.run_id, "pid", "999999999")
    with remote.claim([trial]) as claim:
        assert not claim.busy
    assert remote.close_stale_runs() == [trial.name]


def test_an_interrupt_in_the_last_words_leaves_a_run_complete(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.system import signals

    trial = small_trial()
    mine = start(store, trial, digits, TAGS)
    real = MlflowClient.set_terminated

    def interrupted(self: MlflowClient, *given: str) -> None:
        signals._State.request = "SIGTERM"
        real(self, *given)

    monkeypatch.setattr(MlflowClient, "set_terminated", interrupted)
    monkeypatch.setattr(signals._State, "request", "")
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        mine.finish("complete")
    assert mine.closed  # so that it is not killed
    assert ended(store) == [("FINISHED", "complete", "1")]


def test_an_old_failure_is_not_taken_for_that_of_another_process(
    store: Store, digits: Dataset
) -> None:
    trial = small_trial()
    start(store, trial, digits, TAGS).finish("failed", "yesterday")
    state = store.states([trial])[trial.id]
    assert (state.kind, state.reason) == ("failed", "yesterday")
    start(store, trial, digits, TAGS).finish("killed")  # today, in the other process
    assert store.states([trial])[trial.id].kind == "resume"
    (outcome,) = worker.run_job(job_of(store, trial), waited=True) or []
    assert outcome.status == "complete"
    assert outcome.means is not None


def test_what_a_trial_may_be(store: Store, digits: Dataset) -> None:
    trial = small_trial()

    def kinds() -> tuple[str, str]:
        """Return the state that the store tells, and the one that a claim tells."""
        with store.claim([trial]) as claim:
            return store.states([trial])[trial.id].kind, claim.states[trial.id].kind

    assert kinds() == ("new", "new")
    first = start(store, trial, digits, TAGS)
    assert kinds() == ("busy", "resume")  # its lock tells that its process ended
    with store.locks.held([trial.id]), store.claim([trial]) as claim:
        assert (claim.busy, claim.others) == (True, [])
    first.finish("killed")
    assert kinds() == ("resume", "resume")
    second = start(store, trial, digits, {**TAGS, "threads": "2"})
    second.finish("failed", "no luck")
    assert kinds() == ("failed", "failed")
    start(store, trial, digits, TAGS).finish("diverged", "epoch 1")
    assert kinds() == ("done", "done")
    done = store.states([trial])[trial.id].run
    assert done is not None
    with store.claim([trial], [done.info.run_id]) as claim:
        assert claim.states[trial.id].kind == "new"  # the failed run is not the newest


def test_a_claim_closes_its_runs_when_an_error_ends_it(store: Store, digits: Dataset) -> None:
    trial = small_trial()

    def broken() -> None:
        with store.claim([trial]) as claim:
            claim.start(trial, digits, TAGS)
            raise KeyError("why")

    with pytest.raises(KeyError):
        broken()
    assert ended(store) == [("KILLED", "killed", "1")]
    assert store.runs([trial])[trial.id].data.tags["reason"] == "'why'"
    with store.locks.held([trial.id]) as held:
        assert held


def test_a_checkpoint_that_outlived_its_trial_is_removed_before_it_is_forced(
    store: Store, digits: Dataset
) -> None:
    trial, other = small_trial(), small_trial(seed=1)
    for each in (trial, other):
        checkpoint = Checkpoint(checkpoints.checkpoint_path(job_of(store, each), [each]))
        fit([each], digits, checkpoint=checkpoint)
        checkpoint.save()  # and killed before it was removed
    start(store, trial, digits, TAGS).finish("complete")
    jobs = place(store, digits, force=True).jobs([trial, other], None)
    assert [(j.trials, j.resumed) for j in jobs] == [
        ((other,), True),
        ((trial,), False),
    ]
    assert not checkpoints.checkpoint_path(job_of(store, trial), [trial]).exists()


def test_a_scoring_starts_over_if_its_checkpoint_is_none(store: Store, digits: Dataset) -> None:
    trial = small_trial()
    assert worker.run_job(job_of(store, trial)) is not None
    run_id = store.runs([trial])[trial.id].info.run_id
    again = job_of(store, trial, run_id=run_id, evaluation=Evaluation(samples=7))
    path = checkpoints.checkpoint_path(again, [trial])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"junk")
    with pytest.warns(RuntimeWarning, match="starting over"):
        (outcome,) = worker.run_job(again) or []
    assert outcome.status == "complete"
    assert not path.exists()


def test_a_base_that_cannot_be_loaded_fails_its_trial_alone(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [
        Trial(**{**vars(small_trial(seed=s)), "prior": "diagonal", "training": "post-hoc"})
        for s in (0, 1)
    ]
    assert worker.run_job(job_of(store, *(t.base for t in late if t.base))) is not None

    def broken(*_: object) -> Fitted:
        raise MlflowException("half of it is there")

    monkeypatch.setattr(worker, "load_run", broken)
    outcomes = worker.run_job(job_of(store, *late)) or []
    assert [outcome.status for outcome in outcomes] == ["failed", "failed"]
