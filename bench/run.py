"""Compares priors: `python -m bench.run --priors gauss,maf`.

Plans the grid, runs the trials that MLflow does not hold yet, and reads all of them back from
MLflow into a table, figures and files under `results/local/NAME/`. `--tune-lr` puts a stage before
it that chooses learning rates, and runs like it: see `bench.grid.tuning`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from bench.cli.console import make_console, print_labelled, quantity
from bench.cli.listing import print_names
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, Parser, read_flag, run_command
from bench.execution.executors.choose import add_flags, choose_executor
from bench.execution.plan import Placement, Plan
from bench.execution.plan_text import print_plan, print_summary
from bench.grid.experiment_file import experiments
from bench.grid.grid import make_grid
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
    from flowvae.data import Dataset

__all__ = ["main", "perform"]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.run",
        description="Compares priors of a variational autoencoder, trained and scored alike.",
        epilog="Lists are comma-separated; 0:5 is 0,1,2,3,4. A flag overrides the experiment's "
        "file. Exit status: 0 all trials complete, 1 some failed or diverged, 2 invalid input, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "experiment",
        nargs="?",
        help="name of an experiment, or its TOML file; default: the one named as the data set, "
        "else mnist",
    )
    group = parser.add_argument_group("what to compare, and how to train and score it")
    for flag, setting in SETTINGS.items():
        metavar = "LIST" if setting.is_list else "X"
        group.add_argument(f"--{flag}", metavar=metavar, help=setting.help)
    add = parser.add_argument_group("data, device and store").add_argument
    add("--data-dir", metavar="DIR", help="folder of data sets (default: FLOWVAE_DATA, or data)")
    add("--device", metavar="X", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--stack", metavar="N", default="auto", help="seeds trained together (default: auto)")
    add("--name", help="name in MLflow and of the results' folder (default: the experiment's)")
    add(
        "--tracking-uri", metavar="URI",
        help="MLflow store (default: MLFLOW_TRACKING_URI, or mlflow.db in this folder)",
    )  # fmt: skip
    add(
        "--checkpoint-every", metavar="S", default="60",
        help="seconds between checkpoints, so the most that a crash loses (default: 60)",
    )  # fmt: skip
    add(
        "--keep-weights", choices=("yes", "no"), default="yes",
        help="store the trained models (default: yes)",
    )  # fmt: skip
    add(
        "--resolution", metavar="NATS", default="0.1",
        help="half-width of an interval for which to estimate the seeds needed (default: 0.1)",
    )  # fmt: skip
    add_flags(parser)
    group = parser.add_argument_group("what to do")
    add = group.add_mutually_exclusive_group().add_argument
    add("--dry-run", action="store_true", help="print the plan and stop")
    add("--list", action="store_true", help="print all priors, nets, data sets and experiments")
    add("--force", action="store_true", help="run complete trials again")
    add("--figures-only", action="store_true", help="run nothing, draw again from the store")
    add(
        "--profile", action="store_true",
        help="trace some training steps and scores of the first trial, and stop",
    )  # fmt: skip
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_run, argv, resumes="--profile" not in (sys.argv if argv is None else argv))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command; a word after a list belongs to the list, unless it is an experiment's.

    Raises:
        InputError: An argument is not what it should be.
    """
    parser, known = _parser(), experiments()

    def is_experiment(word: str) -> bool:
        return word.endswith(".toml") or bool(nearest(word, known))

    arguments = parser.parse(argv, is_experiment)
    name = arguments.experiment
    if name and not is_experiment(name) and (hint := parser.hint(argv, name, is_experiment)):
        raise InputError(f"unknown experiment '{name}'{hint}")
    return arguments


def _run(argv: Sequence[str]) -> int:
    arguments, console = _parse(argv), make_console()
    if arguments.list:
        print_names(console)
        return EXIT_COMPLETE
    command = _Command(arguments, console, f"python -m bench.run {shlex.join(argv)}".strip())
    try:
        results = command.results()
    except UnfinishedError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_UNFINISHED
    return EXIT_COMPLETE if results is None else command.report(results)


def perform(argv: Sequence[str], console: Console, text: str) -> Results | None:
    """Runs the missing trials of a grid; returns all its results, or None for a dry run.

    Arguments:
        argv: The arguments of `bench.run`.
        console: Where the progress is shown.
        text: The command as the user typed it.

    Raises:
        InputError: An argument is not what it should be.
    """
    return _Command(_parse(argv), console, text).results()


