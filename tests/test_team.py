"""A team's set-up for real: PostgreSQL, `mlflow server` and Dask workers in separate folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
POISON = """
import os, signal, sys
import torch
from torch.distributions import MultivariateNormal
from zuko.lazy import UnconditionalDistribution

def killer(space):
    \"\"\"Kill the worker that builds it.\"\"\"
    if "bench.run" not in sys.argv[0] and "run.py" not in sys.argv[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    zero, one = torch.zeros(space.features), torch.eye(space.features)
    return UnconditionalDistribution(MultivariateNormal, zero, one, buffer=True)
"""


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


@contextmanager
def cluster(folder: Path, *names: str, **environment: str) -> Iterator[Path]:
    """Run a scheduler and workers, each in a folder of its own."""
    with ExitStack() as stack:
        file = stack.enter_context(dask_scheduler(folder / "scheduler"))
        for name in names:
            stack.enter_context(dask_worker(file, folder / name, **environment))
        yield file


def test_two_commands_on_one_server_share_a_grid_without_a_common_file(
    server: str, serial: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    argv = [*GRID, "--tracking-uri", server, "--name", "shared"]
    with ExitStack() as stack:
        both = [
            stack.enter_context(bench(tmp_path / name, "bench", argv)) for name in ("one", "two")
        ]
        for process in both:
            process.wait(400)
    said = [(tmp_path / name / "bench.log").read_text() for name in ("one", "two")]
    assert [process.returncode for process in both] == [0, 0], said
    assert numbers(server, "shared") == serial
    assert len({run.data.tags["pid"] for run in runs(server, "shared")}) == 2  # both worked
    assert any("done by another process" in each for each in said)


def test_an_interrupted_command_ends_its_workers_jobs_and_a_poison_is_given_up(
    server: str, tmp_path: Path
) -> None:
    (tmp_path / "poison.py").write_text(POISON)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = tmp_path / "command"
    log = command / "bench.log"
    argv = ["--priors", "gauss,poison:killer", "--latents", "2", "--seeds", "0:2"]
    argv += ["--nets", "mlp[hidden=16]", "--nll-samples", "5", "--tracking-uri", server]
    with cluster(tmp_path, "one", "two", PYTHONPATH=path) as file:
        argv += ["--executor", "dask", "--scheduler-file", str(file), "--epochs"]
        with service(
            [sys.executable, "-m", "bench.run", *argv, "4000", "--name", "interrupted"],
            command, "bench", PYTHONPATH=path,
        ) as process:  # fmt: skip
            begun(server, process, log, "interrupted")
            os.kill(process.pid, signal.SIGINT)
            process.wait(100)
        assert process.returncode == 130, log.read_text()
        assert {run.info.status for run in runs(server, "interrupted")} <= {"KILLED", "RUNNING"}
        assert "KILLED" in {run.info.status for run in runs(server, "interrupted")}

        with service(
            [sys.executable, "-m", "bench.run", *argv, "1", "--name", "poison"],
            command, "poison", PYTHONPATH=path, COLUMNS="200",
        ) as process:  # fmt: skip
            process.wait(400)
        said = (command / "poison.log").read_text()
        assert process.returncode == 1, said
    status = {
        (run.info.run_name.partition("-")[0], run.data.tags.get("status"))
        for run in runs(server, "poison")
        if run.data.tags.get("status") != "killed"
    }
    assert status == {("gauss", "complete"), ("poison:killer", "failed")}, said
    assert "KilledWorker" in said
