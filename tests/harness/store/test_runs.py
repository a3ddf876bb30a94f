"""The runs of a store: taken up, closed, numbered, and never two for one trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from bench.execution import checkpoints, worker
from bench.execution.plan import Placement
from bench.grid.job import Job
from bench.store import run_writer
from bench.store.runs import Store
from flowvae.checkpoint import Checkpoint
from flowvae.data import Dataset, data_dir
from flowvae.training.trainer import Fitted, fit
from flowvae.trial import Evaluation, Trial

TAGS = {"device": "cpu", "threads": "1", "stack": "1"}


def make(**changes: Any) -> Trial:  # noqa: ANN401
    small = {"latent": 2, "net": "mlp[hidden=4]", "epochs": 3, "batch": 400}
    return Trial(prior="gauss", **{**small, **changes})


@pytest.fixture
def store(
    make_store: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: Dataset,
) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(f"sqlite:///{make_store(tmp_path)}", "digits", digits.hash)


def job(store: Store, *trials: Trial, **changes: Any) -> Job:  # noqa: ANN401
    given: dict[str, Any] = {
        "number": 0,
        "evaluation": Evaluation(samples=5),
        "data_dir": data_dir(None),
        "data_hash": store.data_hash,
        "device": "cpu",
        "uri": store.uri,
        "experiment": store.name,
    }
    return Job(trials=trials, **{**given, **changes})


def place(store: Store, digits: Dataset, *, force: bool = False) -> Placement:
    return Placement(store, digits, data_dir(None), "cpu", 1, True, force, 60.0)


def ended(store: Store) -> list[tuple[str, str, str]]:
    """Return status, our status and attempt of all runs, the oldest first."""
    runs = store.client.search_runs([store.experiment], order_by=["attribute.start_time ASC"])
    return [(r.info.status, r.data.tags.get("status", ""), r.data.tags["attempt"]) for r in runs]


def test_a_run_that_was_left_open_is_taken_up_where_it_is_the_same_computation(
    store: Store, digits: Dataset
) -> None:
    trial = make()
    first = store.start(trial, digits, TAGS)
    first.curve(1, {"train/elbo": -9.0})
    first.metrics({"test/nll": 3.0, "time/seconds": 1.0})
    first.flush()
    second = store.start(trial, digits, {**TAGS, "load": "7"})
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
    trial = make()
    store.start(trial, digits, TAGS)
    store.start(trial, digits, {**TAGS, "threads": "2"}).finish("complete")
    assert ended(store) == [("KILLED", "killed", "1"), ("FINISHED", "complete", "2")]


def test_of_two_complete_runs_the_later_attempt_is_read_whatever_the_clock(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make()
    killed = store.start(trial, digits, TAGS)
    killed.finish("killed")
    store.start(trial, digits, {**TAGS, "threads": "2"}).finish("complete")
    monkeypatch.setattr("mlflow.tracking.client.get_current_time_millis", lambda: 1000)
    again = store.start(trial, digits, TAGS)  # the killed one, by --force, say
    assert again.run_id == killed.run_id
    again.finish("complete")
    assert store.runs([trial])[trial.id].info.run_id == again.run_id


def test_what_stays_open_is_closed_unless_somebody_is_at_it(store: Store, digits: Dataset) -> None:
    dead, alive, done = (make(seed=seed) for seed in range(3))
    store.start(dead, digits, TAGS)
    store.start(alive, digits, TAGS)
    half = store.start(done, digits, TAGS)
    half.tag(status="complete")
    half.flush()
    store.client.set_tag(half.run_id, "complete", "true")  # and its process died
    with store.claims.held([alive.id]):
        assert sorted(store.bury()) == [dead.name, done.name]
    assert [(s, t) for s, t, _ in ended(store)] == [
        ("KILLED", "killed"),
        ("RUNNING", ""),
        ("FINISHED", "complete"),
    ]
    assert store.bury() == [alive.name]
    assert "ended without a word" in store.runs([alive])[alive.id].data.tags["reason"]


def test_a_run_that_ends_while_others_look_is_not_closed_twice(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make()
    mine = store.start(trial, digits, TAGS)
    pages = store._pages
    monkeypatch.setattr(store, "_pages", lambda *given: [*pages(*given)])

    def held(keys: list[str]) -> object:  # the other ends between the look and the claim
        mine.finish("complete")
        return claims.held(keys)

    claims = store.claims
    monkeypatch.setattr(type(claims), "held", lambda self, keys, **_: real(self, keys))

    def real(self: object, keys: list[str]) -> object:
        monkeypatch.undo()
        return held(keys)

    assert store.bury() == []
    assert ended(store) == [("FINISHED", "complete", "1")]


def test_on_a_server_only_what_a_dead_process_of_this_machine_left_is_taken_up(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make()
    first = store.start(trial, digits, TAGS)
    client = store.client
    remote = Store("http://127.0.0.1:1", "digits", digits.hash, known=True)
    monkeypatch.setitem(remote.__dict__, "client", client)
    assert [run.info.run_id for run in remote.busy([trial.id])] == [first.run_id]  # it is alive
    assert remote.bury() == []
    client.set_tag(first.run_id, "pid", "999999999")
    assert remote.busy([trial.id]) == []
    assert remote.bury() == [trial.name]


def test_an_interrupt_in_the_last_words_leaves_a_run_complete(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.system import signals

    trial = make()
    mine = store.start(trial, digits, TAGS)
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
    trial = make()
    store.start(trial, digits, TAGS).finish("failed", "yesterday")
    assert store.failed(trial) == "yesterday"
    store.start(trial, digits, TAGS).finish("killed")  # today, in the other process
    assert store.failed(trial) is None
    (outcome,) = worker.run_job(job(store, trial), waited=True) or []
    assert outcome.status == "complete"
    assert outcome.means is not None


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of MLflow's client fails."""
    monkeypatch.setattr(run_writer, "TRIES", ())

    def away(*_: object, **__: object) -> None:
        raise MlflowException("connection refused")

    for name in dir(MlflowClient):
        if not name.startswith("_") and callable(getattr(MlflowClient, name)):
            monkeypatch.setattr(MlflowClient, name, away)


