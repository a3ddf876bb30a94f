"""The table of results on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bench.report.columns import (
    CAVEAT,
    COSTS,
    DETAILS,
    count_seeds,
    footnotes,
    format_column,
    format_interval,
    format_number,
    heading,
    list_devices,
)
from bench.statistics import frames

__all__ = ["fit_table"]

pass
pass


SHORTEST = 12
"""Characters of a prior's name that a narrow terminal keeps."""


def fit_table(console: Console, summary: pd.DataFrame, frame: pd.DataFrame) -> Table:
    """The summary as a table with as many columns as the terminal is wide."""
    room = console.options.update(width=10_000)
    for details in (DETAILS | COSTS, DETAILS, {}):
        table = print_table(summary, frame, details)
        if Measurement.get(console, room, table).maximum <= console.width:
            return table
    return print_table(summary, frame, {}, short=True)


def print_table(
    summary: pd.DataFrame,
    frame: pd.DataFrame,
    details: Mapping[str, str],
    *,
    short: bool = False,
) -> Table:
    """The summary as a table, a section for each setting, with what it rests on as its caption.

    A short one leaves out the NLLs' intervals, and cuts long names rather than numbers.
    """
    by = frames.setting_columns(summary)[1]
    table = Table(
        title=heading(frame),
        caption=Text("\n".join([*footnotes(summary, frame), list_devices(frame)])),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption_justify="left",
    )
    marks = summary["caveat"].ne("").map({True: CAVEAT, False: ""})
    origin = ["source"] if "source" in summary else []
    names = [*("D" if axis == "latent" else axis for axis in by), "prior", *origin]
    names = ["from" if name == "source" else name for name in names]
    names += ["seeds", "NLL", "difference", "", *details]
    rows = [
        [*(frames.valued(row[axis]) for axis in by), row["prior"] + mark, *row[origin]]
        + _scores(row, short=short)
        + [format_column(row, column) for column in details.values()]
        for mark, (_, row) in zip(marks, summary.iterrows(), strict=True)
    ]
    for k, name in enumerate(names):
        least = max(len(cell) for cell in (name, *(row[k] for row in rows)))
        side: Literal["left", "right"] = "left" if name in ("prior", "from", "") else "right"
        least = min(least, SHORTEST if short else 26) if name == "prior" else least
        cut = short and name == "prior"
        table.add_column(name, justify=side, no_wrap=not cut, overflow="ellipsis", min_width=least)
    for before, row in zip([None, *rows], rows, strict=False):
        if before and before[: len(by)] != row[: len(by)]:
            table.add_section()
        table.add_row(*(Text(cell) for cell in row))
    return table


def _scores(row: pd.Series, *, short: bool) -> list[str]:
    """Seeds, NLL, difference and verdict of an arm."""
    seeds = f"{row['seeds']} ({row['mark']})" if row["mark"] else str(row["seeds"])
    nll, span = (
        format_number(row["nll"], ".2f"),
        format_interval(row, "nll_low", "nll_high", ".1f"),
    )
    difference = (
        format_number(row["difference"], "+.2f"),
        format_interval(row, "low", "high", "+.1f"),
    )
    return [
        count_seeds(row) if short else seeds,
        nll if short else f"{nll} {span}".rstrip(),
        " ".join(difference).rstrip(),
        str(row["verdict"]),
    ]
