"""Compares priors: `python -m bench.run --priors gauss,maf`.

Plans the grid, runs what MLflow does not hold yet, and reads everything back from MLflow into a
table, figures and files under `results/local/NAME/`. Where learning rates are to be chosen first
(`--tune-lr`), that is a stage before it, by the same means: see `bench.tuning`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowvae.errors import InputError
from flowvae.options import Count, Positive, read

from .command import COMPLETE, RESULTS, UNFINISHED, Parser, guarded, terminal
from .grid import SETTINGS, Grid, UnfinishedError, experiments, make_grid, question, stacks

if TYPE_CHECKING:
    from rich.console import Console

    from flowvae.data import Dataset
    from flowvae.registry import Registry
    from flowvae.trial import Evaluation, Trial

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
    try:
        grid, store, results = _perform(arguments, console, command)
    except UnfinishedError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNFINISHED
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
    from flowvae.nets import check_bodies

    from .launch import choose_device
    from .tracking import Store, tracking_uri

    device = choose_device(arguments.device)
    store = Store(tracking_uri(arguments.tracking_uri), grid.name)
    stack, keep = _stack(arguments.stack, device), arguments.keep_weights == "yes"
    if arguments.figures_only:
        return _read(console, store, _tuned(console, grid, store))
    _check_possible(grid, device, keep=keep)
    folder = data_dir(arguments.data_dir)
    data = load_data(grid.trials[0].dataset, folder)
    store.data_hash = data.hash
    for net, latent in dict.fromkeys((trial.net, trial.latent) for trial in grid.trials):
        check_bodies(net, data.shape, latent)  # what cannot be, before anything is trained
    place = _Place(store, data, folder, device, stack, keep, arguments.force)
    if grid.rates and not len(data.valid):
        raise InputError(f"--tune-lr needs validation images: {data.describe()}")
    plan = _Plan.of(grid, place)
    _announce(console, plan, data.describe(), place)
    if arguments.profile:
        _profile(console, plan, data, place)
        return grid, store, None
    if arguments.dry_run:
        _print_plan(console, plan)
        return grid, store, None
    note = f"{grid.question}\n\n{data.describe()}; K = {grid.evaluation.samples}."
    note += f"\n\n```\n{command}\n```"
    if plan.tuning or plan.jobs:
        store.describe(note)
    _work(console, plan.tuning)
    grid = _tuned(console, grid, store)
    _work(console, place.jobs(grid.trials, grid.evaluation) if plan.tuning else plan.jobs)
    return _read(console, store, grid)


def _read(console: Console, store: Store, grid: Grid) -> tuple[Grid, Store, Results]:
    """Reads back what the store holds of a grid."""
    from .results import read_results

    return grid, store, read_results(store, grid.trials, grid.evaluation)


def _tuned(console: Console, grid: Grid, store: Store) -> Grid:
    """Returns the grid with the learning rates that its tuning chose, and tells them."""
    if not grid.rates:
        return grid
    from .tuning import conclude_tuning, read_tuning, tuned

    found = read_tuning(store, grid)
    if (found["status"] != "missing").any():
        conclude_tuning(console, grid.name, found)
    return tuned(grid, found)


@dataclass(frozen=True)
class _Place:
    """Where and how trials are run."""

    store: Store
    data: Dataset
    data_dir: Path
    device: str
    stack: int
    keep_weights: bool
    force: bool

    def jobs(self, trials: Sequence[Trial], evaluation: Evaluation | None) -> list[Job]:
        """Returns the jobs that the store does not hold complete; without scores for a tuning."""
        from .launch import Job

        fitted = {} if self.force else self.store.fitted(trials)
        left = [trial for trial in trials if trial.id not in fitted]
        work: list[tuple[tuple[Trial, ...], str | None]] = [
            ((trial,), run.info.run_id)
            for trial in trials
            if (run := fitted.get(trial.id))
            and evaluation is not None
            and not self.store.scored(run, evaluation)
        ]
        work += [(tuple(stack), None) for stack in stacks(left, self.stack)]
        return [
            Job(
                number=number,
                trials=trials,
                evaluation=evaluation,
                data_dir=self.data_dir,
                data_hash=self.data.hash,
                device=self.device,
                uri=self.store.uri,
                experiment=self.store.name,
                keep_weights=self.keep_weights,
                run_id=run_id,
            )
            for number, (trials, run_id) in enumerate(work)
        ]


@dataclass(frozen=True)
class _Plan:
    """What is left to do.

    Arguments:
        grid: The grid, with the learning rates that its tuning chose, if that is done.
        tries: The trials of its tuning, if any.
        tuning: What is left of it.
        jobs: What is left of the grid; nothing yet while `tuning` is not done.
    """

    grid: Grid
    tries: Sequence[Trial]
    tuning: Sequence[Job]
    jobs: Sequence[Job]

    @classmethod
    def of(cls, grid: Grid, place: _Place) -> _Plan:
        """Plans a grid."""
        tries: list[Trial] = []
        if grid.rates:
            from .tuning import read_tuning, tuned, tuning_trials

            tries = tuning_trials(grid)
            tuning = place.jobs(tries, None)
            if tuning:
                return cls(grid, tries, tuning, [])
            grid = tuned(grid, read_tuning(place.store, grid))
        return cls(grid, tries, [], place.jobs(grid.trials, grid.evaluation))


def _stack(text: str, device: str) -> int:
    if text == "auto":
        return STACK[device.partition(":")[0]]
    try:
        return read(text, Count)
    except ValueError as expected:
        raise InputError(f"bad --stack '{text}': expected auto or {expected}") from None


def resolution(text: str) -> float:
    """Reads a half-width, nats."""
    try:
        return read(text, Positive)
    except ValueError as expected:
        raise InputError(f"bad --resolution '{text}': expected {expected} (nats)") from None


def _say(console: Console, label: str, text: str) -> None:
    from rich.text import Text

    console.print(Text.assemble((f"{label:<11}", "bold"), text), soft_wrap=True)


def _announce(console: Console, plan: _Plan, data: str, place: _Place) -> None:
    from .launch import device_name

    grid = plan.grid

    def kinds(name: str) -> str:
        return ", ".join(dict.fromkeys(trial.labels[name] for trial in grid.trials))

    size = place.stack
    lines = [
        ("experiment", f"{grid.name} ({grid.source})"),
        ("question", grid.question),
        ("data", data),
        ("priors", kinds("prior")),
        ("latents", _join(grid.axis("latent"))),
        ("seeds", _join(grid.axis("seed"))),
        ("nets", kinds("net")),
        *(("recipe", line) for line in _recipes(grid)),
        (
            "score",
            f"test NLL by importance weighting, K = {grid.evaluation.samples}, "
            f"{grid.evaluation.precision}",
        ),
        (
            "device",
            f"{device_name(place.device)}" + (f", stacks of {size} seeds" if size > 1 else ""),
        ),
        *_stages(plan),
    ]
    for name, text in lines:
        if text:
            _say(console, name, text)
    console.print()


def _recipes(grid: Grid) -> list[str]:
    """Says how the trials are trained: what all share, then what differs from prior to prior."""
    arms = {trial.arm: _recipe(trial, tuned=bool(grid.rates)) for trial in grid.trials}
    first, *others = arms.values()
    shared = [name for name in first if all(other[name] == first[name] for other in others)]
    lines = [[first[name] for name in shared] + [" and ".join(grid.axis("precision"))]]
    if len(shared) < len(first):
        told = {
            arm: [text for name, text in recipe.items() if name not in shared and text]
            for arm, recipe in arms.items()
        }
        lines.append(["; ".join(f"{arm}: {', '.join(parts)}" for arm, parts in told.items())])
    return [", ".join(text for text in line if text) for line in lines]


def _recipe(trial: Trial, *, tuned: bool) -> dict[str, str]:
    """Says how a trial is trained, part by part; of what is seldom set, only what is set."""
    ended = f"patience {_count(trial.patience, 'epoch')}" if trial.patience else ""
    return {
        "epochs": _count(trial.epochs, "epoch"),
        "patience": ended,
        "batch": f"batch {trial.batch}",
        "lr": "Adam, learning rate tuned" if tuned else f"Adam {trial.lr:g}",
        "prior_lr": f"prior's own {trial.prior_lr:g}" if trial.prior_lr is not None else "",
        "schedule": "" if trial.schedule == "constant" else trial.schedule,
        "warmup": f"warm-up {_count(trial.warmup, 'epoch')}" if trial.warmup else "",
        "clip": f"gradients clipped at {trial.clip:g}" if trial.clip is not None else "",
        "select": f"weights of the {trial.select} epoch",
    }


def _stages(plan: _Plan) -> list[tuple[str, str]]:
    """Counts what is done and what is left, of a tuning and of the grid itself."""
    grid = plan.grid
    if not grid.rates:
        return [("plan", _counted(grid.trials, plan.jobs))]
    rates, seeds = _join(f"{rate:g}" for rate in grid.rates), _join(grid.tune_seeds)
    tuning = f"learning rates {rates} at {'seeds' if len(grid.tune_seeds) > 1 else 'seed'} {seeds}"
    told = _counted(grid.trials, plan.jobs)
    if plan.tuning:
        told = f"{_count(len(grid.trials), 'trial')}, when the rates are chosen"
    return [("tuning", f"{tuning}: {_counted(plan.tries, plan.tuning)}"), ("plan", told)]


def _counted(trials: Sequence[Trial], jobs: Sequence[Job]) -> str:
    fits = sum(len(job.trials) for job in jobs if job.run_id is None)
    again = sum(job.run_id is not None for job in jobs)
    done = len(trials) - fits - again
    counts = {"already complete": done, "to score anew": again, "to train": fits}
    return f"{_count(len(trials), 'trial')}: " + ", ".join(
        f"{n} {what}" for what, n in counts.items() if n
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _print_plan(console: Console, plan: _Plan) -> None:
    """Prints every trial with what is to be done about it."""
    states = {
        trial.id: "train" if job.run_id is None else "score anew"
        for job in (*plan.tuning, *plan.jobs)
        for trial in job.trials
    }

    rows = [
        (trial.id, f"{trial.name} lr {trial.lr:g}", f"{states.get(trial.id, 'complete')}, tuning")
        for trial in plan.tries
    ]
    for trial in plan.grid.trials:
        if plan.tuning:  # without its rate it has no id
            rows.append(("", trial.name, "train, when its learning rate is chosen"))
        else:
            rate = f" lr {trial.lr:g}" if plan.tries else ""
            rows.append((trial.id, f"{trial.name}{rate}", states.get(trial.id, "complete")))
    width = max(20, *(len(name) for _, name, _ in rows))
    for key, name, state in rows:
        console.print(f"{key:<12}  {name:<{width}} {state}", markup=False, soft_wrap=True)


def _work(console: Console, jobs: Sequence[Job]) -> None:
    if not jobs:
        return
    from .display import Display
    from .launch import Serial, launch

    with Display(console, sum(len(job.trials) for job in jobs)) as display:
        for job, outcomes in launch(jobs, Serial(), display.report):
            display.finished(job, outcomes)


def _profile(console: Console, plan: _Plan, data: Dataset, place: _Place) -> None:
    """Profiles the first stack of the plan; of the grid, where there is none left to train."""
    from .profiling import profile, show

    grid = plan.grid
    planned = (job.trials for job in (*plan.tuning, *plan.jobs) if job.run_id is None)
    trials = next(planned, None) or stacks(grid.trials, place.stack)[0]
    _say(console, "profile", f"{trials[0].name}, the first; nothing is recorded\n")
    folder = RESULTS / grid.name / "profile"  # no spinner: its thread would share the CPU
    show(console, profile(trials, data, grid.evaluation, device=place.device, folder=folder))


def _list(console: Console) -> None:
    """Prints all names that can be typed, with what they stand for; no data are needed."""
    from flowvae.trial import registries

    sections = {f"{known.kind}s": _entries(known) for known in registries().values()}
    sections["experiments"] = [
        (name, [question(path)]) for name, path in sorted(experiments().items())
    ]
    width = 2 + max(len(name) for entries in sections.values() for name, _ in entries)
    for title, entries in sections.items():
        _say(console, title, "")
        for name, lines in entries:
            for head, line in zip([name] + [""] * len(lines), lines, strict=False):
                console.print(f"  {head:<{width}}{line}", markup=False, soft_wrap=True)


def _entries(registry: Registry[Any]) -> list[tuple[str, list[str]]]:
    """Returns the builders, ours and those of installed packages, each with lines about it."""
    from flowvae.options import write

    found = []
    for name in dict.fromkeys([*registry, *(installed := registry.installed())]):
        mark = [] if name in registry else [f"installed: {installed[name].value}"]
        try:
            entry = registry[name]
            options = [f"{key}={write(value)}" for key, value in entry.options.items()]
        except InputError as error:  # a package's fault hides no other entry
            found.append((name, [*mark, str(error)]))
            continue
        details = [*mark, entry.source, ", ".join(options)]
        details.append(f"note: {entry.caveat}" if entry.caveat else "")
        found.append((name, [entry.summary, "; ".join(part for part in details if part)]))
    return found


if __name__ == "__main__":
    sys.exit(main())