def test_trials_that_begin_while_the_store_is_away_are_kept_and_not_done_again(
    store: Store, digits: Dataset, absent: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (outcome,) = worker.run_job(job(store, trial)) or []
    assert (outcome.status, outcome.reason) == ("complete", f"kept in {store.letter(trial.id)}")
    monkeypatch.setattr("flowvae.training.optimiser_steps.Steps.take", None)
    (other,) = worker.run_job(job(store, trial)) or []  # of another process, that waited
    assert other.status == "complete"
    assert "kept in" in other.reason
    monkeypatch.undo()
    monkeypatch.chdir(Path(store.uri.removeprefix("sqlite:///")).parent)
    assert place(store, digits).jobs([trial], Evaluation(samples=5)) == []


def test_a_checkpoint_that_outlived_its_trial_is_removed_before_it_is_forced(
    store: Store, digits: Dataset
) -> None:
    trial, other = make(), make(seed=1)
    for each in (trial, other):
        checkpoint = Checkpoint(checkpoints.checkpoint_path(job(store, each), [each]))
        fit([each], digits, checkpoint=checkpoint)
        checkpoint.save()  # and killed before it was removed
    store.start(trial, digits, TAGS).finish("complete")
    jobs = place(store, digits, force=True).jobs([trial, other], None)
    assert [(j.trials, checkpoints.is_begun(j)) for j in jobs] == [
        ((other,), True),
        ((trial,), False),
    ]
    assert not checkpoints.checkpoint_path(job(store, trial), [trial]).exists()


def test_a_checkpoint_of_a_scoring_that_is_none_is_begun_anew(
    store: Store, digits: Dataset
) -> None:
    trial = make()
    assert worker.run_job(job(store, trial)) is not None
    run_id = store.runs([trial])[trial.id].info.run_id
    again = job(store, trial, run_id=run_id, evaluation=Evaluation(samples=7))
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
        Trial(**{**vars(make(seed=s)), "prior": "diagonal", "training": "post-hoc"})
        for s in (0, 1)
    ]
    assert worker.run_job(job(store, *(t.base for t in late if t.base))) is not None

    def broken(*_: object) -> Fitted:
        raise MlflowException("half of it is there")

    monkeypatch.setattr(worker, "load_run", broken)
    outcomes = worker.run_job(job(store, *late)) or []
    assert [outcome.status for outcome in outcomes] == ["failed", "failed"]
