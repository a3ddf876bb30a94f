"""Compares priors: `python -m bench.run --priors gauss,maf`.

Plans the grid, runs what MLflow does not hold yet, and reads everything back from MLflow into a
table, figures and files under `results/local/NAME/`. Where learning rates are to be chosen first
(`--tune-lr`), that is a stage before it, by the same means: see `bench.grid.tuning`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from bench.cli.console import count, make_console, print_labelled
from bench.cli.listing import print_names
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, Parser, read_flag, run_command
from bench.execution.executors.choose import add_flags, choose_executor
from bench.execution.plan import Placement, Plan
from bench.execution.plan_text import print_plan, print_summary
from bench.grid.experiment_file import experiments
from bench.grid.grid import Grid, make_grid
from bench.grid.job import UnfinishedError
from bench.grid.settings import SETTINGS
from bench.grid.stacking import stacks
from bench.store.errors import store_errors_as_one_line
from bench.system.paths import RESULTS_FOLDER, writing
from flowvae.errors import InputError, nearest
from flowvae.specs.values import Count, Positive

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from bench.execution.executors.base import JobExecutor
    from bench.grid.job import Job
    from bench.report.page import Page
    from bench.results.read import Results
    from bench.store.runs import Store
    from flowvae.data import Dataset

__all__ = ["main", "perform"]


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
        help="an experiment's name or TOML file; default: that of the data set's name, or mnist",
    )
    what = parser.add_argument_group("what to compare, and the recipe")
    for key, setting in SETTINGS.items():
        metavar = "LIST" if setting.is_list else "X"
        what.add_argument(f"--{key}", metavar=metavar, help=setting.help)
    add = parser.add_argument_group("where and how").add_argument
    add("--data-dir", metavar="DIR", help="data sets (default: FLOWVAE_DATA, or data)")
    add("--device", metavar="X", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--stack", metavar="N", default="auto", help="seeds trained together (default: auto)")
    add("--name", help="the MLflow experiment (default: the experiment's name)")
    add("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, or this folder's")
    add(
        "--checkpoint-every", metavar="S", default="60",
        help="seconds of work that are lost at most when all ends at once (default: 60)",
    )  # fmt: skip
    add("--keep-weights", choices=("yes", "no"), default="yes", help="keep models (default: yes)")
    add(
        "--resolution", metavar="NATS", default="0.1",
        help="half-width of an interval to count seeds for (default: 0.1)",
    )  # fmt: skip
    add_flags(parser)
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
    return run_command(_run, argv, resumes="--profile" not in (sys.argv if argv is None else argv))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command; a word behind a list is of the list, unless it is like an experiment's.

    Raises:
        InputError: An argument is not what it should be.
    """
    parser, known = _parser(), experiments()

    def meant(word: str) -> bool:
        return word.endswith(".toml") or bool(nearest(word, known))

    arguments = parser.parse(argv, meant)
    name = arguments.experiment
    if name and not meant(name) and (hint := parser.parted(argv, name, meant)):
        raise InputError(f"unknown experiment '{name}'{hint}")
    return arguments


def _run(argv: Sequence[str]) -> int:
    arguments, console = _parse(argv), make_console()
    if arguments.list:
        print_names(console)
        return EXIT_COMPLETE
    command = f"python -m bench.run {shlex.join(argv)}".strip()
    wanted = read_flag("resolution", arguments.resolution, Positive, "nats")
    try:
        grid, store, results = _perform(arguments, console, command)
    except UnfinishedError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_UNFINISHED
    if results is None:
        return EXIT_COMPLETE
    if (results.frame["status"] == "missing").all():
        if not arguments.figures_only:
            return EXIT_UNFINISHED  # each has said why
        raise InputError(
            f"{store.shown} holds no finished trial of this grid: nothing to draw. Give the flags "
            "that it was run with"
        )

    from bench.report.build import build_report

    page, files = build_report(
        console, grid.name, results, command,
        resolution=wanted, question=grid.question, store=store,
    )  # fmt: skip
    view = "" if arguments.figures_only else _attach(console, store, grid, page, files)
    print_labelled(console, "\nbrowse", f"{store.browse(view)}")
    return EXIT_COMPLETE if results.complete else EXIT_UNFINISHED