class _Command:
    """One command line: its flags, grid and store, and the steps from the plan to the report.

    Arguments:
        arguments: The parsed flags.
        console: Where the plan and the progress are shown.
        text: The command as the user typed it.

    Raises:
        InputError: A flag or the experiment's file is not what it should be.
    """

    def __init__(self, arguments: argparse.Namespace, console: Console, text: str) -> None:
        from bench.store.address import tracking_uri
        from bench.store.runs import Store

        self.arguments, self.console, self.text = arguments, console, text
        self.resolution = read_flag("resolution", arguments.resolution, Positive, "nats")
        values = {flag: getattr(arguments, flag.replace("-", "_")) for flag in SETTINGS}
        flags = {flag: text for flag, text in values.items() if text is not None}
        self.grid = make_grid(flags, arguments.experiment, arguments.name)
        self.store = Store(tracking_uri(arguments.tracking_uri), self.grid.name)
        self.folder = RESULTS_FOLDER / self.grid.name

    def _print(self, label: str, text: str) -> None:
        print_labelled(self.console, label, text)

    def results(self) -> Results | None:
        """Runs the missing trials and returns all results; None if asked for a plan or profile."""
        with store_errors_as_one_line(self.store):
            if self.arguments.figures_only:
                self._take_tuned_rates()
                return self._read()
            session = uuid.uuid4().hex[:12]
            with choose_executor(self.arguments, session) as executor:
                return self._execute(executor, session)

    def _execute(self, executor: JobExecutor, session: str) -> Results | None:
        """Plans the grid and runs it on an executor."""
        arguments = self.arguments
        self._check(executor)
        if (data := self._load_data()) is None:
            return None
        placement = self._placement(data, executor, session)
        if not (arguments.profile or arguments.dry_run):
            self._clean_store()
        plan = Plan.of(self.grid, placement)
        print_summary(self.console, plan, data.describe(), placement, executor.describe())
        if arguments.profile:
            self._profile(plan, data, placement)
            return None
        if arguments.dry_run:
            print_plan(self.console, plan, slots=executor.slots)
            return None
        if plan.tuning or plan.jobs:
            self._prepare_store(data)
            executor.check(self.store, data, placement.data_dir)
        self._run_jobs(plan.tuning, executor)
        self._take_tuned_rates()
        grid = self.grid
        jobs = placement.jobs(grid.trials, grid.evaluation) if plan.tuning else plan.jobs
        self._run_jobs(jobs, executor)
        return self._read()

    def _check(self, executor: JobExecutor) -> None:
        """Refuses at once what would fail after hours of training."""
        device, trials = executor.device, self.grid.trials
        if self.arguments.profile and not executor.traces_here:
            raise InputError("--profile traces this process: leave out --executor")
        precisions = {self.grid.evaluation.precision, *(trial.precision for trial in trials)}
        if "tf32" in precisions and not device.startswith("cuda"):
            raise InputError(
                f"precision tf32 needs a CUDA device: on '{device}' take float32 or bf16"
            )
        if self.arguments.keep_weights == "no" and any(trial.base for trial in trials):
            raise InputError("post-hoc training needs the weights of its base: --keep-weights yes")

    def _load_data(self) -> Dataset | None:
        """Returns the data set; None in a dry run for which it would have to be downloaded."""
        from flowvae.data import data_dir, downloads, load_data
        from flowvae.nets import check_bodies

        trials, folder = self.grid.trials, data_dir(self.arguments.data_dir)
        if self.arguments.dry_run and (source := downloads(trials[0].dataset, folder)):
            number = quantity(len(trials), "trial")
            self._print("data", source)
            self._print("plan", f"{number}; complete ones are found once the data are here")
            return None
        data = load_data(trials[0].dataset, folder)
        self.store.data_hash = data.hash
        for net, latent in dict.fromkeys((trial.net, trial.latent) for trial in trials):
            check_bodies(net, data.shape, latent)
        if self.grid.rates and not len(data.valid):
            raise InputError(f"--tune-lr needs validation images: {data.describe()}")
        return data

    def _placement(self, data: Dataset, executor: JobExecutor, session: str) -> Placement:
        """Returns where and how trials are run."""
        from flowvae.data import data_dir

        arguments = self.arguments
        stack, folder = arguments.stack, arguments.data_dir
        return Placement(
            store=self.store,
            data=data,
            data_dir=None if executor.runs_elsewhere and not folder else data_dir(folder),
            device=executor.device,
            stack=None if stack == "auto" else read_flag("stack", stack, Count),
            keep_weights=arguments.keep_weights == "yes",
            force=arguments.force,
            every=read_flag("checkpoint-every", arguments.checkpoint_every, Positive, "s"),
            session=session,
            slots=executor.slots,
            shared=executor.shared,
        )

    def _clean_store(self) -> None:
        """Closes the runs of dead processes, and names the runs that an earlier version kept."""
        if names := self.store.close_stale_runs():
            runs = quantity(len(names), "run")
            self._print("closed", f"{runs} left open by a dead process: {', '.join(names)}")
        folder = self.folder / "unsent"
        if number := len(list(folder.glob("*/letter.json"))):
            text = (
                f"{quantity(number, 'run')} that an earlier version could not record, in {folder}"
            )
            again = "they are not read, and their trials run again: remove the folder"
            self._print("unsent", f"{text}; {again}")

    def _prepare_store(self, data: Dataset) -> None:
        """Checks that folder and store are writable; describes the experiment in the store."""
        from bench.store.views import views

        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        grid, store = self.grid, self.store
        store.check_writable()
        estimate = grid.evaluation.method.describe(grid.evaluation.samples)
        protocol = f"{data.describe()}; {estimate}."
        arms = [trial.arm for trial in grid.trials]
        before = json.loads(store.facts().get("priors", "[]"))
        facts = {
            "question": grid.question,
            "command": self.text,
            "priors": json.dumps(list(dict.fromkeys([*arms, *before]))),
            "evaluation": json.dumps(asdict(grid.evaluation)),
        }
        store.describe(f"{grid.question}\n\n{protocol}\n\n```\n{self.text}\n```", facts)
        store.tag(views(grid.trials))

    def _run_jobs(self, jobs: Sequence[Job], executor: JobExecutor) -> None:
        if not jobs:
            return
        from bench.execution.progress import Display
        from bench.execution.scheduler import run_jobs

        trials = sum(len(job.trials) for job in jobs)
        with Display(self.console, trials, debug=self.arguments.debug) as display:
            for job, outcomes in run_jobs(jobs, executor, display.report, display.waits):
                display.finished(job, outcomes)

    def _take_tuned_rates(self) -> None:
        """Gives the trials the learning rates that the grid's tuning chose, if it has one."""
        if not self.grid.rates:
            return
        from bench.grid.tuning import tuned
        from bench.report.tuning import conclude_tuning
        from bench.results.tuning import read_tuning

        frame = read_tuning(self.store, self.grid)
        if (frame["status"] != "missing").any():
            conclude_tuning(self.console, self.grid.name, frame)
        self.grid = tuned(self.grid, frame)

    def _read(self) -> Results:
        from bench.results.read import read_results

        return read_results(self.store, self.grid.trials, self.grid.evaluation)

    def _profile(self, plan: Plan, data: Dataset, placement: Placement) -> None:
        """Profiles the first stack that is to be trained; if there is none, the grid's first."""
        from bench.execution.profiling import profile, show

        planned = (job.trials for job in (*plan.tuning, *plan.jobs) if job.run_id is None)
        trials = next(planned, None) or stacks(plan.grid.trials, placement.max_stack)[0]
        self._print("profile", f"{trials[0].name}, the first trial; nothing is recorded\n")
        profiles = profile(  # without a spinner, whose thread would share the CPU
            trials, data, plan.grid.evaluation, device=placement.device,
            folder=self.folder / "profile",
        )  # fmt: skip
        show(self.console, profiles)

    def report(self, results: Results) -> int:
        """Draws and prints the report, and attaches it to the store; returns the exit status."""
        if (results.frame["status"] == "missing").all():
            if not self.arguments.figures_only:
                return EXIT_UNFINISHED  # each trial's reason was printed
            raise InputError(
                f"{self.store.shown} holds no finished trial of this grid: nothing to draw. Give "
                "the flags that it was run with"
            )
        from bench.report.build import build_report
        from bench.report.page import About

        about = About(self.grid.name, self.text, self.grid.question, self.store)
        page, files = build_report(self.console, results.analyse(self.resolution), about)
        view = "" if self.arguments.figures_only else self._attach(page, files)
        self._print("\nbrowse", self.store.browse(view))
        return EXIT_COMPLETE if results.complete else EXIT_UNFINISHED

    def _attach(self, page: Page, files: Sequence[Path]) -> str:
        """Attaches the report to the store; returns the store's view that shows the results."""
        from bench.report.upload import upload_report
        from bench.store.retry import STORE_ERRORS
        from bench.store.sqlite import explain
        from bench.store.views import MEANS_VIEW

        try:
            upload_report(self.store, self.grid.trials, page, files)
        except STORE_ERRORS as error:  # it is read-only or away; the local files are complete
            reason = f"{self.store.shown} did not take the report: {explain(error)}"
            self._print("\nunattached", reason)
            return ""
        return MEANS_VIEW


if __name__ == "__main__":
    sys.exit(main())
