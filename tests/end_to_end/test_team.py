"""A team's set-up for real: PostgreSQL, `mlflow server` and Dask workers in separate folders."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from support.fast_commands import hasten_processes, leave_undrawn
from support.fault_injection import start
from support.services import dask_scheduler, dask_worker, mlflow_server, postgresql

from bench.run import main
from bench.store.names import ENDED_AS, SUPERSEDED

pytest.importorskip("distributed", reason="needs flowvae[cluster]")

GRID = ["--priors", "gauss,maf[hidden=8]", "--latents", "3", "--seeds", "0:2", "--epochs", "12"]
GRID += ["--nets", "mlp[hidden=16]", "--nll-samples", "60", "--checkpoint-every", "0.5"]
UNSTABLE = ("time/", "memory/")
POISON = '''
import os, signal
import torch
from torch.distributions import MultivariateNormal
from zuko.lazy import UnconditionalDistribution

def killer(space):
    """Kill the worker that builds it."""
    if "WORKER" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    zero, one = torch.zeros(space.features), torch.eye(space.features)
    return UnconditionalDistribution(MultivariateNormal, zero, one, buffer=True)
'''


def output(folder: Path) -> str:
    return (folder / "output.txt").read_text()


TRIALS = "tags.trial LIKE '%'"


def runs(uri: str, name: str = "digits") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(name)
    return list(client.search_runs([found.experiment_id], TRIALS)) if found else []


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


def begun(uri: str, name: str) -> int:
    """Wait until a worker is at a run; return its process."""
    deadline = time.monotonic() + 200
    while True:
        for run in runs(uri, name):
            if run.info.status == "RUNNING":
                return int(run.data.tags["pid"])
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in a folder of the test's own, and draw nothing."""
    monkeypatch.chdir(tmp_path)
    leave_undrawn(monkeypatch)
    hasten_processes(monkeypatch)


@pytest.fixture(scope="module")
def serial(
    tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], Path]
) -> dict[str, dict[str, float]]:
    """What the grid comes to in one process of one thread."""
    folder = tmp_path_factory.mktemp("serial")
    make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        leave_undrawn(patch)
        assert main(GRID) == 0
    return numbers(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server before PostgreSQL."""
    folder = tmp_path_factory.mktemp("server")
    with postgresql() as database, mlflow_server(database, folder) as uri:
        yield uri


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scheduler with two workers, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "poison.py").write_text(POISON)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with (
        dask_scheduler(folder / "scheduler") as file,
        dask_worker(file, folder / "one", PYTHONPATH=path, WORKER="1"),
        dask_worker(file, folder / "two", PYTHONPATH=path, WORKER="2"),
    ):
        yield file


def test_a_worker_killed_in_the_middle_costs_no_trial_and_completes_none_twice(
    server: str,
    scheduler: Path,
    serial: dict[str, dict[str, float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    quick: None,
) -> None:
    argv = [*GRID, "--tracking-uri", server]
    killed = Thread(target=lambda: os.kill(begun(server, "digits"), signal.SIGKILL))
    killed.start()
    assert main([*argv, "--executor", "dask", "--scheduler-file", str(scheduler)]) == 0
    killed.join()
    said = capsys.readouterr().out
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
    assert (tmp_path / "results" / "local" / "digits" / "summary.csv").exists()
    # and the same command has nothing left to do, in whatever folder
    assert main(argv) == 0
    assert "4 already complete" in capsys.readouterr().out


def test_two_commands_on_one_server_share_a_grid_without_a_common_file(
    server: str,
    serial: dict[str, dict[str, float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    quick: None,
) -> None:
    argv = [*GRID, "--tracking-uri", server, "--name", "shared"]
    process = start(argv, tmp_path / "other")
    begun(server, "shared")
    assert main(argv) == 0
    process.join(400)
    said = [output(tmp_path / "other"), capsys.readouterr().out]
    assert process.exitcode == 0, said
    assert numbers(server, "shared") == serial
    assert len({run.data.tags["pid"] for run in runs(server, "shared")}) == 2  # both worked
    assert any("done by another process" in each for each in said)


def test_an_interrupted_command_ends_its_workers_jobs(
    server: str, scheduler: Path, tmp_path: Path
) -> None:
    argv = [*GRID, "--priors", "gauss", "--epochs", "4000", "--tracking-uri", server]
    argv += ["--executor", "dask", "--scheduler-file", str(scheduler), "--name", "interrupted"]
    process = start(argv, tmp_path)
    begun(server, "interrupted")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(100)
    assert process.exitcode == 130, output(tmp_path)
    found = runs(server, "interrupted")
    assert {run.info.status for run in found} == {"KILLED"}
    assert {run.data.tags["reason"] for run in found} <= {"interrupted by the end of its command"}


def test_a_trial_that_kills_its_workers_is_given_up_and_the_others_finish(
    server: str,
    scheduler: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quick: None,
) -> None:
    monkeypatch.syspath_prepend(scheduler.parent.parent)
    argv = [*GRID, "--priors", "gauss,poison:killer", "--epochs", "1", "--seeds", "0"]
    argv += ["--tracking-uri", server]
    argv += ["--executor", "dask", "--scheduler-file", str(scheduler), "--name", "poison"]
    assert main(argv) == 1
    assert "KilledWorker: Attempted to run task" in capsys.readouterr().out
    last = {run.info.run_name: run.data.tags for run in reversed(runs(server, "poison"))}
    assert {name.partition("-")[0]: tags["status"] for name, tags in last.items()} == {
        "gauss": "complete",
        "poison:killer": "failed",
    }
