"""A store that does not answer for a while: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
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
from bench.store import run_writer as module
from bench.store.run_writer import RunWriter
from bench.store.runs import Store

TINY = ["--priors", "gauss", "--latents", "2", "--seeds", "0", "--nets", "mlp[hidden=8]"]
TINY += ["--epochs", "3", "--nll-samples", "20"]
pytestmark = pytest.mark.filterwarnings("default")  # an absent store is told by one
UNSENT = Path("results/local/digits/unsent")


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


WRITES = ["create_run", "log_batch", "log_artifacts", "log_text", "set_tag", "set_terminated"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(module, "TRIES", (0.0, 0.0, 0.0))
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
    assert list(root.glob("evaluations/*/loglik_k20.npy"))


@pytest.mark.parametrize("after", range(7))
def test_what_the_store_does_not_take_is_sent_by_the_next_command(
    after: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        away = Away(patch, WRITES, after, times=10**6)
        assert main(TINY) == 1
        assert away.failed
    out = capsys.readouterr().out
    assert "warning: gauss-z2-s0: the MLflow store does not take a run" in out
    assert "1/1 gauss-z2-s0" in out
    assert "kept in results/local/digits/unsent/" in out
    assert not [run for run in runs() if run.data.tags.get("complete") == "true"]
    monkeypatch.setattr(
        "flowvae.training.optimiser_steps.Steps.take", None
    )  # nothing is trained again
    monkeypatch.setattr("bench.execution.measurement.evaluate", None)
    assert main(TINY) == 0
    out = capsys.readouterr().out
    assert "sent       1 run that the store could not take before" in out
    assert "1 already complete" in out
    assert not list(UNSENT.iterdir())
    (complete,) = (run for run in runs() if run.data.tags.get("complete") == "true")
    whole(complete)
    assert {run.info.status for run in runs()} <= {"FINISHED", "KILLED"}
    trials = pd.read_csv("results/local/digits/trials.csv")
    assert trials["test/nll"].notna().all()


def test_a_store_that_is_back_in_time_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        away = Away(patch, WRITES[1:], 2, times=2)
        assert main(TINY) == 0
        assert away.failed == 2
    assert "warning" not in capsys.readouterr().out
    (run,) = runs()
    whole(run)
    assert not UNSENT.exists()


def test_a_store_that_comes_back_before_the_end_gets_all_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        away = Away(patch, WRITES, 4, times=4)  # one call that must succeed, and its three tries
        assert main(TINY) == 0
        assert away.failed == 4
    assert "sent       1 run" in capsys.readouterr().out
    (run,) = runs()
    whole(run)


def test_sending_that_is_cut_short_is_done_again_and_doubles_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        Away(patch, WRITES, 0, times=10**6)
        assert main(TINY) == 1
    for after in (1, 3, 1, 1):  # not yet opened, twice; then not yet whole, twice
        with monkeypatch.context() as patch:
            Away(patch, WRITES, after, times=10**6)
            assert main([*TINY, "--priors", "gauss"]) == 1
        assert "connection refused" in capsys.readouterr().out
    assert main(TINY) == 0
    complete = [run for run in runs() if run.data.tags.get("complete") == "true"]
    assert len(complete) == 1
    whole(complete[0])


def test_a_fault_of_ours_is_not_taken_for_an_absent_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise MlflowException("no such parameter", error_code=INVALID_PARAMETER_VALUE)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", refused)
        assert main(TINY) == 1
    assert "failed: MlflowException: no such parameter" in capsys.readouterr().out
    assert not UNSENT.exists()


def test_a_letter_that_cannot_be_read_is_told_and_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in (("a", "{"), ("b", "[]"), ("c", json.dumps({"run_id": ""}))):
        (UNSENT / name).mkdir(parents=True)
        (UNSENT / name / "letter.json").write_text(content)
    assert main(TINY) == 0
    out = capsys.readouterr().out
    for name in "abc":
        assert out.count(f"unsent     results/local/digits/unsent/{name}: ") == 2


def test_curves_wait_for_a_store_that_is_away_ever_longer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    sent: list[int] = []

    class Client:
        def log_batch(self, run_id: str, metrics: list, tags: list) -> None:
            sent.append(len(metrics))
            if now[0] < 100:
                raise MlflowException("connection refused")

    record = RunWriter(Client(), "run", away=tmp_path / "away")  # type: ignore[arg-type]
    for second in range(200):
        now[0] = float(second)
        record.curve(second + 1, {"train/elbo": 0.0})
    assert sent[:4] == [7, 23, 54, 115]  # all that waits, after 5, then 15, 30, 60 s
    assert set(sent[4:]) == {6}
    assert not (tmp_path / "away").exists()
