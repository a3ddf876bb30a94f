"""Which shared resource is full first, and at how many GPUs? A model on paper.

N GPUs that do jobs of m trials in S seconds each end J = N / S jobs a second. Of each
resource they use this share of its capacity:

    runs           m J / runs                             looked for, opened, described and closed
    curves         (m N / flush) / flushes                one call a run every `flush` seconds
    signs of life  (m N / beat) / beats                   likewise, on a store that is shared
    weights        m J size / bytes                       through the MLflow server
    events         N min(epochs / S, 1 / pace) / events   from worker to coordinator
    jobs           J / jobs                               given out by the scheduler
    workers read   (once + N each) / count                the coordinator asks how many there are
    outcomes       m J outcome                            read and shown by the coordinator

The first four have one server, and its shares add up. A share above one is a demand that is not
met: GPUs wait. Demand is taken to be even in time; what comes in bursts fills a resource earlier.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from .leases import BEAT
from .record import FLUSH
from .workers import COUNT, PACE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "GPUS",
    "REMEDIES",
    "SERVER",
    "Measured",
    "Setting",
    "draw",
    "full_at",
    "shares",
    "table",
]

GPUS = (1, 10, 100, 1000)
SERVER = "MLflow server, in all"
REMEDIES = {
    "runs": "fewer files a run in Record.measured, then more processes: `mlflow server --workers`",
    "curves": "a longer FLUSH in bench/record.py, then more server processes",
    "signs of life": "a longer BEAT with LEASE in bench/leases.py, or one tag a job, not a run",
    "weights": "`mlflow server --no-serve-artifacts` with an object store, or --keep-weights no",
    "events": "a longer PACE in bench/workers.py",
    "jobs": "larger stacks, or several commands with a part of the grid each",
    "workers read": "a longer COUNT in bench/workers.py",
    "outcomes": "several commands with a part of the grid each",
}
"""What makes room on a resource that is full."""
SERVED = ("runs", "curves", "signs of life", "weights")
FULL = 1e9
"""GPUs beyond which nobody asks."""


@dataclass(frozen=True)
class Measured:
    """What resources can do; one that was not measured is NaN, and left out.

    Arguments:
        runs: Runs that the store records, 1/s.
        flushes: Batches of curves that it takes, 1/s.
        beats: Signs of life that it takes, 1/s.
        bytes: Bytes of artifacts that its server takes, 1/s.
        size: The weights of one trial, bytes.
        events: Events that reach the coordinator, 1/s.
        jobs: Jobs that the scheduler gives and takes back, 1/s.
        once: What asking for the number of workers takes with none, s.
        each: What it takes for each worker more, s.
        outcome: What the coordinator takes for an outcome, s.
        shared: Whether the store is one of several machines.
    """

    runs: float
    flushes: float
    beats: float
    bytes: float
    size: float
    events: float
    jobs: float
    once: float
    each: float
    outcome: float
    shared: bool = True


@dataclass(frozen=True)
class Setting:
    """What the GPUs are at.

    Arguments:
        seconds: What a job takes, s.
        stack: The trials of a job.
        epochs: The epochs of a job.
    """

    seconds: float
    stack: int = 1
    epochs: int = 64


def shares(costs: Measured, setting: Setting, gpus: float) -> dict[str, float]:
    """Returns the share of its capacity that each resource has in use, the server's sum last."""
    jobs, trials = gpus / setting.seconds, setting.stack
    told = min(setting.epochs / setting.seconds, 1 / PACE)
    found = {
        "runs": trials * jobs / costs.runs,
        "curves": trials * gpus / FLUSH[costs.shared] / costs.flushes,
        "signs of life": trials * gpus / BEAT / costs.beats if costs.shared else 0.0,
        "weights": trials * jobs * costs.size / costs.bytes,
        "events": gpus * told / costs.events,
        "jobs": jobs / costs.jobs,
        "workers read": (costs.once + gpus * costs.each) / COUNT,
        "outcomes": trials * jobs * costs.outcome,
    }
    served = sum(found[name] for name in SERVED)
    known = {name: share for name, share in found.items() if share > 0}  # NaN is not
    return {**known, SERVER: served}


def full_at(costs: Measured, setting: Setting, resource: str) -> float:
    """Returns the number of GPUs at which a resource is full, by bisection; infinite if never."""
    low, high = 0.0, 1.0
    while shares(costs, setting, high).get(resource, 0.0) < 1:
        low, high = high, 2 * high
        if high > FULL:
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        below = shares(costs, setting, middle).get(resource, 0.0) < 1
        low, high = (middle, high) if below else (low, middle)
    return high


def table(
    costs: Measured, settings: Iterable[Setting], gpus: Iterable[int] = GPUS
) -> pd.DataFrame:
    """Returns a row for each setting and resource: its share by GPUs, and where it is full."""
    rows = []
    numbers = list(gpus)
    for setting in settings:
        for name in shares(costs, setting, 1):
            by = {f"share_{n}": shares(costs, setting, n).get(name, 0.0) for n in numbers}
            full = full_at(costs, setting, name)
            rows.append({"resource": name, **vars(setting), **by, "full_at": full})
    return pd.DataFrame(rows)


def draw(costs: Measured, settings: Iterable[Setting], facts: Iterable[str]) -> Figure:
    """Draws the share of capacity in use against the number of GPUs, a panel a setting.

    Arguments:
        costs: What was measured.
        settings: The jobs.
        facts: What the footer says.
    """
    import numpy as np
    import seaborn as sns
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullLocator

    from .look import CLASSES, DASHES, DOT, SOFT, panels, theme, thousands

    wanted = list(settings)
    with theme():
        figure, cells = panels(
            len(wanted), DOT.join(facts), size=(2.5, 2.5), across=2, extra=1.5,
            sharex=True, sharey=True,
        )  # fmt: skip
        gpus = np.geomspace(1, 1000, 61)
        drawn = {name for each in wanted for name in shares(costs, each, 1)}
        names = [name for name in (SERVER, *REMEDIES) if name in drawn]
        look = {
            name: ("#222222", "-", 2.2)
            if name == SERVER
            else (CLASSES[k], DASHES[0 if name in SERVED else 1], 1.3)
            for k, name in enumerate(names)
        }
        for ax, setting in zip(cells, wanted, strict=True):
            for name in shares(costs, setting, 1):
                colour, dash, width = look[name]
                used = [shares(costs, setting, n)[name] for n in gpus]
                ax.plot(gpus, used, color=colour, ls=dash, lw=width)
            ax.axhline(1, color=SOFT, lw=0.8, zorder=1)
            trials = f"{setting.stack} trial{'s' * (setting.stack > 1)}"
            ax.set_title(f"jobs of {trials}, {setting.seconds:g} s")
            ax.set(
                xscale="log",
                yscale="log",
                xlim=(1, 1000),
            )
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:,g}%"))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.grid(axis="y")
            sns.despine(ax=ax)
        cells[0].set_ylim(1e-4, None)  # which the others share
        for ax in cells[-2:]:
            ax.set_xlabel("GPUs")
        for ax in cells[::2]:
            ax.set_ylabel("share of capacity in use")
        handles = [
            Line2D([], [], color=c, ls=dash, lw=width, label=name)
            for name, (c, dash, width) in look.items()
        ]
        figure.legend(handles=handles, loc="outside right upper", handlelength=2.4)
    return figure
