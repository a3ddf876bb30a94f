"""What a person is told before a grid runs: what it asks, of what, how, and what is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.cli.console import count, duration, join_words, print_labelled
from bench.grid.grid import Grid
from flowvae.trial import Trial, field_info

if TYPE_CHECKING:
    from rich.console import Console

    from bench.execution.plan import Placement, Plan
    from bench.grid.job import Job

__all__ = ["print_plan", "print_summary"]


INFO = field_info(Trial)


def print_summary(console: Console, plan: Plan, data: str, place: Placement, where: str) -> None:
    """Prints what will be run, on what, and how.

    Arguments:
        console: Where to print.
        plan: What is left to do.
        data: The data set in words.
        place: Where and how it is run.
        where: The workers, in words.
    """
    grid = plan.grid

    def kinds(name: str) -> str:
        return ", ".join(dict.fromkeys(trial.labels[name] for trial in grid.trials))

    size = place.max_stack
    lines = [
        ("experiment", f"{grid.name} ({grid.source})"),
        ("question", grid.question),
        ("data", data),
        ("priors", kinds("prior")),
        ("latents", join_words(grid.axis("latent"))),
        ("seeds", join_words(grid.axis("seed"))),
        ("nets", kinds("net")),
        *(("recipe", line) for line in _recipes(grid)),
        (
            "score",
            f"test NLL by importance weighting, K = {grid.evaluation.samples}, "
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
    """Returns how a trial is trained, in words, by field; no words for defaults seldom changed."""
    values = {name: getattr(trial, name) for name in INFO if INFO[name].role == "recipe"}
    words = {
        name: INFO[name].describe(value) if INFO[name].is_stated(value) else ""
        for name, value in values.items()
    }
    return words | ({"lr": "Adam, learning rate tuned"} if tuned else {})


def _stages(plan: Plan) -> list[tuple[str, str]]:
    """Counts what is done and what is left, of a tuning and of the grid itself."""
    grid = plan.grid
    if not grid.rates:
        return [("plan", _counted(grid.trials, plan.jobs))]
    rates, seeds = join_words(f"{rate:g}" for rate in grid.rates), join_words(grid.tune_seeds)
    tuning = f"learning rates {rates} at {'seeds' if len(grid.tune_seeds) > 1 else 'seed'} {seeds}"
    told = _counted(grid.trials, plan.jobs)
    if plan.tuning:
        told = f"{count(len(grid.trials), 'trial')}, when the rates are chosen"
    return [("tuning", f"{tuning}: {_counted(plan.tries, plan.tuning)}"), ("plan", told)]


def _counted(trials: Sequence[Trial], jobs: Sequence[Job]) -> str:
    begun = {trial for job in jobs if job.resumed for trial in job.trials}
    fits = {trial for job in jobs if job.run_id is None for trial in job.trials} - begun
    again = {trial for job in jobs if job.run_id is not None for trial in job.trials} - begun
    counts = {
        "already complete": len(trials) - len(fits | begun | again),
        "to score anew": len(again),
        "to go on with": len(begun),
        "to train": len(fits),
    }
    return f"{count(len(trials), 'trial')}: " + ", ".join(
        f"{n} {what}" for what, n in counts.items() if n
    )


def print_plan(console: Console, plan: Plan, *, slots: int = 1) -> None:
    """Prints every trial with what is to be done about it.

    Arguments:
        console: Where to print.
        plan: What is left to do.
        slots: How many jobs run at once; for several, the jobs are printed in their order too.
    """
    states = {
        trial.id: ("go on" if job.resumed else "train") if job.run_id is None else "score anew"
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
    if slots > 1:
        _print_jobs(console, [*plan.tuning, *plan.jobs], slots)


def _print_jobs(console: Console, jobs: Sequence[Job], slots: int) -> None:
    """Prints the jobs in the order in which they start, and what they should take."""
    console.print()
    print_labelled(
        console, "jobs", f"{count(len(jobs), 'job')}, {slots} at once, the longest first"
    )
    width = max((len(job.name) for job in jobs), default=0)
    for job in jobs:
        told = f"{job.name:<{width}}  {count(len(job.trials), 'trial')}"
        told += f", about {duration(job.seconds)}" if job.seconds is not None else ""
        console.print(f"  {told}", markup=False, soft_wrap=True)
    seconds = [job.seconds for job in jobs if job.seconds is not None]
    if seconds and len(seconds) == len(jobs):
        told = f"about {duration(sum(seconds))}, the longest job {duration(max(seconds))}"
        print_labelled(console, "work", f"{told}, going by earlier runs")
