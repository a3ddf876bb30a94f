"""Kill a grid again and again, at random moments: it should end as one that was never killed.

    python -m bench.kills --kills 50

One grid runs undisturbed. The same grid is then started in a fresh folder, its process ended by a
signal after a random time, and started again by the same command, until it is complete; then
another one, until there were as many kills as asked for. Of each grid, everything that is no time
or size of memory is compared with the undisturbed one, to the bit: every number of every trial,
its curves epoch by epoch, its per-image log-likelihoods, its weights.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING

from flowvae.errors import InputError
from flowvae.options import Count, Natural

from .command import COMPLETE, RESULTS, UNFINISHED, Parser, flag, guarded, terminal, writing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Kill", "differences", "kill_again_and_again", "main", "processes", "start"]

GRID = ["--priors", "gauss,maf[hidden=32]", "--latents", "2", "--seeds", "0:2", "--epochs", "40"]
GRID += ["--nets", "mlp[hidden=64]", "--nll-samples", "400", "--checkpoint-every", "0.5"]
"""Of some seconds of training, with much scoring."""
SIGNALS = ["SIGKILL"] * 3 + ["SIGTERM", "SIGINT", "SIGUSR1"]
"""What ends the grid: most often what no process can answer."""
ENDS = 120.0
"""How long a process may take to end by itself when it is asked to, s."""
UNSTABLE = ("time/", "memory/")
"""Metrics that no two runs share."""


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
    context.set_forkserver_preload(["bench.run", "bench.work", "bench.conclude", "bench.launch"])
    return context


def _main(argv: list[str], folder: str) -> None:
    """What such a process does: the command, in a folder, its output in a file."""
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from .run import main

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

    Raises:
        InputError: The grid fails without being killed.
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
            if ended[-1].status in (COMPLETE, UNFINISHED):
                break
        different += [f"grid {grid}: {each}" for each in differences(folder / "whole", here)]
        if ended[-1].status != COMPLETE:
            different.append(f"grid {grid}: ended with status {ended[-1].status}")
    return ended, different


def _undisturbed(argv: Sequence[str], folder: Path) -> None:
    process = start(argv, folder)
    process.join()
    if process.exitcode != COMPLETE:
        raise InputError(
            f"the grid ends with status {process.exitcode} when nobody kills it; see "
            f"{folder / 'output.txt'}"
        )


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
    from mlflow import MlflowClient

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
    left = [path for path in folder.glob(f"{RESULTS}/*/*/*") if path.parent.name in KEPT]
    return found | {f"left behind: {path.relative_to(folder)}": True for path in left}


KEPT = ("checkpoints", "unsent")
"""Folders that are empty when a grid is complete."""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.kills",
        description="Kills a grid at random moments, and compares it with one never killed.",
        epilog="Arguments of bench.run may follow after --; without them a small grid of the "
        "bundled digits is taken.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--kills", metavar="N", default="50", help="processes that are killed (default: 50)")
    add("--seed", metavar="N", default="0", help="seed of moments and signals (default: 0)")
    parser.take_grid()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return guarded(_run, argv, resumes=False)


def _run(argv: Sequence[str]) -> int:
    arguments, console = _parser().parse(argv), terminal()
    kills, seed = (
        flag("kills", arguments.kills, Count),
        flag("seed", arguments.seed, Natural),
    )
    grid = [part for part in arguments.grid if part != "--"] or GRID

    import pandas as pd

    folder = RESULTS / "kills"
    with tempfile.TemporaryDirectory() as scratch:
        ended, different = kill_again_and_again(grid, Path(scratch), kills, seed=seed)
        if different:
            shutil.copytree(scratch, folder / "different", dirs_exist_ok=True)
    table = pd.DataFrame(ended)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / "kills.csv", index=False, float_format="%.3f")
    console.print(_summary(table), markup=False)
    grids = table["grid"].nunique()
    console.print(
        f"{grids} grids, each started again until it was complete; of what is no time or size, "
        f"{len(different)} things differ from the grid that was never killed"
    )
    for each in different:
        console.print(f"  {each}", markup=False, soft_wrap=True)
    console.print(str(folder / "kills.csv"), markup=False)
    return UNFINISHED if different else COMPLETE


def _summary(table: pd.DataFrame) -> str:
    """Returns a row a signal: how often, the exit statuses, how long the end took."""
    sent = table[table["signal"] != ""]
    rows = sent.groupby("signal").agg(
        kills=("status", "size"),
        statuses=("status", lambda s: ", ".join(str(v) for v in sorted(set(s)))),
        longest=("seconds", "max"),
    )
    return rows.to_string(float_format="{:.2f} s".format)


if __name__ == "__main__":
    sys.exit(main())
