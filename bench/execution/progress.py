"""Shows the progress of a grid: bars on a terminal, plain lines elsewhere.

A line is printed for each trial that ends; off a terminal, also one for the running jobs if there
was none for a while.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.grid.job import Event, Job, Notice, Outcome

__all__ = ["Display"]


MAX_QUIET_SECONDS = 30.0
"""Off a terminal, time without a line after which one names the running jobs."""
UNITS = {"fit": "epochs", "evaluate": "test images"}
"""The unit of an event's count, by phase."""


class Display:
    """Shows the progress of a grid; a context manager.

    Arguments:
        console: Where the progress is shown.
        trials: The number of trials to run.
        debug: Whether the traceback of a failure is shown.
    """

    def __init__(self, console: Console, trials: int, *, debug: bool = False) -> None:
        self.console = console
        self.debug = debug
        self.warnings = warnings.catch_warnings()
        self.live = console.is_terminal
        self.counts: Counter[str] = Counter()
        self.total = trials
        self.progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not self.live,
        )
        self.grid = self.progress.add_task("grid", total=trials, note="")
        self.jobs: dict[tuple[int, str], tuple[str, TaskID]] = {}
        self.ended: set[tuple[int, str]] = set()
        self.running: dict[tuple[int, str], str] = {}
        self.printed_at = time.monotonic()
        self.lock = threading.Lock()  # workers report from their own threads

    def __enter__(self) -> Self:
        self.warnings.__enter__()
        warnings.showwarning = self._warn
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.progress.stop()
        self.warnings.__exit__(kind, error, tb)

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Shows a warning as a line, above the bars."""
        self._notice(f"{message} ({filename}:{lineno})" if self.debug else f"{message}")

    def _notice(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)

    def waits(self, jobs: list[Job]) -> None:
        """Prints the jobs that another process runs, and that this one waits for."""
        names = ", ".join(job.name for job in jobs)
        self.console.print(
            f"waiting for trials that another process is running: {escape(names)}", soft_wrap=True
        )

    def report(self, event: Event | Notice) -> None:
        """Moves the bar of the event's job, one bar per phase, or prints a notice."""
        if isinstance(event, Notice):
            self._notice(event.text)
            return
        with self.lock:
            self._move(event)

    def _move(self, event: Event) -> None:
        key = event.number, event.name
        if key in self.ended:
            return
        phase, bar = self.jobs.get(key, ("", self.grid))
        if phase != event.phase:
            if phase:
                self.progress.remove_task(bar)
            bar = self.progress.add_task(
                f"  {escape(event.name)} [dim]{UNITS[event.phase]}[/]", total=event.total, note=""
            )
            self.jobs[key] = (event.phase, bar)
        note = "" if event.elbo is None else f"ELBO {event.elbo:.2f}"
        self.progress.update(bar, completed=event.done, total=event.total, note=note)
        unit = UNITS[event.phase]
        self.running[key] = f"{event.name} {event.done} of {event.total} {unit} {note}".strip()
        if not self.live and time.monotonic() - self.printed_at >= MAX_QUIET_SECONDS:
            self.printed_at = time.monotonic()
            text = escape("; ".join(self.running.values()))
            self.console.print(f"[dim]running {text}[/]", highlight=False, soft_wrap=True)

    def finished(self, job: Job, outcomes: list[Outcome]) -> None:
        """Prints the outcomes of a job, and removes its bars."""
        with self.lock:
            self.ended.add((job.number, job.name))  # late events are ignored
            for key in [key for key in self.jobs if key[0] == job.number]:
                self.progress.remove_task(self.jobs.pop(key)[1])
                self.running.pop(key, None)
            self.printed_at = time.monotonic()
        for outcome in outcomes:
            self.counts[outcome.status] += 1
            done = sum(self.counts.values())
            self.console.print(
                f"[dim]{done:>{len(str(self.total))}}/{self.total}[/] {_line(outcome)}",
                highlight=False,
                soft_wrap=True,
            )
            if outcome.details and self.debug:
                self.console.print(outcome.details, markup=False, soft_wrap=True)
        bad = ", ".join(
            f"{n} {status}" for status, n in self.counts.items() if status != "complete"
        )
        note = f"[red]{bad}[/]" if bad else ""
        self.progress.update(self.grid, advance=len(outcomes), note=note)


def _line(outcome: Outcome) -> str:
    name = escape(f"{outcome.trial.name:<20}")
    if outcome.means is None:
        colour = "green" if outcome.status == "complete" else "red"
        return f"{name} [{colour}]{outcome.status}[/]: {escape(outcome.reason)}"
    means = outcome.means
    trained = f", {outcome.seconds:.1f} s training" if outcome.seconds else ", scored again"
    if "test/nll" not in means:
        return f"{name} lr {outcome.trial.lr:g}, valid ELBO {means['valid/elbo']:.2f}{trained}"
    return f"{name} test NLL {means['test/nll']:.2f}, ELBO {means['test/elbo']:.2f}{trained}"
