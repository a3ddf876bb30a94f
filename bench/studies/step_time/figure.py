"""Table and figure of the throughput of our step by latent size, batch and stack."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.table import Table

from bench.benchmarks.interleave import FLOOR
from bench.figures.style import (
    GREY,
    NoDataError,
    Style,
    format_latent_axis,
    format_speed_axis,
    join_facts,
    make_panels,
    mark_diverged,
    styles,
    theme,
)
from bench.studies.step_time.measurement import CENTRE_SETTING, MEASURED

__all__ = ["draw_step_times", "step_time_table"]


AXIS_LABELS = {"latent": "latent size D", "batch": "batch", "stack": "stack, models"}
BOUND_MARKERS = {"launches": "^", "memory": "s", "arithmetic": "o"}
FLOOR_DASH = (0, (4, 1.6))


def step_time_table(table: pd.DataFrame) -> Table:
    """Returns the table of the terminal, a row a point."""
    columns = Table(title="Our step", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("prior", "D", "batch", "stack", "images/s", "per model", "ms a step"):
        columns.add_column(name, justify="left" if name == "prior" else "right", no_wrap=True)
    for name in ("products", "Adam", "launches", "of floor"):
        columns.add_column(name, justify="right", no_wrap=True)
    columns.add_column("bound by", no_wrap=True)
    for _, row in table.iterrows():
        setting = [row["prior"].replace("[", "\\["), *(str(row[axis]) for axis in CENTRE_SETTING)]
        if row["status"] != MEASURED:
            columns.add_row(*setting, *[""] * 7, row["status"])
            continue
        parts = ("step_seconds", "products_seconds", "adam_seconds", "launch_seconds")
        columns.add_row(
            *setting,
            f"{row['images_per_second']:,.0f}",
            f"{row['images_per_second_per_model']:,.0f}",
            *(f"{1e3 * row[part]:.3g}" for part in parts),
            f"{row['floor_share']:.0%}",
            row["bound"],
        )
    return columns


@theme()
def draw_step_times(table: pd.DataFrame) -> Figure:
    """Draws images a second by latent size, batch and stack, a line a prior, the floor dashed.

    The shape of a marker shows what bounds the step; a cross at the top marks a point that could
    not be measured.

    Arguments:
        table: The table that the command writes.
    """
    measured = table[table["status"] == MEASURED]
    if not len(measured):
        raise NoDataError("Expected at least one measured point; got none.")
    look = styles(list(dict.fromkeys(table["prior"])))
    centre = ", ".join(f"{axis} {value}" for axis, value in CENTRE_SETTING.items())
    first = measured.iloc[0]
    note = join_facts(
        f"one axis varied at a time around {centre}",
        f"random images, net {first['net']}, {first['precision']}",
        f"median of {measured['rounds'].min()} rounds or more, step and floor in turns",
        "images of all models of a stack count",
        "floor: dense matrix products and Adam", str(first["device"]),
    )  # fmt: skip
    axes = [axis for axis in AXIS_LABELS if _vary_axis(table, axis)[axis].nunique() > 1] or [
        "latent"
    ]
    figure, cells = make_panels(len(axes), note, size=(2.3, 2.5), extra=1.15, sharey=True)
    for ax, axis in zip(cells, axes, strict=True):
        _draw_panel(ax, _vary_axis(table, axis), axis, look)
    cells[0].set_ylabel("training images per second")  # the panels share the axis
    format_speed_axis(cells[0].yaxis)
    handles = [Line2D([], [], color=s.colour, label=p) for p, s in look.items()]
    handles.append(Line2D([], [], color=GREY, ls=FLOOR_DASH, lw=1.0, label=FLOOR))
    handles += [
        Line2D([], [], color=GREY, ls="", marker=mark, ms=4.5, label=f"bound by {by}")
        for by, mark in BOUND_MARKERS.items()
        if (measured["bound"] == by).any()
    ]
    lost = set(table["status"]) - {MEASURED}
    if lost:
        cross = Line2D([], [], color=GREY, ls="", marker="x", ms=5, mew=1.5)
        cross.set_label(", ".join(sorted(lost)))
        handles.append(cross)
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.2)
    return figure


def _vary_axis(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Returns the points that vary only `axis`, in its order."""
    rest = [other for other in CENTRE_SETTING if other != axis]
    at_centre = (table[rest] == [CENTRE_SETTING[other] for other in rest]).all(axis=1)
    return table[at_centre].sort_values(axis)


def _draw_panel(ax: Axes, rows: pd.DataFrame, axis: str, look: Mapping[str, Style]) -> None:
    for prior, style in look.items():
        points = rows[rows["prior"] == prior]
        done = points["status"] == MEASURED
        measured, lost = points[done], points[~done]
        ax.plot(measured[axis], measured["images_per_second"], color=style.colour, zorder=3)
        ax.plot(
            measured[axis], measured["floor_images_per_second"], color=style.colour, lw=1.0,
            ls=FLOOR_DASH, zorder=2,
        )  # fmt: skip
        for by, mark in BOUND_MARKERS.items():
            bound = measured[measured["bound"] == by]
            ax.plot(
                bound[axis], bound["images_per_second"], mark, color=style.colour, ms=5,
                mec="white", mew=0.6, zorder=4,
            )  # fmt: skip
        mark_diverged(ax, lost[axis], [style.colour] * len(lost))
    format_latent_axis(ax, sorted(rows[axis].unique()))
    ax.set_xlabel(AXIS_LABELS[axis])
    ax.grid(axis="y")
    sns.despine(ax=ax)