def _attach(console: Console, store: Store, grid: Grid, page: Page, files: Sequence[Path]) -> str:
    """Puts the report into the store; returns the view of it that shows the results."""
    from bench.report.upload import attach
    from bench.store.names import STORE_ERRORS
    from bench.store.sqlite import explain
    from bench.store.views import MEANS_VIEW

    try:
        attach(store, grid.trials, page, files)
    except STORE_ERRORS as error:  # it is read-only, or away: all is written beside it
        print_labelled(
            console, "\nunattached", f"{store.shown} did not take the report: {explain(error)}"
        )
        return ""
    return MEANS_VIEW


def perform(argv: Sequence[str], console: Console, command: str) -> Results | None:
    """Does what is left of a grid and returns what the store then holds, or None if only asked.

    Arguments:
        argv: The arguments of `bench.run`.
        console: Where to show the progress.
        command: The command that a person typed.

    Raises:
        InputError: An argument is not what it should be.
    """
    return _perform(_parse(argv), console, command)[2]


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
    """Makes the grid and opens its store, and carries it out."""
    given = {key: getattr(arguments, key.replace("-", "_")) for key in SETTINGS}
    flags = {key: text for key, text in given.items() if text is not None}
    grid = make_grid(flags, arguments.experiment, arguments.name)

    from bench.store.address import tracking_uri
    from bench.store.runs import Store

    store = Store(tracking_uri(arguments.tracking_uri), grid.name)
    with store_errors_as_one_line(store):
        if arguments.figures_only:
            return _read(store, _tuned(console, grid, store))
        if arguments.profile and arguments.executor != "serial":
            raise InputError("--profile traces this process: leave --executor out")
        workers, device, session = choose_executor(arguments)
        with workers:
            return _carry_out(arguments, console, command, grid, store, workers, device, session)


def _carry_out(
    arguments: argparse.Namespace,
    console: Console,
    command: str,
    grid: Grid,
    store: Store,
    workers: JobExecutor,
    device: str,
    session: str,
) -> tuple[Grid, Store, Results | None]:
    """Runs what the store does not hold, and reads the grid back, unless only asked about it."""
    from bench.store.views import views
    from flowvae.data import data_dir, downloads, load_data
    from flowvae.nets import check_bodies

    _check_possible(grid, device, keep=arguments.keep_weights == "yes")
    folder = data_dir(arguments.data_dir)
    if arguments.dry_run and (told := downloads(grid.trials[0].dataset, folder)):
        print_labelled(console, "data", told)
        trials = count(len(grid.trials), "trial")
        print_labelled(console, "plan", f"{trials}; which are complete is known by the data alone")
        return grid, store, None
    data = load_data(grid.trials[0].dataset, folder)
    store.data_hash = data.hash
    for net, latent in dict.fromkeys((trial.net, trial.latent) for trial in grid.trials):
        check_bodies(net, data.shape, latent)  # what cannot be, before anything is trained
    place = _place(arguments, store, data, workers, device, session)
    if grid.rates and not len(data.valid):
        raise InputError(f"--tune-lr needs validation images: {data.describe()}")
    runs = not (arguments.profile or arguments.dry_run)
    if runs:
        _tidy(console, store)
    plan = Plan.of(grid, place)
    print_summary(console, plan, data.describe(), place, workers.describe())
    if arguments.profile:
        _profile(console, plan, data, place)
        return grid, store, None
    if arguments.dry_run:
        print_plan(console, plan, slots=workers.slots)
        return grid, store, None
    note = f"{grid.question}\n\n{data.describe()}; K = {grid.evaluation.samples}."
    note += f"\n\n```\n{command}\n```"
    if plan.tuning or plan.jobs:
        with writing(RESULTS_FOLDER / grid.name):
            (RESULTS_FOLDER / grid.name).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=RESULTS_FOLDER / grid.name).close()
        store.check_writable()
        store.describe(note, _facts(grid, store, command))
        store.tag(views(grid.trials))
        workers.check(store, data, place.data_dir)
    _work(console, plan.tuning, workers, store, debug=arguments.debug)
    grid = _tuned(console, grid, store)
    jobs = place.jobs(grid.trials, grid.evaluation) if plan.tuning else plan.jobs
    _work(console, jobs, workers, store, debug=arguments.debug)
    return _read(store, grid)


