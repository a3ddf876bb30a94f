"""How does a grid scale, here and on paper? `python -m bench.scaling [--tracking-uri URI]`.

One small grid runs in fresh folders with one worker, with two and so on in turns, each on as many
cores as it has workers, with a thread for each. With T(N) seconds for N workers the efficiency is
T(1) / (N T(N)), of the whole command, and of the work alone, from the start of the first run to
the end of the last. Coordinators have their libraries loaded when they start, workers load theirs.

Then is measured what a job asks of the store, and what the store takes (`bench.load`); from this
follows how much of each shared resource N GPUs use, and which is full first (`bench.bottlenecks`).
A server is left with an experiment named `scaling-...`, to be deleted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowvae.errors import InputError
from flowvae.options import Count, Positive, read
from flowvae.registry import split

from .command import COMPLETE, RESULTS, Parser, guarded, terminal, writing
from .kills import processes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["efficiencies", "main", "start"]

GRID = ["--priors", "gauss,maf", "--latents", "2,8", "--seeds", "0:2", "--epochs", "24"]
"""Eight jobs of the bundled digits, some seconds each."""
STACKS = (1, 8)
"""Trials of a job on paper: one, and what `bench.run` takes on a GPU."""


def _main(argv: list[str], folder: str, cores: set[int]) -> None:
    """What a coordinator does: the command, in a folder, on some cores."""
    from .kills import _main as run

    os.sched_setaffinity(0, cores)
    run(argv, folder)


def start(argv: Sequence[str], folder: Path, cores: set[int]) -> ForkServerProcess:
    """Starts `bench.run` as a process of its own, on some cores, as `bench.kills` does."""
    folder.mkdir(parents=True, exist_ok=True)
    process = processes().Process(target=_main, args=(list(argv), str(folder), cores))
    process.start()
    return process


def _grids(
    grid: Sequence[str], workers: Sequence[int], repeats: int, folder: Path
) -> pd.DataFrame:
    """Runs the grid with each number of workers in turns; returns a row a run."""
    import pandas as pd

    rows = []
    cores = sorted(os.sched_getaffinity(0))
    # The first process loads the libraries, and tells what is wrong with the grid.
    _took([*grid, "--dry-run"], set(cores), folder / "warm-up")
    for repeat in range(1, repeats + 1):
        shifted = cores[repeat % len(cores) :] + cores[: repeat % len(cores)]
        for number in workers:
            here = folder / f"{repeat}-{number}"
            load = os.getloadavg()[0]
            argv = [*grid, "--executor", "local", "--workers", str(number), "--device", "cpu"]
            wall = _took(argv, set(shifted[:number]), here)
            rows.append({
                "repeat": repeat, "workers": number, "wall_seconds": wall, **_work_alone(here),
                "load_before": load,
            })  # fmt: skip
    return efficiencies(pd.DataFrame(rows))


def _took(argv: Sequence[str], cores: set[int], folder: Path) -> float:
    """Returns what a command of `bench.run` takes, s.

    Raises:
        InputError: It fails.
    """
    began = time.monotonic()
    process = start(argv, folder, cores)
    process.join()
    if process.exitcode != COMPLETE:
        told = (folder / "output.txt").read_text().splitlines()
        raise InputError(
            f"the grid ends with status {process.exitcode}: "
            f"{(told or ['it says nothing'])[-1].removeprefix('error: ')}"
        )
    return time.monotonic() - began


def _work_alone(folder: Path) -> dict[str, float | str]:
    """Returns the time from the start of the first run in a folder to the end of the last, s."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.resolve()}/mlflow.db")
    runs = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
        if "trial" in run.data.tags
    ]
    begun = min(run.info.start_time for run in runs)
    ended = max(run.info.end_time for run in runs)
    each = sum(run.info.end_time - run.info.start_time for run in runs) / len(runs)
    threads = ", ".join(sorted({run.data.tags["threads"] for run in runs}))
    return {
        "work_seconds": (ended - begun) / 1000, "run_seconds": each / 1000, "runs": len(runs),
        "threads": threads,
    }  # fmt: skip


