"""Grids that are killed, and grids of several processes, with real processes."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.entities import Run
from support.fast_commands import hasten_processes
from support.fault_injection import differences, kill_again_and_again, start

from bench.cli.parser import EXIT_INTERRUPTED
from bench.store.runs import Store

TINY = ["--priors", "gauss,maf[hidden=8]", "--latents", "2", "--seeds", "0", "--nll-samples", "60"]
TINY += ["--nets", "mlp[hidden=16]", "--epochs", "20", "--checkpoint-every", "0.05"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten_processes(monkeypatch)


def runs(folder: Path) -> list[Run]:
    store = Store(f"sqlite:///{folder}/mlflow.db", "digits")
    return list(store.client.search_runs([store.experiment], "tags.trial LIKE '%'"))


def output(folder: Path) -> str:
    return (folder / "output.txt").read_text()


def test_a_grid_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    ended, different = kill_again_and_again(TINY, tmp_path, 2, seed=1)
    assert different == []
    assert sum(bool(each.signal) for each in ended) == 2
    for each in ended:
        if each.signal:
            assert each.status == (
                -signal.SIGKILL if each.signal == "SIGKILL" else EXIT_INTERRUPTED
            )
    assert ended[-1].status == 0

    # and what differs would be seen
    whole, other = tmp_path / "whole", tmp_path / "other"
    shutil.copytree(whole, other)
    # its artifacts are still those of the whole: only the database is another
    with sqlite3.connect(other / "mlflow.db") as database:
        database.execute("UPDATE metrics SET value = value + 1e-12 WHERE key = 'valid/elbo'")
        database.execute("DELETE FROM metrics WHERE key = 'train/rate' AND step = 3")
    told = differences(whole, other)
    assert {each.rsplit(" ", 3)[1] for each in told} == {"valid/elbo:", "train/rate:"}
    assert len(told) == 4
    (other / "results" / "local" / "digits" / "checkpoints").mkdir(exist_ok=True)
    (other / "results" / "local" / "digits" / "checkpoints" / "x").touch()
    assert any(
        "left behind: results/local/digits/checkpoints/x" in each
        for each in differences(whole, other)
    )


def test_two_processes_share_a_grid_from_an_empty_folder(tmp_path: Path) -> None:
    argv = [*TINY, "--seeds", "0:2"]
    pair = [start(argv, tmp_path / "both") for _ in range(2)]
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0], output(tmp_path / "both")
    found = runs(tmp_path / "both")
    assert Counter(run.data.tags["status"] for run in found) == {"complete": 4}
    assert len({run.data.tags["trial"] for run in found}) == 4
    assert len({run.data.tags["pid"] for run in found}) == 2  # both worked
    said = output(tmp_path / "both")
    assert "done by another process" in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("empty_store")
def test_a_process_that_waits_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    argv = [*TINY, "--priors", "gauss", "--epochs", "4000"]
    first = start(argv, tmp_path)
    checkpoints = tmp_path / "results" / "local" / "digits" / "checkpoints"
    for _ in range(600):
        if list(checkpoints.glob("*.safetensors")):
            break
        time.sleep(0.1)
    second = start(argv, tmp_path)
    waits = "waiting for trials that another process is running: gauss-z2-s0"
    for _ in range(600):
        if waits in output(tmp_path):
            break
        time.sleep(0.1)
    assert waits in output(tmp_path)
    assert second.is_alive()
    first.kill()
    first.join()
    store = Store(
        f"sqlite:///{tmp_path}/mlflow.db", "digits"
    )  # to open one takes the second's time
    for _ in range(300):
        if any("resumed" in r.data.tags for r in store.client.search_runs([store.experiment])):
            break
        time.sleep(0.2)
    second.terminate()  # and a third goes on from there: no need to train to the end
    second.join()
    assert second.exitcode == EXIT_INTERRUPTED
    assert "interrupted by SIGTERM: the same command resumes" in output(tmp_path)
    (run,) = runs(tmp_path)
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "killed")
    assert run.data.tags["reason"] == "interrupted by SIGTERM"
    assert run.data.tags["resumed"] == "1"
    assert list(checkpoints.glob("*.safetensors"))
