"""The table of results on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bench.report.columns import Column, columns, footnotes, heading, list_devices
from bench.statistics import frames

__all__ = ["fit_table"]


MIN_PRIOR_CHARACTERS, PRIOR_CHARACTERS = 12, 26
"""Characters of a prior's name that the shortest table keeps, and that the others do."""
UNLIMITED_WIDTH = 10_000
"""Characters of a terminal that any table fits."""


def fit_table(console: Console, summary: pd.DataFrame, frame: pd.DataFrame) -> Table:
    """Returns the summary as a table with as many columns as the terminal is wide."""
    options = console.options.update(width=UNLIMITED_WIDTH)
    for widths in (("narrow", "medium", "wide"), ("narrow", "medium"), ("narrow",)):
        chosen = [column for column in columns(summary) if column.terminal in widths]
        table = _make_table(chosen, summary, frame)
        if Measurement.get(console, options, table).maximum <= console.width:
            return table
    return _make_table(chosen, summary, frame, short=True)


def _make_table(
    chosen: Sequence[Column], summary: pd.DataFrame, frame: pd.DataFrame, *, short: bool = False
) -> Table:
    """Returns the summary as a table, a section for each setting, with notes as its caption.

    A short one leaves out the intervals of NLLs, and cuts long names rather than numbers.
    """
    table = Table(
        title=heading(frame),
        caption=Text("\n".join([*footnotes(summary, frame), list_devices(frame)])),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption_justify="left",
    )
    rows = [
        [_text(column, row, short=short) for column in chosen] for _, row in summary.iterrows()
    ]
    for k, column in enumerate(chosen):
        title = column.title if column.short_title is None else column.short_title
        width = max(len(text) for text in (title, *(row[k] for row in rows)))
        if column.title == "prior":
            width = min(width, MIN_PRIOR_CHARACTERS if short else PRIOR_CHARACTERS)
        table.add_column(
            title,
            justify="left" if column.is_text else "right",
            no_wrap=not (short and column.title == "prior"),
            overflow="ellipsis",
            min_width=width,
        )
    settings = len(frames.setting_columns(summary)[1])  # the first columns
    for before, row in zip([None, *rows], rows, strict=False):
        if before and before[:settings] != row[:settings]:
            table.add_section()
        table.add_row(*map(Text, row))
    return table


def _text(column: Column, row: pd.Series, *, short: bool) -> str:
    cell = column.cell(row)
    if column.title == "seeds" and row["mark"] and not short:
        return f"{cell.value} ({row['mark']})"
    return cell.text if column.title == "NLL" and short else str(cell)
