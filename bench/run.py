"""Compares priors: `python -m bench.run --priors gauss,maf`.

Plans the grid, runs what MLflow does not hold yet, and reads everything back from MLflow into a
table, figures and files under `results/local/NAME/`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowvae.errors import InputError
from flowvae.options import Positive, read

from .command import COMPLETE, RESULTS, UNFINISHED, Parser, guarded, terminal
from .grid import SETTINGS, Grid, experiments, make_grid, stacks

if TYPE_CHECKING:
    from rich.console import Console

    from flowvae.data import Dataset
    from flowvae.trial import Trial

    from .launch import Job
    from .results import Results
    from .tracking import Store

__all__ = ["main", "perform", "resolution"]

STACK = {"cpu": 1, "cuda": 8}
"""Seeds trained together: `vmap` slows a CPU down and fills a GPU."""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.run",
        description="Compares the priors of a variational autoencoder, trained and judged alike.",
        epilog="Lists are comma-separated; 0:5 is 0,1,2,3,4. A flag wins over the experiment's "
        "file. Exit status: 0 all complete, 1 some trial failed or diverged, 2 usage, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "experiment",
        nargs="?",
        help="an experiment's name or TOML file; default: that of the data set's name",
    )
    what = parser.add_argument_group("what to compare, and the recipe")
    for key, setting in SETTINGS.items():
        metavar = "LIST" if setting.kind == "axis" else "X"
        what.add_argument(f"--{key}", metavar=metavar, help=setting.help)
    add = parser.add_argument_group("where and how").add_argument
    add("--data-dir", metavar="DIR", help="data sets (default: FLOWVAE_DATA, or data)")
    add("--device", metavar="X", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--stack", metavar="N", default="auto", help="seeds trained together (default: auto)")
    add("--name", help="the MLflow experiment (default: the experiment's name)")
    add("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, or this folder's")
    add("--keep-weights", choices=("yes", "no"), default="yes", help="keep models (default: yes)")
    add(
        "--resolution", metavar="NATS", default="0.1",
        help="half-width of an interval to count seeds for (default: 0.1)",
    )  # fmt: skip
    what = parser.add_argument_group("what to do")
    add = what.add_mutually_exclusive_group().add_argument
    add("--dry-run", action="store_true", help="print the plan and stop")
    add("--list", action="store_true", help="print priors, data sets, nets and experiments")
    add("--force", action="store_true", help="run also what is complete")
    add("--figures-only", action="store_true", help="redraw from MLflow, run nothing")
    add(
        "--profile", action="store_true",
        help="trace a few steps and scores of the first stack, record nothing, and stop",
    )  # fmt: skip
    what.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return guarded(_run, argv, resumes="--profile" not in (sys.argv if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    arguments, console = _parser().parse(argv), terminal()
    if arguments.list:
        _list(console)
        return COMPLETE
    command = f"python -m bench.run {shlex.join(argv)}".strip()
    wanted = resolution(arguments.resolution)
    grid, store, results = _perform(arguments, console, command)
    if results is None:
        return COMPLETE
    if (results.frame["status"] == "missing").all():
        if not arguments.figures_only:
            return UNFINISHED  # each has said why
        raise InputError(
            f"{store.uri} holds no finished trial of this grid: nothing to draw. Give the flags "
            "that it was run with"
        )

    from .report import conclude

    conclude(console, grid.name, results, command, resolution=wanted)
    _say(console, "\nbrowse", f"{store.browse()}")
    return COMPLETE if results.complete else UNFINISHED


def perform(argv: Sequence[str], console: Console, command: str) -> Results | None:
    """Does what is left of a grid and returns what the store then holds, or None if only asked.

    Arguments:
        argv: The arguments of `bench.run`.
        console: Where to show the progress.
        command: The command that a person typed.

    Raises:
        InputError: An argument is not what it should be.
    """
    return _perform(_parser().parse(argv), console, command)[2]


def _check_possible(grid: Grid, device: str, *, keep: bool) -> None:
    """Refuses what could only fail after hours of training."""
    precisions = {grid.evaluation.precision, *(trial.precision for trial in grid.trials)}
    if "tf32" in precisions and not device.startswith("cuda"):
        raise InputError(f"precision tf32 needs a CUDA device: on '{device}' take float32 or bf16")
    if not keep and any(trial.base for trial in grid.trials):
        raise InputError("post-hoc training needs the weights of its base: --keep-weights yes")


def _perform(
    arguments: argparse.Namespace, console: Console, command: str
) -> tuple[Grid, Store, Results | None]:
    """Runs what the store does not hold, and reads the grid back, unless only asked about it."""
    given = {key: getattr(arguments, key.replace("-", "_")) for key in SETTINGS}
    flags = {key: text for key, text in given.items() if text is not None}
    grid = make_grid(flags, arguments.experiment, arguments.name)

    from flowvae.data import data_dir, load_data

    from .launch import choose_device
    from .tracking import Store, tracking_uri

    device = choose_device(arguments.device)
    size = _stack(arguments.stack, device)
    folder = data_dir(arguments.data_dir)
    store = Store(tracking_uri(arguments.tracking_uri), grid.name)
    keep = arguments.keep_weights == "yes"
    jobs: list[Job] = []
    if not arguments.figures_only:
        _check_possible(grid, device, keep=keep)
        data = load_data(grid.trials[0].dataset, folder)
        jobs = _plan(grid, store, folder, device, size, keep=keep, force=arguments.force)
        _announce(console, grid, data.describe(), device, size, jobs)
    if arguments.profile:
        _profile(console, grid, jobs, data, device, size)
        return grid, store, None
    if arguments.dry_run:
        _print_plan(console, grid, jobs)
        return grid, store, None
    if jobs:
        scored = f"{data.describe()}; K = {grid.evaluation.samples}."
        store.describe(f"{grid.question}\n\n{scored}\n\n```\n{command}\n```")
        _work(console, jobs)

    from .results import read_results

    return grid, store, read_results(store, grid.trials, grid.evaluation)


def _stack(text: str, device: str) -> int:
    if text == "auto":
        return STACK[device.partition(":")[0]]
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"bad --stack '{text}': expected auto or a whole number, at least 1")
    return int(text)


def resolution(text: str) -> float:
    """Reads a half-width, nats."""
    try:
        return read(text, Positive)
    except ValueError as expected:
        raise InputError(f"bad --resolution '{text}': expected {expected} (nats)") from None


def _plan(
    grid: Grid, store: Store, folder: Path, device: str, size: int, *, keep: bool, force: bool
) -> list[Job]:
    """Returns the jobs that the store does not hold complete."""
    from .launch import Job

    fitted = {} if force else store.fitted(grid.trials)
    unscored = [
        (trial, fitted[trial.id])
        for trial in grid.trials
        if trial.id in fitted and not store.scored(fitted[trial.id], grid.evaluation)
    ]
    left = [trial for trial in grid.trials if trial.id not in fitted]
    work: list[tuple[tuple[Trial, ...], str | None]]
    work = [((trial,), run.info.run_id) for trial, run in unscored]
    work += [(tuple(stack), None) for stack in stacks(left, size)]
    return [
        Job(
            number=number,
            trials=trials,
            evaluation=grid.evaluation,
            data_dir=folder,
            device=device,
            uri=store.uri,
            experiment=store.name,
            keep_weights=keep,
            run_id=run_id,
        )
        for number, (trials, run_id) in enumerate(work)
    ]


def _say(console: Console, label: str, text: str) -> None:
    from rich.text import Text

    console.print(Text.assemble((f"{label:<11}", "bold"), text), soft_wrap=True)


def _announce(
    console: Console, grid: Grid, data: str, device: str, size: int, jobs: Sequence[Job]
) -> None:
    from .launch import device_name

    def kinds(name: str) -> str:
        return ", ".join(dict.fromkeys(trial.labels[name] for trial in grid.trials))

    first = grid.trials[0]
    fits = sum(len(job.trials) for job in jobs if job.run_id is None)
    again = sum(job.run_id is not None for job in jobs)
    done = len(grid.trials) - fits - again
    counts = {"already complete": done, "to score anew": again, "to train": fits}
    lines = {
        "experiment": f"{grid.name} ({grid.source})",
        "question": grid.question,
        "data": data,
        "priors": kinds("prior"),
        "latents": _join(grid.axis("latent")),
        "seeds": _join(grid.axis("seed")),
        "nets": kinds("net"),
        "recipe": f"{_count(first.epochs, 'epoch')}, batch {first.batch}, Adam {first.lr:g}, "
        f"{' and '.join(grid.axis('precision'))}, weights of the {first.select} epoch",
        "score": f"test NLL by importance weighting, K = {grid.evaluation.samples}, "
        f"{grid.evaluation.precision}",
        "device": f"{device_name(device)}" + (f", stacks of {size} seeds" if size > 1 else ""),
        "plan": f"{_count(len(grid.trials), 'trial')}: "
        + ", ".join(f"{n} {what}" for what, n in counts.items() if n),
    }
    for name, text in lines.items():
        if text:
            _say(console, name, text)
    console.print()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _print_plan(console: Console, grid: Grid, jobs: Sequence[Job]) -> None:
    states = {
        trial.id: "train" if job.run_id is None else "score anew"
        for job in jobs
        for trial in job.trials
    }
    for trial in grid.trials:
        state = states.get(trial.id, "complete")
        console.print(f"{trial.id}  {trial.name:<20} {state}", markup=False, soft_wrap=True)


def _work(console: Console, jobs: Sequence[Job]) -> None:
    from .display import Display
    from .launch import Serial, launch

    with Display(console, sum(len(job.trials) for job in jobs)) as display:
        for job, outcomes in launch(jobs, Serial(), display.report):
            display.finished(job, outcomes)


def _profile(
    console: Console, grid: Grid, jobs: Sequence[Job], data: Dataset, device: str, size: int
) -> None:
    """Profiles the first stack of the plan; of the grid, where there is none left to train."""
    from .profiling import profile, show

    planned = (job.trials for job in jobs if job.run_id is None)
    trials = next(planned, None) or stacks(grid.trials, size)[0]
    _say(console, "profile", f"{trials[0].name}, the first; nothing is recorded\n")
    folder = RESULTS / grid.name / "profile"  # no spinner: its thread would share the CPU
    show(console, profile(trials, data, grid.evaluation, device=device, folder=folder))


def _list(console: Console) -> None:
    import tomllib

    from flowvae.options import write
    from flowvae.trial import registries

    for registry in registries().values():
        _say(console, f"{registry.kind}s", "")
        for name, entry in registry.items():
            options = [f"{key}={write(value)}" for key, value in entry.options.items()]
            detail = "; ".join([entry.source, *([", ".join(options)] if options else [])])
            for head, line in ((name, entry.summary), ("", detail)):
                console.print(f"  {head:<11}{line}", markup=False, soft_wrap=True)
    _say(console, "experiments", "")
    for name, path in sorted(experiments().items()):
        question = tomllib.loads(path.read_text()).get("question", "")
        console.print(f"  {name:<11}{question}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
