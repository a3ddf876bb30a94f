"""Grids of `bench.run` that are killed at random moments, compared with one that never was.

Of each grid, everything that is no time or size of memory is compared, to the bit: every number
of every trial, its curves epoch by epoch, its per-image log-likelihoods, its weights.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from mlflow import MlflowClient

from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED
from bench.system.paths import RESULTS_FOLDER

SIGNALS = ["SIGKILL"] * 3 + ["SIGTERM", "SIGINT", "SIGUSR1"]
"""What ends the grid: most often what no process can answer."""
ENDS = 120.0
"""How long a process may take to end by itself when it is asked to, s."""
UNSTABLE = ("time/", "memory/")
"""Metrics that no two runs share."""
KEPT = ("checkpoints",)
"""Folders that are empty when a grid is complete."""


@dataclass(frozen=True)
class Kill:
    """One process of a grid, and how it ended.

    Arguments:
        grid: The number of the grid, from 1.
        attempt: The number of the process, from 1.
        signal: What it was sent; nothing where it ended before.
        after: How long it had run, s.
        status: Its exit status; negative where a signal ended it.
        seconds: How long it took to end after the signal, s.
    """

    grid: int
    attempt: int
    signal: str
    after: float
    status: int
    seconds: float


def processes() -> ForkServerContext:
    """Returns a context whose processes have all libraries loaded when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["bench.run", "bench.execution.worker", "bench.report.build", "bench.execution.scheduler"]
    )
    return context


def _main(argv: list[str], folder: str) -> None:
    """What such a process does: the command, in a folder, its output in a file."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from bench.run import main

    sys.exit(main(argv))


def start(argv: Sequence[str], folder: Path) -> ForkServerProcess:
    """Starts `bench.run` as a process of its own, in a folder; its output is in `output.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    process = processes().Process(target=_main, args=(list(argv), str(folder)))
    process.start()
    return process


def kill_again_and_again(
    argv: Sequence[str], folder: Path, kills: int, *, seed: int = 0
) -> tuple[list[Kill], list[str]]:
    """Kills grids until there were so many kills, and compares each with an undisturbed one.

    Arguments:
        argv: The arguments of `bench.run`.
        folder: Where grids run: `whole`, and `grid-1`, `grid-2` and so on.
        kills: How many processes are killed.
        seed: The seed of moments and signals.

    Returns:
        All processes, and in words what differs; nothing where nothing does.
    """
    chance = random.Random(seed)
    _undisturbed(argv, folder / "warm-up")  # the first process of all loads the libraries
    began = time.monotonic()
    _undisturbed(argv, folder / "whole")
    span = time.monotonic() - began
    ended: list[Kill] = []
    different: list[str] = []
    grid = 0
    while sum(bool(each.signal) for each in ended) < kills:
        grid += 1
        here = folder / f"grid-{grid}"
        for attempt in range(1, 1000):
            left = kills - sum(bool(each.signal) for each in ended)
            name = chance.choice(SIGNALS) if left else ""
            ended.append(_once(argv, here, (grid, attempt), name, chance.uniform(0, span / 2)))
            if ended[-1].status in (EXIT_COMPLETE, EXIT_UNFINISHED):
                break
        different += [f"grid {grid}: {each}" for each in differences(folder / "whole", here)]
        if ended[-1].status != EXIT_COMPLETE:
            different.append(f"grid {grid}: ended with status {ended[-1].status}")
    return ended, different


def _undisturbed(argv: Sequence[str], folder: Path) -> None:
    process = start(argv, folder)
    process.join()
    assert process.exitcode == EXIT_COMPLETE, (folder / "output.txt").read_text()


def _once(
    argv: Sequence[str], folder: Path, number: tuple[int, int], name: str, after: float
) -> Kill:
    """Runs a process, for so long, s, if there is a signal to end it by."""
    process, began = start(argv, folder), time.monotonic()
    process.join(after if name else None)
    if process.exitcode is not None:
        return Kill(*number, "", time.monotonic() - began, process.exitcode, 0.0)
    assert process.pid is not None
    os.kill(process.pid, signal.Signals[name])
    told = time.monotonic()
    process.join(ENDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    status = process.exitcode if process.exitcode is not None else -signal.SIGKILL
    return Kill(*number, name, after, status, time.monotonic() - told)


def differences(whole: Path, killed: Path) -> list[str]:
    """Returns in words what differs between two folders in which the same grid was run."""
    one, other = _content(whole), _content(killed)
    told = [
        f"{key}: {'missing' if key in one else 'too much'}" for key in one.keys() ^ other.keys()
    ]
    return told + [
        f"{key}: another value" for key in one.keys() & other.keys() if one[key] != other[key]
    ]


def _content(folder: Path) -> dict[str, object]:
    """Returns what a folder's store holds of its complete runs, by trial and name."""
    client = MlflowClient(f"sqlite:///{folder.resolve()}/mlflow.db")
    found: dict[str, object] = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            tags, metrics = run.data.tags, run.data.metrics
            if "trial" not in tags:
                continue
            if tags.get("complete") != "true":
                found[f"a run with status {run.info.status}"] = run.info.run_id
                continue
            name = f"{tags['trial']} {run.info.run_name}"
            assert f"{name} status" not in found, f"{name} is complete twice"
            found[f"{name} status"] = (run.info.status, tags["status"])
            found[f"{name} params"] = dict(run.data.params)
            for metric in metrics:
                if not metric.startswith(UNSTABLE):
                    points = client.get_metric_history(run.info.run_id, metric)
                    found[f"{name} {metric}"] = [(p.step, p.value) for p in points]
            root = Path(run.info.artifact_uri.removeprefix("file://"))
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[f"{name} {path.relative_to(root)}"] = digest
    left = [path for path in folder.glob(f"{RESULTS_FOLDER}/*/*/*") if path.parent.name in KEPT]
    return found | {f"left behind: {path.relative_to(folder)}": True for path in left}
