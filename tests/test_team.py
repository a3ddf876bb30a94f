"""A team's set-up for real: PostgreSQL, `mlflow server` and Dask workers in separate folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from services import dask_scheduler, dask_worker, mlflow_server, postgresql, service

from bench.leases import ENDED_AS, SUPERSEDED

pytest.importorskip("distributed", reason="needs flowvae[cluster]")

GRID = ["--priors", "gauss,maf[hidden=8]", "--latents", "2", "--seeds", "0:2", "--epochs", "30"]
GRID += ["--nets", "mlp[hidden=16]", "--nll-samples", "60", "--checkpoint-every", "0.5"]
UNSTABLE = ("time/", "memory/")


def bench(
    folder: Path, name: str, argv: list[str]
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return service([sys.executable, "-m", "bench.run", *argv], folder, name, COLUMNS="200")


def run_bench(folder: Path, name: str, argv: list[str], status: int = 0) -> str:
    """Run a grid to its end; return what it said."""
    with bench(folder, name, argv) as process:
        process.wait(400)
    said = (folder / f"{name}.log").read_text()
    assert process.returncode == status, said
    return said


def wait_for(there: Callable[[], object], said: Callable[[], str], limit: float = 90) -> None:
    deadline = time.monotonic() + limit
    while not there():
        assert time.monotonic() < deadline, said()
        time.sleep(0.1)


def runs(uri: str, name: str = "digits") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(name)
    return list(client.search_runs([found.experiment_id])) if found else []


def numbers(uri: str, name: str = "digits") -> dict[str, dict[str, float]]:
    """Return what each complete run measured, of what two runs share; one run a trial."""
    found: dict[str, dict[str, float]] = {}
    for run in runs(uri, name):
        if run.data.tags["status"] == "complete":
            assert run.data.tags["trial"] not in found, "complete twice"
            found[run.data.tags["trial"]] = {
                key: value
                for key, value in run.data.metrics.items()
                if not key.startswith(UNSTABLE)
            }
    return found


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """What the grid comes to in one process of one thread."""
    folder = tmp_path_factory.mktemp("serial")
    run_bench(folder, "serial", [*GRID, "--executor", "serial"])
    return numbers(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server before PostgreSQL; before sqlite where that is not installed."""
    folder = tmp_path_factory.mktemp("server")
    with postgresql() as database, mlflow_server(database, folder) as uri:
        yield uri


def begun(uri: str, process: subprocess.Popen[bytes], log: Path, name: str = "digits") -> int:
    """Wait until a worker is at a run; return its process."""
    found: list[int] = []

    def look() -> bool:
        assert process.poll() is None, log.read_text()
        running = [run for run in runs(uri, name) if run.info.status == "RUNNING"]
        found.extend(int(run.data.tags["pid"]) for run in running)
        return bool(found)

    wait_for(look, log.read_text, 200)
    return found[0]


def test_a_worker_killed_in_the_middle_costs_no_trial_and_completes_none_twice(
    server: str, serial: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        file = stack.enter_context(dask_scheduler(tmp_path / "scheduler"))
        for name in ("one", "two"):
            stack.enter_context(dask_worker(file, tmp_path / name))
        argv = [*GRID, "--tracking-uri", server, "--executor", "dask", "--scheduler-file"]
        process = stack.enter_context(bench(tmp_path / "command", "bench", [*argv, str(file)]))
        log = tmp_path / "command" / "bench.log"
        victim = begun(server, process, log)
        os.kill(victim, signal.SIGKILL)
        process.wait(400)
    said = log.read_text()
    assert process.returncode == 0, said
    assert "2 Dask workers at" in said
    assert "Traceback" not in said
    assert numbers(server) == serial
    found = runs(server)
    assert Counter(run.data.tags["status"] for run in found)["complete"] == 4
    ended = {run.data.params.get(ENDED_AS) for run in found}
    assert ended == {"complete", SUPERSEDED}  # that of the worker that was killed
    # nothing lies on a worker's disk that is not in the store
    for run in found:
        if run.data.tags["status"] == "complete":
            assert run.info.artifact_uri.startswith("mlflow-artifacts:")
            names = {each.path for each in MlflowClient(server).list_artifacts(run.info.run_id)}
            assert {"model", "evaluations", "trial.json"} <= names
    assert (tmp_path / "command" / "results" / "local" / "digits" / "nll_by_latent.png").exists()
    # and the same command has nothing left to do, in whatever folder
    said = run_bench(tmp_path / "other", "again", [*GRID, "--tracking-uri", server])
    assert "4 already complete" in said
