"""A run's record: what is sent when, and what a failure leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from bench.run import main
from bench.store import retry
from bench.store.measurements import Measurements, of_model
from bench.store.run_writer import MAX_METRICS, RunWriter


class Client:
    """Stands in for MLflow's client: notes what it takes, and fails when told to."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.tags: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[tuple[int, int]] = []
        self.ended = ""
        self.error: BaseException | None = None

    def log_batch(
        self, run_id: str, metrics: list[Metric] | None = None, tags: list[RunTag] | None = None
    ) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.metrics += metrics or []
        self.tags |= {tag.key: tag.value for tag in tags or []}
        self.calls.append((len(metrics or []), len(tags or [])))

    def log_artifacts(self, run_id: str, folder: str) -> None:
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.tags[key] = value

    def set_terminated(self, run_id: str, status: str) -> None:
        self.ended = status


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def record(client: Client) -> RunWriter:
    found = RunWriter(client, "run")  # type: ignore[arg-type]
    found._next_flush = math.inf  # nothing is sent before it must be
    return found


def test_all_goes_in_few_calls_and_tags_last(client: Client, record: RunWriter) -> None:
    for epoch in range(1, 401):
        record.curve(epoch, {name: 1.0 for name in "abc"})
    record.tag(evaluation__x="complete", caveat="no")
    record.tag(caveat="yes")
    assert not client.calls
    record.flush()
    assert client.calls == [(MAX_METRICS, 0), (1200 - MAX_METRICS, 2)]
    assert client.tags == {"evaluation.x": "complete", "caveat": "yes"}
    record.flush()
    assert len(client.calls) == 2


@pytest.mark.parametrize("error", [MlflowException("database is locked"), KeyboardInterrupt()])
def test_a_record_that_could_not_be_sent_is_not_complete(
    error: Any,  # noqa: ANN401
    client: Client,
    record: RunWriter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", ())
    record.metrics({"test/nll": 1.0})
    client.error = error
    with pytest.raises(type(error)):
        record.finish("complete")
    assert not record.closed
    record.finish("failed", "database is locked")
    assert client.tags == {"status": "failed", "reason": "database is locked"}
    assert [metric.key for metric in client.metrics] == ["test/nll"]
    assert client.ended == "FAILED"


def test_a_result_is_complete_when_all_else_is_there(client: Client, record: RunWriter) -> None:
    record.metrics({"test/nll": 1.0})
    record.finish("diverged", "epoch 1")
    assert client.tags == {"status": "diverged", "reason": "epoch 1", "complete": "true"}
    assert client.ended == "FINISHED"


def test_measurements_are_written_files_first_and_complete_last(
    client: Client, record: RunWriter
) -> None:
    arrays = {"elbo": np.arange(3.0), "surgery/rate": np.zeros(2)}
    means = {"test/nll": 1.0, "test/rate": 2.0}
    measurements = of_model(
        "evaluation", "k", arrays, means, {"caveat": "no"}, costs={"time/s": 3.0}, prefix="more_"
    )
    record.write(measurements)
    assert set(client.files) == {
        *(f"evaluations/k/{name}.npy" for name in arrays),
        "evaluations/k/more_means.json",
    }
    assert json.loads(client.files["evaluations/k/more_means.json"]) == means
    assert not client.metrics
    record.flush()
    assert [(m.key, m.value) for m in client.metrics] == [("time/s", 3.0), *means.items()]
    assert client.tags == {"evaluation.k": "complete", "caveat": "no"}


def test_measurements_without_files_upload_none(client: Client, record: RunWriter) -> None:
    client.log_artifacts = None  # type: ignore[assignment, method-assign]
    record.write(Measurements({"time/s": 1.0}))
    record.flush()
    assert [m.key for m in client.metrics] == ["time/s"]


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_a_file_that_changed_is_fitted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trials have the same ids: they name the file, not what is in it."""
    monkeypatch.chdir(tmp_path)
    tiny = ["--dataset", "file[path=mine.npz]", "--priors", "gauss", "--latents", "2"]
    tiny += ["--seeds", "0", "--epochs", "1", "--nets", "mlp[hidden=4]", "--nll-samples", "2"]
    rng = np.random.default_rng(0)
    for _ in range(2):
        images = {part: rng.integers(0, 2, (40, 4, 4)).astype(bool) for part in ("train", "test")}
        np.savez(tmp_path / "mine.npz", **images)
        assert main([*tiny, "--data-dir", str(tmp_path)]) == 0
        assert "1 to train" in capsys.readouterr().out
    assert main([*tiny, "--data-dir", str(tmp_path), "--dry-run"]) == 0
    assert "1 already complete" in capsys.readouterr().out
