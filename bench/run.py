"""Compares priors: `python -m bench.run --priors gauss,maf`.

Plans the grid, runs what MLflow does not hold yet, and reads everything back from MLflow into a
table, figures and files under `results/local/NAME/`.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from flowvae.errors import InputError

from .grid import SETTINGS, Grid, experiments, make_grid, stacks

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from flowvae.trial import Trial

    from .launch import Job
    from .tracking import Results, Store

__all__ = ["main"]

COMPLETE, UNFINISHED, USAGE, INTERRUPTED = 0, 1, 2, 130
STACK = {"cpu": 1, "cuda": 8}
"""Seeds trained together: `vmap` slows a CPU down and fills a GPU."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the flags)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m bench.run",
        description="Compares the priors of a variational autoencoder, trained and judged alike.",
        epilog="Lists are comma-separated; 0:5 is 0,1,2,3,4. A flag wins over the experiment's file. "
        "Exit status: 0 all complete, 1 some trial failed or diverged, 2 usage, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "experiment",
        nargs="?",
        help="an experiment's name or TOML file; default: that of the data set's name",
    )
    what = parser.add_argument_group("what to compare, and the recipe")
    for key, setting in SETTINGS.items():
        what.add_argument(f"--{key}", metavar="LIST" if setting.kind == "axis" else "X", help=setting.help)
    how = parser.add_argument_group("where and how")
    how.add_argument("--data-dir", metavar="DIR", help="data sets (default: FLOWVAE_DATA, or data)")
    how.add_argument("--device", metavar="X", default="auto", help="auto, cpu, cuda or cuda:N")
    how.add_argument("--stack", metavar="N", default="auto", help="seeds trained together")
    how.add_argument("--name", help="the MLflow experiment (default: the experiment's name)")
    how.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)")
    how.add_argument("--keep-weights", choices=("yes", "no"), default="yes", help="keep the models (default: yes)")
    do = parser.add_argument_group("what to do")
    do.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    do.add_argument("--list", action="store_true", help="print priors, data sets, nets and experiments")
    do.add_argument("--force", action="store_true", help="run also what is complete")
    do.add_argument("--figures-only", action="store_true", help="redraw from MLflow, run nothing")
    do.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(rest[0].partition("=")[0], flags, n=1)
        parser.error(f"unknown argument '{rest[0]}'" + (f": did you mean {near[0]}?" if near else ""))
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        return _run(_parse(argv), argv)
    except InputError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    if arguments.list:
        _list(console)
        return COMPLETE
    given = vars(arguments)
    flags = {key: given[key.replace("-", "_")] for key in SETTINGS}
    flags = {key: text for key, text in flags.items() if text is not None}
    grid = make_grid(flags, arguments.experiment, arguments.name)
    device = _device(arguments.device)

    from flowvae.data import data_dir, load_data

    from .tracking import Store, tracking_uri

    folder = data_dir(arguments.data_dir)
    data = load_data(grid.trials[0].dataset, folder)
    store = Store(tracking_uri(arguments.tracking_uri), grid.name)
    size = _stack(arguments.stack, device)
    jobs, done = _plan(grid, store, folder, device, size, arguments)
    _announce(console, grid, data.describe(), device, size, jobs, done)
    if arguments.dry_run:
        _print_plan(console, grid, jobs)
        return COMPLETE
    command = f"python -m bench.run {shlex.join(argv)}".strip()
    if jobs:
        store.describe(_note(grid, data.describe(), command))
        _work(console, jobs)
    results = store.results(grid.trials, grid.evaluation)
    if results.frame.empty:
        raise InputError(f"{store.uri} holds none of these trials: run without --figures-only first")
    _conclude(console, grid, store, results, command)
    missing = len(grid.trials) - int((results.frame["status"] == "complete").sum())
    return UNFINISHED if missing else COMPLETE


def _device(text: str) -> str:
    import torch

    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError(f"bad --device '{text}': expected auto, cpu, cuda or cuda:N") from None
    if device.type not in STACK:
        raise InputError(f"bad --device '{text}': expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"no device '{text}': torch sees {count} CUDA devices; try --device cpu")
    return text


def _stack(text: str, device: str) -> int:
    if text == "auto":
        return STACK[device.partition(":")[0]]
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"bad --stack '{text}': expected auto or a whole number, at least 1")
    return int(text)


def _plan(
    grid: Grid, store: Store, folder: Path, device: str, size: int, arguments: argparse.Namespace
) -> tuple[list[Job], int]:
    """Returns the jobs that are left, and the number of trials that need none."""
    from .launch import Job

    if arguments.figures_only:
        return [], len(grid.trials)
    fitted = {} if arguments.force else store.fitted(grid.trials)
    todo: list[tuple[tuple[Trial, ...], str | None]] = [
        ((trial,), fitted[trial.id].info.run_id)
        for trial in grid.trials
        if trial.id in fitted and not store.scored(fitted[trial.id], grid.evaluation)
    ]
    left = [trial for trial in grid.trials if trial.id not in fitted]
    todo += [(tuple(stack), None) for stack in stacks(left, size)]
    jobs = [
        Job(
            number=number,
            trials=trials,
            evaluation=grid.evaluation,
            data_dir=folder,
            device=device,
            uri=store.uri,
            experiment=store.name,
            keep_weights=arguments.keep_weights == "yes",
            run_id=run_id,
        )
        for number, (trials, run_id) in enumerate(todo)
    ]
    return jobs, len(grid.trials) - sum(len(job.trials) for job in jobs)


