"""The throughput of our step over latent size, batch and stack: as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich import box
from rich.table import Table

from bench.benchmarks.interleave import FLOOR
from bench.figures.style import (
    GREY,
    NoDataError,
    Style,
    format_latent_axis,
    make_panels,
    mark_diverged,
    styles,
    theme,
)
from bench.statistics.captions import DOT
from bench.statistics.formatting import thousands
from bench.studies.step_time.measurement import CENTRE, MEASURED

__all__ = ["draw_sweep", "step_time_table"]


AXES = {"latent": "latent size D", "batch": "batch", "stack": "stack, models"}
MARKS = {"launches": "^", "memory": "s", "arithmetic": "o"}
DASHED = (0, (4, 1.6))


def step_time_table(found: pd.DataFrame) -> Table:
    """Returns what was measured, a row a point."""
    shown = Table(title="Our step", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("prior", "D", "batch", "stack", "images/s", "per model", "ms a step"):
        shown.add_column(name, justify="left" if name == "prior" else "right", no_wrap=True)
    for name in ("products", "Adam", "launches", "of floor"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("bound by", no_wrap=True)
    for _, row in found.iterrows():
        where = [row["prior"].replace("[", "\\["), *(str(row[axis]) for axis in CENTRE)]
        if row["status"] != MEASURED:
            shown.add_row(*where, *[""] * 7, row["status"])
            continue
        parts = ("step_seconds", "products_seconds", "adam_seconds", "launch_seconds")
        shown.add_row(
            *where,
            f"{row['images_per_second']:,.0f}",
            f"{row['images_per_second_per_model']:,.0f}",
            *(f"{1e3 * row[part]:.3g}" for part in parts),
            f"{row['floor_share']:.0%}",
            row["bound"],
        )
    return shown


@theme()
def draw_sweep(found: pd.DataFrame) -> Figure:
    """Draw images a second by latent size, batch and stack, a line a prior, the floor dashed.

    A marker's shape says by what the step is bound; a cross at the top marks a point that was
    lost.

    Arguments:
        found: The table that the command writes.
    """
    measured = found[found["status"] == MEASURED]
    if not len(measured):
        raise NoDataError("Expected at least one point that was measured; got none.")
    look = styles(list(dict.fromkeys(found["prior"])))
    centre = ", ".join(f"{axis} {value}" for axis, value in CENTRE.items())
    first = measured.iloc[0]
    note = DOT.join([
        f"one axis varied at a time around {centre}",
        f"random images, net {first['net']}, {first['precision']}",
        f"median of {measured['rounds'].min()} rounds or more, step and floor in turns",
        "images of all models of a stack count",
        "floor: dense matrix products and Adam", str(first["device"]),
    ])  # fmt: skip
    axes = [axis for axis in AXES if _along(found, axis)[axis].nunique() > 1] or ["latent"]
    figure, cells = make_panels(len(axes), note, size=(2.3, 2.5), extra=1.15, sharey=True)
    for ax, axis in zip(cells, axes, strict=True):
        _sweep_panel(ax, _along(found, axis), axis, look)
    _speed_axis(cells[0])  # which the others share
    handles = [Line2D([], [], color=s.colour, label=p) for p, s in look.items()]
    handles.append(Line2D([], [], color=GREY, ls=DASHED, lw=1.0, label=FLOOR))
    handles += [
        Line2D([], [], color=GREY, ls="", marker=mark, ms=4.5, label=f"bound by {by}")
        for by, mark in MARKS.items()
        if (measured["bound"] == by).any()
    ]
    lost = set(found["status"]) - {MEASURED}
    if lost:
        cross = Line2D([], [], color=GREY, ls="", marker="x", ms=5, mew=1.5)
        cross.set_label(", ".join(sorted(lost)))
        handles.append(cross)
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.2)
    return figure


def _along(found: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Returns the points that vary `axis` alone, in its order."""
    rest = [other for other in CENTRE if other != axis]
    held = (found[rest] == [CENTRE[other] for other in rest]).all(axis=1)
    return found[held].sort_values(axis)


def _sweep_panel(ax: Axes, rows: pd.DataFrame, axis: str, look: Mapping[str, Style]) -> None:
    for prior, style in look.items():
        each = rows[rows["prior"] == prior]
        mine, lost = (each[(each["status"] == MEASURED) == kept] for kept in (True, False))
        ax.plot(mine[axis], mine["images_per_second"], color=style.colour, zorder=3)
        ax.plot(
            mine[axis], mine["floor_images_per_second"], color=style.colour, lw=1.0,
            ls=DASHED, zorder=2,
        )  # fmt: skip
        for by, mark in MARKS.items():
            those = mine[mine["bound"] == by]
            ax.plot(
                those[axis], those["images_per_second"], mark, color=style.colour, ms=5,
                mec="white", mew=0.6, zorder=4,
            )  # fmt: skip
        mark_diverged(ax, lost[axis], [style.colour] * len(lost))
    format_latent_axis(ax, sorted(rows[axis].unique()))
    ax.set_xlabel(AXES[axis])
    ax.grid(axis="y")
    sns.despine(ax=ax)


def _speed_axis(ax: Axes) -> None:
    """Makes the y axis logarithmic: in less than a decade there are more ticks."""
    ax.set_ylabel("training images per second")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ticks = (1, 2, 5) if high > 10 * low else (1, 2, 3, 5, 7)
    ax.yaxis.set_major_locator(LogLocator(subs=ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    ax.yaxis.set_minor_locator(NullLocator())