def _facts(grid: Grid, store: Store, command: str) -> dict[str, str]:
    """Returns what a report of the whole experiment needs that no run of it tells."""
    arms = [trial.arm for trial in grid.trials]
    before = json.loads(store.facts().get("priors", "[]"))
    priors = json.dumps(list(dict.fromkeys([*arms, *before])))
    evaluation = json.dumps(asdict(grid.evaluation))
    return {
        "question": grid.question, "command": command, "priors": priors, "evaluation": evaluation,
    }  # fmt: skip


def _place(
    arguments: argparse.Namespace,
    store: Store,
    data: Dataset,
    workers: JobExecutor,
    device: str,
    session: str,
) -> Placement:
    """Returns where and how trials are run."""
    from flowvae.data import data_dir

    stack, abroad = arguments.stack, arguments.executor == "dask"
    return Placement(
        store=store,
        data=data,
        data_dir=data_dir(arguments.data_dir) if arguments.data_dir or not abroad else None,
        device=device,
        stack=None if stack == "auto" else read_flag("stack", stack, Count),
        keep_weights=arguments.keep_weights == "yes",
        force=arguments.force,
        every=read_flag("checkpoint-every", arguments.checkpoint_every, Positive, "s"),
        session=session,
        abroad=abroad,
        slots=workers.slots,
        shared=workers.shared,
    )


def _tidy(console: Console, store: Store) -> None:
    """Sends what waits for the store, and closes what dead processes left open in it."""
    _send(console, store)
    if lost := store.bury():
        number = count(len(lost), "run")
        print_labelled(
            console, "closed", f"{number} that a process left open when it died: {', '.join(lost)}"
        )


def _send(console: Console, store: Store) -> None:
    from bench.store.spool import letters, send

    if letters(store):
        sent, kept = send(store)
        if sent:
            print_labelled(
                console, "sent", f"{count(sent, 'run')} that the store did not take before"
            )
        for why in kept:
            print_labelled(console, "unsent", why)


def _read(store: Store, grid: Grid) -> tuple[Grid, Store, Results]:
    """Reads back what the store holds of a grid."""
    from bench.results.read import read_results

    return grid, store, read_results(store, grid.trials, grid.evaluation)


def _tuned(console: Console, grid: Grid, store: Store) -> Grid:
    """Returns the grid with the learning rates that its tuning chose, and tells them."""
    if not grid.rates:
        return grid
    from bench.grid.tuning import tuned
    from bench.report.tuning import conclude_tuning
    from bench.results.tuning import read_tuning

    found = read_tuning(store, grid)
    if (found["status"] != "missing").any():
        conclude_tuning(console, grid.name, found)
    return tuned(grid, found)


def _work(
    console: Console, jobs: Sequence[Job], workers: JobExecutor, store: Store, *, debug: bool
) -> None:
    if not jobs:
        return
    from bench.execution.progress import Display
    from bench.execution.scheduler import run_jobs

    with Display(console, sum(len(job.trials) for job in jobs), debug=debug) as display:
        for job, outcomes in run_jobs(jobs, workers, display.report, display.waits):
            display.finished(job, outcomes)
    _send(console, store)


def _profile(console: Console, plan: Plan, data: Dataset, place: Placement) -> None:
    """Profiles the first stack of the plan; of the grid, where there is none left to train."""
    from bench.execution.profiling import profile, show

    grid = plan.grid
    planned = (job.trials for job in (*plan.tuning, *plan.jobs) if job.run_id is None)
    trials = next(planned, None) or stacks(grid.trials, place.most)[0]
    print_labelled(console, "profile", f"{trials[0].name}, the first; nothing is recorded\n")
    folder = RESULTS_FOLDER / grid.name / "profile"  # no spinner: its thread would share the CPU
    show(console, profile(trials, data, grid.evaluation, device=place.device, folder=folder))


if __name__ == "__main__":
    sys.exit(main())
