"""Prints the plan of a grid before it runs: question, data, recipe, and the remaining trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.cli.console import duration, join_words, print_labelled, quantity
from bench.grid.grid import Grid
from flowvae.trial import Trial, field_info

if TYPE_CHECKING:
    from rich.console import Console

    from bench.execution.plan import Placement, Plan
    from bench.grid.job import Job

__all__ = ["print_plan", "print_summary"]


INFO = field_info(Trial)


def print_summary(console: Console, plan: Plan, data: str, place: Placement, where: str) -> None:
    """Prints the experiment, its data, recipe and device, and how many trials remain.

    Arguments:
        console: Where to print.
        plan: The jobs to run.
        data: The data set in words.
        place: Where and how the jobs run.
        where: The executor in words.
    """
    grid = plan.grid

    def labels(name: str) -> str:
        return ", ".join(dict.fromkeys(trial.labels[name] for trial in grid.trials))

    size = place.max_stack
    lines = [
        ("experiment", f"{grid.name} ({grid.source})"),
        ("question", grid.question),
        ("data", data),
        ("priors", labels("prior")),
        ("latents", join_words(grid.axis("latent"))),
        ("seeds", join_words(grid.axis("seed"))),
        ("nets", labels("net")),
        *(("recipe", line) for line in _recipes(grid)),
        (
            "score",
            f"test NLL by {grid.evaluation.method.describe(grid.evaluation.samples)}, "
            f"{grid.evaluation.precision}",
        ),
        ("device", where + (f", stacks of up to {size} seeds" if size > 1 else "")),
        *_stages(plan),
    ]
    for name, text in lines:
        if text:
            print_labelled(console, name, text)
    console.print()


def _recipes(grid: Grid) -> list[str]:
    """Returns how the trials are trained: first what all share, then what differs by prior."""
    arms = {trial.arm: _recipe(trial, tuned=bool(grid.rates)) for trial in grid.trials}
    first, *others = arms.values()
    shared = [name for name in first if all(other[name] == first[name] for other in others)]
    lines = [[first[name] for name in shared] + [" and ".join(grid.axis("precision"))]]
    if len(shared) < len(first):
        own = {
            arm: [text for name, text in recipe.items() if name not in shared and text]
            for arm, recipe in arms.items()
        }
        lines.append(["; ".join(f"{arm}: {', '.join(parts)}" for arm, parts in own.items())])
    return [", ".join(text for text in line if text) for line in lines]


def _recipe(trial: Trial, *, tuned: bool) -> dict[str, str]:
    """Returns how a trial is trained, in words, by field; no words for defaults seldom changed."""
    values = {name: getattr(trial, name) for name in INFO if INFO[name].role == "recipe"}
    words = {
        name: INFO[name].describe(value) if INFO[name].is_stated(value) else ""
        for name, value in values.items()
    }
    return words | ({"lr": "Adam, learning rate tuned"} if tuned else {})


def _stages(plan: Plan) -> list[tuple[str, str]]:
    """Returns the numbers of complete and remaining trials, of a tuning and of the grid."""
    grid = plan.grid
    if not grid.rates:
        return [("plan", _progress(grid.trials, plan.jobs))]
    rates, seeds = join_words(f"{rate:g}" for rate in grid.rates), join_words(grid.tune_seeds)
    tuning = f"learning rates {rates} at {'seeds' if len(grid.tune_seeds) > 1 else 'seed'} {seeds}"
    text = _progress(grid.trials, plan.jobs)
    if plan.tuning:
        text = f"{quantity(len(grid.trials), 'trial')}, once the rates are chosen"
    return [("tuning", f"{tuning}; {_progress(plan.tries, plan.tuning)}"), ("plan", text)]


def _progress(trials: Sequence[Trial], jobs: Sequence[Job]) -> str:
    resumed = {trial for job in jobs if job.resumed for trial in job.trials}
    new = {trial for job in jobs if job.run_id is None for trial in job.trials} - resumed
    scored = {trial for job in jobs if job.run_id is not None for trial in job.trials} - resumed
    numbers = {
        "already complete": len(trials) - len(new | resumed | scored),
        "to score again": len(scored),
        "to resume": len(resumed),
        "to train": len(new),
    }
    return f"{quantity(len(trials), 'trial')}: " + ", ".join(
        f"{number} {state}" for state, number in numbers.items() if number
    )


def print_plan(console: Console, plan: Plan, *, slots: int = 1) -> None:
    """Prints every trial with its id and what will be done with it.

    Arguments:
        console: Where to print.
        plan: The jobs to run.
        slots: The number of jobs that run at once; if several, the jobs are printed, too.
    """
    states = {
        trial.id: ("resume" if job.resumed else "train") if job.run_id is None else "score again"
        for job in (*plan.tuning, *plan.jobs)
        for trial in job.trials
    }

    rows = [
        (trial.id, f"{trial.name} lr {trial.lr:g}", f"{states.get(trial.id, 'complete')}, tuning")
        for trial in plan.tries
    ]
    for trial in plan.grid.trials:
        if plan.tuning:  # a trial without its rate has no id
            rows.append(("", trial.name, "train, once its learning rate is chosen"))
        else:
            rate = f" lr {trial.lr:g}" if plan.tries else ""
            rows.append((trial.id, f"{trial.name}{rate}", states.get(trial.id, "complete")))
    width = max(20, *(len(name) for _, name, _ in rows))
    for key, name, state in rows:
        console.print(f"{key:<12}  {name:<{width}} {state}", markup=False, soft_wrap=True)
    if slots > 1:
        _print_jobs(console, [*plan.tuning, *plan.jobs], slots)


def _print_jobs(console: Console, jobs: Sequence[Job], slots: int) -> None:
    """Prints the jobs in the order in which they start, with estimates of their durations."""
    console.print()
    print_labelled(
        console, "jobs", f"{quantity(len(jobs), 'job')}, {slots} at a time, longest first"
    )
    width = max((len(job.name) for job in jobs), default=0)
    for job in jobs:
        text = f"{job.name:<{width}}  {quantity(len(job.trials), 'trial')}"
        text += f", about {duration(job.seconds)}" if job.seconds is not None else ""
        console.print(f"  {text}", markup=False, soft_wrap=True)
    seconds = [job.seconds for job in jobs if job.seconds is not None]
    if seconds and len(seconds) == len(jobs):
        text = f"about {duration(sum(seconds))} in all, {duration(max(seconds))} the longest"
        print_labelled(console, "work", f"{text}, estimated from earlier runs")
