"""The table of results on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bench.report.columns import (
    CAVEAT_MARK,
    count_seeds,
    footnotes,
    format_interval,
    format_metric,
    format_number,
    format_p,
    heading,
    list_devices,
)
from bench.statistics import frames
from bench.statistics.metrics import METRICS

__all__ = ["fit_table"]


MIN_PRIOR_CHARACTERS, PRIOR_CHARACTERS = 12, 26
"""Characters of a prior's name that the narrowest table keeps, and that the others do."""
UNLIMITED_WIDTH = 10_000
"""Characters of a terminal that any table fits."""


def fit_table(console: Console, summary: pd.DataFrame, frame: pd.DataFrame) -> Table:
    """Returns the summary as a table with as many columns as the terminal is wide."""
    options = console.options.update(width=UNLIMITED_WIDTH)
    for details in (_details("medium", "wide"), _details("medium"), {}):
        table = _make_table(summary, frame, details)
        if Measurement.get(console, options, table).maximum <= console.width:
            return table
    return _make_table(summary, frame, {}, short=True)


def _details(*widths: str) -> dict[str, Callable[[pd.Series], str]]:
    """Returns the columns that not every terminal has room for: from title to a row's text."""
    metrics = {
        metric.short_title or metric.title: partial(format_metric, metric=metric)
        for metric in METRICS.values()
        if metric.terminal in widths
    }
    return {"Holm p": format_p, **metrics}


def _make_table(
    summary: pd.DataFrame,
    frame: pd.DataFrame,
    details: Mapping[str, Callable[[pd.Series], str]],
    *,
    short: bool = False,
) -> Table:
    """Returns the summary as a table, a section for each setting, with notes as its caption.

    A short one leaves out the intervals of NLLs, and cuts long names rather than numbers.
    """
    axes = frames.setting_columns(summary)[1]
    table = Table(
        title=heading(frame),
        caption=Text("\n".join([*footnotes(summary, frame), list_devices(frame)])),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption_justify="left",
    )
    marks = summary["caveat"].ne("").map({True: CAVEAT_MARK, False: ""})
    source = ["source"] if "source" in summary else []
    titles = ["D" if axis == "latent" else axis for axis in axes]
    titles += ["prior", *(["from"] if source else [])]
    titles += ["seeds", "NLL", "difference", "", *details]
    rows = [
        [*(frames.valued(row[axis]) for axis in axes), row["prior"] + mark, *row[source]]
        + _scores(row, short=short)
        + [text(row) for text in details.values()]
        for mark, (_, row) in zip(marks, summary.iterrows(), strict=True)
    ]
    for k, title in enumerate(titles):
        width = max(len(cell) for cell in (title, *(row[k] for row in rows)))
        side: Literal["left", "right"] = "left" if title in ("prior", "from", "") else "right"
        if title == "prior":
            width = min(width, MIN_PRIOR_CHARACTERS if short else PRIOR_CHARACTERS)
        cut = short and title == "prior"
        table.add_column(
            title, justify=side, no_wrap=not cut, overflow="ellipsis", min_width=width
        )
    for before, row in zip([None, *rows], rows, strict=False):
        if before and before[: len(axes)] != row[: len(axes)]:
            table.add_section()
        table.add_row(*(Text(cell) for cell in row))
    return table


def _scores(row: pd.Series, *, short: bool) -> list[str]:
    """Returns the seeds, NLL, difference and verdict of an arm."""
    seeds = f"{row['seeds']} ({row['mark']})" if row["mark"] else str(row["seeds"])
    nll = format_metric(row, METRICS["test/nll"])
    ends = format_interval(row, "nll_low", "nll_high")
    difference = format_number(row["difference"], "+.2f")
    return [
        count_seeds(row) if short else seeds,
        nll if short else f"{nll} {ends}".rstrip(),
        f"{difference} {format_interval(row, 'low', 'high', '+.1f')}".rstrip(),
        str(row["verdict"]),
    ]