def _announce(
    console: Console,
    grid: Grid,
    data: str,
    device: str,
    size: int,
    jobs: Sequence[Job],
    done: int,
) -> None:
    from .launch import device_name

    first = grid.trials[0]
    priors = ", ".join(dict.fromkeys(trial.labels["prior"] for trial in grid.trials))
    lines = {
        "experiment": f"{grid.name} ({grid.source})",
        "question": grid.question,
        "data": data,
        "priors": priors,
        "latents": ", ".join(map(str, grid.axis("latent"))),
        "seeds": ", ".join(map(str, grid.axis("seed"))),
        "recipe": f"{', '.join(dict.fromkeys(t.labels['net'] for t in grid.trials))}, "
        f"{first.epochs} epochs, batch {first.batch}, Adam {first.lr:g}, {first.precision}, "
        f"{first.select} epoch",
        "score": f"test NLL by importance weighting, K = {grid.evaluation.samples}, "
        f"{grid.evaluation.precision}",
        "device": f"{device_name(device)}, stacks of {size}",
    }
    for name, text in lines.items():
        if text:
            console.print(f"[bold]{name:<11}[/]{text}", soft_wrap=True)
    fits = sum(len(job.trials) for job in jobs if job.run_id is None)
    scores = len(jobs) - sum(job.run_id is None for job in jobs)
    counts = [f"{len(grid.trials)} trials"]
    counts += [f"{done} already complete"] if done else []
    counts += [f"{scores} to score anew"] if scores else []
    counts += [f"{fits} to train"]
    console.print(f"[bold]{'plan':<11}[/]{', '.join(counts)}", soft_wrap=True)


def _print_plan(console: Console, grid: Grid, jobs: Sequence[Job]) -> None:
    states = {
        trial.id: "train" if job.run_id is None else "score anew"
        for job in jobs
        for trial in job.trials
    }
    for trial in grid.trials:
        state = states.get(trial.id, "complete")
        console.print(f"  {trial.id}  {trial.name:<20} {state}", soft_wrap=True)


def _work(console: Console, jobs: Sequence[Job]) -> None:
    from .display import Display
    from .launch import Serial, launch

    with Display(console, sum(len(job.trials) for job in jobs)) as display:
        for job, outcomes in zip(jobs, launch(jobs, Serial(), display.report), strict=True):
            display.finished(job, outcomes)


def _note(grid: Grid, data: str, command: str) -> str:
    return f"{grid.question}\n\nData: {data}. K = {grid.evaluation.samples}.\n\n```\n{command}\n```"


def _conclude(
    console: Console, grid: Grid, store: Store, results: Results, command: str
) -> None:
    """Writes tables and figures, and prints what a person wants to know first."""
    from .figures import draw_all
    from .stats import sentences, summary

    folder = Path("results") / "local" / grid.name
    folder.mkdir(parents=True, exist_ok=True)
    table = summary(results.frame, results.loglik)
    results.frame.to_csv(folder / "trials.csv", index=False)
    table.to_csv(folder / "summary.csv", index=False)
    (folder / "command.txt").write_text(command + "\n")
    start = time.perf_counter()
    drawn = draw_all(
        results.frame, results.loglik, results.curves, results.samples, results.maps, folder
    )
    console.print()
    console.print(_table(table))
    for sentence in sentences(table):
        console.print(sentence, soft_wrap=True)
    console.print()
    seconds = time.perf_counter() - start
    console.print(f"tables   {folder}/trials.csv, summary.csv", soft_wrap=True)
    pictures = [path.name for path in drawn if path.suffix == ".png"]
    console.print(f"figures  {folder}/ ({', '.join(pictures)}; {seconds:.0f} s)", soft_wrap=True)
    console.print(
        f"runs     mlflow ui, then http://127.0.0.1:5000/#/experiments/{store.experiment}"
        "?workflowType=machine_learning",
        soft_wrap=True,
    )


def _table(summary: pd.DataFrame) -> object:
    from rich.table import Table

    table = Table()
    return table


def _list(console: Console) -> None:
    import tomllib

    from flowvae.options import write
    from flowvae.trial import registries

    for registry in registries().values():
        console.print(f"[bold]{registry.kind}s[/]")
        for name, entry in registry.items():
            options = ", ".join(f"{key}={write(value)}" for key, value in entry.options.items())
            console.print(f"  {name:<9}{entry.summary}", soft_wrap=True)
            console.print(f"  {'':<9}[dim]{entry.source}{'; ' if options else ''}{options}[/]", soft_wrap=True)
    console.print("[bold]experiments[/]")
    for name, path in sorted(experiments().items()):
        question = tomllib.loads(path.read_text()).get("question", "")
        console.print(f"  {name:<9}{question}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