def efficiencies(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds `wall_efficiency` and `work_efficiency`, by the run of the same repeat with fewest."""
    fewest = rows["workers"].min()
    for name in ("wall", "work"):
        column = f"{name}_seconds"
        first = rows[rows["workers"] == fewest].set_index("repeat")[column] * fewest
        rows[f"{name}_efficiency"] = rows["repeat"].map(first) / (rows["workers"] * rows[column])
    return rows


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.scaling",
        description="Measures how a grid scales here, what it asks of store and coordinator, and "
        "says on paper which of them is full first.",
        epilog="Arguments of bench.run may follow after --; without them a small grid of the "
        "bundled digits is taken.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workers", metavar="LIST", default="1,2", help="numbers of workers (default: 1,2)")
    add("--repeats", metavar="N", default="3", help="runs of each number (default: 3)")
    add("--tracking-uri", metavar="URI", help="a server to measure beside an sqlite store")
    add(
        "--seconds", metavar="LIST", default="60,420",
        help="what a job takes on paper, s (default: 60,420)",
    )  # fmt: skip
    parser.take_grid()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    return guarded(_run, argv, resumes=False)


def _read(flag: str, text: str, kind: object) -> list[Any]:
    try:
        return [read(part, kind) for part in split(text) or [""]]
    except ValueError as expected:
        raise InputError(f"bad {flag} '{text}': expected {expected}, or a list of them") from None


def _run(argv: Sequence[str]) -> int:
    arguments, console = _parser().parse(argv), terminal()
    workers = sorted(set(_read("--workers", arguments.workers, Count)))
    seconds = _read("--seconds", arguments.seconds, Positive)
    repeats = _read("--repeats", arguments.repeats, Count)
    if len(repeats) > 1:
        raise InputError(f"bad --repeats '{arguments.repeats}': expected one number")
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this system cannot keep a process on some cores: run this on Linux")
    cores = len(os.sched_getaffinity(0))
    if workers[-1] > cores:
        raise InputError(f"--workers {workers[-1]}: this machine has {cores} cores")
    uri = arguments.tracking_uri
    if uri is not None and not uri.startswith("http"):
        raise InputError(
            f"bad --tracking-uri '{uri}': expected that of an MLflow server, as http://HOST:5000; "
            "an sqlite store is measured anyway"
        )
    grid = [part for part in arguments.grid if part != "--"] or GRID
    folder = RESULTS / "scaling"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)

    import pandas as pd

    from .bottlenecks import Measured, Setting, draw, table
    from .coordinator import measure_coordinator
    from .devices import device_name
    from .load import Table, measure_store
    from .look import write

    out, known = folder.resolve(), Table()
    with tempfile.TemporaryDirectory() as text, contextlib.chdir(text):
        scratch = Path(text)
        runs = _grids(grid, workers, repeats[0], scratch)
        with writing(folder):
            runs.to_csv(out / "scaling.csv", index=False, float_format="%.4g")
        stores = [f"sqlite:///{scratch.resolve()}/mlflow.db", *([uri] if uri else [])]
        measured = {each.partition(":")[0]: measure_store(each, scratch, known) for each in stores}
        done = next(iter(measured.values()))[0]
        rest = measure_coordinator(done, known)
    costs = {kind: Measured(**store, **rest) for kind, (_, store) in measured.items()}
    settings = [Setting(s, m) for m in STACKS for s in seconds]
    paper = pd.concat([
        table(found, settings).assign(store=store) for store, found in costs.items()
    ])  # fmt: skip
    facts = [
        f"{'a server' if uri else 'an sqlite store'} on this machine, of which the clients use "
        "the cores", f"{settings[0].epochs} epochs a job",
        "solid: on the MLflow server; dashed: at scheduler and coordinator",
        device_name("cpu").rpartition(",")[0],
    ]  # fmt: skip
    figure = draw(list(costs.values())[-1], settings, facts)
    with writing(folder):
        pd.DataFrame(known.rows).to_csv(out / "costs.csv", index=False, float_format="%.4g")
        paper.to_csv(out / "bottlenecks.csv", index=False, float_format="%.4g")
        write(figure, out / "scaling", None, 200)
    console.print(_summary(runs), markup=False)
    console.print(_first(paper), markup=False)
    for name in ("scaling.csv", "costs.csv", "bottlenecks.csv", "scaling.png", "scaling.svg"):
        console.print(str(folder / name), markup=False)
    return COMPLETE


def _summary(runs: pd.DataFrame) -> str:
    """Returns a row a number of workers: median seconds, and efficiency with its range."""

    def spread(values: pd.Series) -> str:
        return f"{values.median():.2f} [{values.min():.2f}, {values.max():.2f}]"

    names = ("wall_seconds", "work_seconds", "wall_efficiency", "work_efficiency")
    return runs.groupby("workers").agg({name: spread for name in names}).to_string()


def _first(paper: pd.DataFrame) -> str:
    """Says for each store and setting what is full first, and what makes room."""
    from .bottlenecks import REMEDIES

    told = []
    for (store, stack, seconds), rows in paper.groupby(["store", "stack", "seconds"]):
        parts = rows[rows["resource"].isin(REMEDIES)]
        first = parts.sort_values("full_at").iloc[0]
        whole = rows.set_index("resource")["full_at"].drop(parts["resource"]).iloc[0]
        told.append(
            f"{store}, jobs of {stack} x {seconds:g} s: the server is full at {whole:.3g} GPUs; "
            f"of single resources '{first['resource']}' at {first['full_at']:.3g}: "
            f"{REMEDIES[first['resource']]}"
        )
    return "\n".join(told)


if __name__ == "__main__":
    sys.exit(main())
