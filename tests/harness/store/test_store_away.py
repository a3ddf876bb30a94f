"""A store that does not answer for a while: nothing is computed or recorded twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from support.fast_commands import leave_undrawn

from bench.run import main
from bench.store import retry, run_writer
from bench.store.run_writer import RunWriter
from bench.store.runs import Store
from flowvae.errors import InputError

TINY = ["--priors", "gauss", "--latents", "2", "--seeds", "0", "--nets", "mlp[hidden=8]"]
TINY += ["--epochs", "3", "--nll-samples", "20"]
RESULTS = Path("results/local/digits")


class Away:
    """Makes calls of MLflow's client fail from one on, so many times."""

    def __init__(
        self, patch: pytest.MonkeyPatch, names: list[str], after: int, times: int
    ) -> None:
        self.calls, self.after, self.times, self.failed = 0, after, times, 0
        for name in names:
            patch.setattr(MlflowClient, name, self.failing(getattr(MlflowClient, name)))

    def failing(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            self.calls += 1
            if self.calls > self.after and self.failed < self.times:
                self.failed += 1
                raise MlflowException("API request failed: connection refused")
            return real(*args, **more)

        return call


OPENING = ["create_run", "log_batch", "log_text"]
"""What is called first, once each: the run is open and described when all have succeeded."""
WRITES = [*OPENING, "log_artifacts", "set_tag", "set_terminated"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(retry, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    leave_undrawn(monkeypatch)


def runs() -> list[Run]:
    store = Store(f"sqlite:///{Path('mlflow.db').resolve()}", "digits")
    return list(store.client.search_runs([store.experiment], "tags.trial LIKE '%'"))


def whole(run: Run) -> None:
    """Assert that a run holds all that a run holds, once."""
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "complete")
    assert run.data.params["prior"] == "gauss"
    store = Store(f"sqlite:///{Path('mlflow.db').resolve()}", "digits")
    for name in ("train/elbo", "valid/elbo"):
        history = store.client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in history] == [1, 2, 3]
    root = Path(run.info.artifact_uri)
    assert (root / "model" / "weights.safetensors").exists()
    assert (root / "trial.json").exists()
    assert list(root.glob("evaluations/*/loglik_fitted_k20.npy"))


def check_recorded_once() -> None:
    """Assert that the trial has one complete run, a whole one, and that nothing else is left."""
    (complete,) = (run for run in runs() if run.data.tags.get("complete") == "true")
    whole(complete)
    assert {run.info.status for run in runs()} <= {"FINISHED", "FAILED", "KILLED"}
    assert pd.read_csv(RESULTS / "trials.csv")["test/nll"].notna().all()
    assert not list((RESULTS / "checkpoints").glob("*"))


@pytest.mark.parametrize("after", range(8))
def test_what_the_store_does_not_take_is_recorded_by_the_next_command(
    after: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        away = Away(patch, WRITES, after, times=10**6)
        # The last of these calls only says that a run with all its numbers is complete.
        assert main(TINY) == (1 if after < 7 else 0)
        assert away.failed >= 4  # a call that must succeed, and its tries
    out = capsys.readouterr().out
    assert "1/1 gauss-z2-s0" in out
    assert "failed: MlflowException: API request failed: connection refused" in out
    assert not [run for run in runs() if run.data.tags.get("complete") == "true"]
    trained = len(list((RESULTS / "checkpoints").glob("*.safetensors")))
    assert trained == (after >= len(OPENING))  # with no open run, nothing was computed
    if trained:  # nothing is trained again, nor scored
        monkeypatch.setattr("flowvae.training.optimiser_steps.Steps.take", None)
        if after > 5:
            monkeypatch.setattr("flowvae.evaluation.importance_weighting._Fitted.score", None)
    assert main(TINY) == 0
    assert ("1 to resume" if trained else "1 to train") in capsys.readouterr().out
    check_recorded_once()


def test_a_run_whose_end_the_store_does_not_take_is_complete_and_closed_by_the_next_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        Away(patch, ["set_terminated"], 0, times=10**6)
        assert main(TINY) == 0
    (run,) = runs()
    assert (run.info.status, run.data.tags["complete"]) == ("RUNNING", "true")
    assert main(TINY) == 0
    out = capsys.readouterr().out
    assert "closed     1 run left open by a dead process: gauss-z2-s0" in out
    assert "1 already complete" in out
    check_recorded_once()


def test_a_store_that_is_back_in_time_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for after in range(3):
        with monkeypatch.context() as patch:
            away = Away(patch, WRITES, after, times=3)  # and the last try succeeds
            assert main([*TINY, "--seeds", str(after)]) == 0
            assert away.failed == 3
        assert "warning" not in capsys.readouterr().out
    for run in runs():
        if run.data.tags.get("complete") == "true":
            whole(run)
    assert len({run.data.tags["trial"] for run in runs()}) == 3
    assert {run.info.status for run in runs()} <= {"FINISHED", "KILLED"}


def test_a_recording_that_fails_again_and_again_doubles_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for after in (6, 1, 3, 5, 7):
        with monkeypatch.context() as patch:
            Away(patch, WRITES, after, times=10**6)
            assert main(TINY) == 1
        assert "connection refused" in capsys.readouterr().out
        if after == 6:
            monkeypatch.setattr("flowvae.training.optimiser_steps.Steps.take", None)
    assert main(TINY) == 0
    check_recorded_once()


def test_a_stack_of_which_one_was_recorded_is_completed_by_the_next_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = [*TINY, "--seeds", "0,1", "--stack", "2"]
    finish = RunWriter.finish

    def failing(writer: RunWriter, status: str, reason: str = "") -> None:
        if len(finished := [r for r in runs() if r.data.tags.get("complete") == "true"]):
            raise MlflowException("API request failed: connection refused")
        assert not finished
        finish(writer, status, reason)

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "finish", failing)
        assert main(stack) == 1
    assert len([run for run in runs() if run.data.tags.get("complete") == "true"]) == 1
    monkeypatch.setattr("flowvae.training.optimiser_steps.Steps.take", None)
    monkeypatch.setattr("flowvae.evaluation.importance_weighting._Fitted.score", None)
    assert main(stack) == 0
    complete = [run for run in runs() if run.data.tags.get("complete") == "true"]
    assert len(complete) == len({run.data.tags["trial"] for run in complete}) == 2
    for run in complete:
        whole(run)


def test_a_fault_of_ours_is_not_taken_for_an_absent_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[object] = []

    def refused(*given: object, **__: object) -> None:
        tries.append(given)
        raise MlflowException("no such parameter", error_code=INVALID_PARAMETER_VALUE)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", refused)
        assert main(TINY) == 1
    assert "failed: MlflowException: no such parameter" in capsys.readouterr().out
    assert len(tries) == 1


def test_a_store_that_is_away_from_the_start_fails_the_trial_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        Away(patch, ["search_runs"], 0, times=10**6)  # the plan asks no experiment
        assert main(TINY) == 1
    assert "does not answer (API request failed: connection refused)" in capsys.readouterr().err
    assert runs() == []
    assert main(TINY) == 0
    check_recorded_once()


def test_runs_that_an_earlier_version_kept_are_named_and_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in "ab":
        (RESULTS / "unsent" / name).mkdir(parents=True)
        (RESULTS / "unsent" / name / "letter.json").write_text("{")
    assert main([*TINY, "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert (
        out.count("unsent     2 runs that an earlier version could not record, in results/local/")
        == 1
    )
    assert "they are not read, and their trials run again: remove the folder" in out
    assert len(list((RESULTS / "unsent").iterdir())) == 2


def test_curves_wait_for_a_store_that_is_away_ever_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(run_writer.time, "monotonic", lambda: now[0])
    sent: list[int] = []

    class Client:
        def log_batch(self, run_id: str, metrics: list, tags: list) -> None:
            sent.append(len(metrics))
            if now[0] < 100:
                raise MlflowException("connection refused")

    writer = RunWriter(Client(), "run")  # type: ignore[arg-type]
    for second in range(200):
        now[0] = float(second)
        writer.curve(second + 1, {"train/elbo": 0.0})
    assert sent[:4] == [7, 23, 54, 115]  # all that waits, after 5, then 15, 30, 60 s
    assert set(sent[4:]) == {6}


@pytest.mark.parametrize("when", ["before", "in the pause"])
def test_a_signal_ends_the_wait_for_a_store(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def call() -> None:
        calls.append(0.0)
        raise MlflowException("connection refused")

    looks = iter([when == "before", False])
    monkeypatch.setattr(retry, "RETRY_SECONDS", (1000.0, 1000.0))
    monkeypatch.setattr(retry, "SIGNAL_SECONDS", 0.0)
    monkeypatch.setattr(retry, "requested_end", lambda: next(looks, True))
    with pytest.raises(MlflowException):
        retry.with_retries(call)
    assert len(calls) == (1 if when == "before" else 2)


def test_a_store_that_was_removed_while_in_use_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    assert Store(uri, "digits").experiment
    path.unlink()
    with pytest.raises(InputError, match=r"mlflow\.db was removed while in use"):
        _ = Store(uri, "digits", known=True).experiment
