"""Columns of the table of arms, for a terminal, a page, markdown and LaTeX.

Rows are those of `bench.statistics.comparison.summary`; titles, formats and meanings of metrics
are declared in `bench.statistics.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pandas as pd

from bench.statistics import comparison, frames
from bench.statistics.arms import UNSCORED_STATUSES, timing_devices
from bench.statistics.captions import estimator_settings, untimed
from bench.statistics.formatting import nats
from bench.statistics.metrics import METRICS, Metric

__all__ = [
    "CAVEAT_MARK",
    "SHARED_MARK",
    "Cell",
    "Column",
    "columns",
    "footnotes",
    "format_metric",
    "format_number",
    "heading",
    "list_devices",
]


CAVEAT_MARK = "*"
"""Marks a prior whose caveat stands below the table."""
SHARED_MARK = "\N{DAGGER}"
"""Replaces a speed that was not timed alone; the reason stands below the table."""


class Cell(NamedTuple):
    """A cell of a table: its text, an interval behind it, and the value that sorts it."""

    text: str
    interval: str = ""
    value: Any = ""

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


class Column(NamedTuple):
    """A column of the table of arms.

    Arguments:
        title: The title above it.
        meaning: What it holds, in words.
        cell: From a row of the summary to the cell.
        core: Whether the narrow table (LaTeX) has it, too.
        is_text: Whether it holds words rather than numbers.
        terminal: The least width of a terminal's table that has it.
        short_title: The title on a terminal; none for the same.
    """

    title: str
    meaning: str
    cell: Callable[[pd.Series], Cell]
    core: bool = False
    is_text: bool = False
    terminal: Literal["narrow", "medium", "wide", "none"] = "none"
    short_title: str | None = None


def format_number(value: Any, pattern: str) -> str:  # noqa: ANN401
    """Returns a number as text, empty for NaN; numbers with decimals are nats."""
    if pd.isna(value):
        return ""
    is_nats = "," not in pattern and pattern.endswith(("1f", "2f"))
    return nats(value, pattern) if is_nats else format(value, pattern)


def format_metric(row: pd.Series, metric: Metric) -> str:
    """Returns a metric's mean over an arm's seeds as text; a mark for a speed that is left out."""
    if metric.seeds == "timed" and row["seeds"] and not row["timed"]:
        return SHARED_MARK
    return format_number(row.get(metric.summary_column), metric.pattern)


def _format_p(row: pd.Series) -> str:
    """Returns the adjusted p of an arm's difference as text, never as zero."""
    return "<0.001" if row["p_holm"] < 0.001 else format_number(row["p_holm"], ".3f")


def _format_interval(row: pd.Series, low: str, high: str, pattern: str = ".1f") -> str:
    """Returns an interval such as `[-3.1, -0.2]`, empty where there is none."""
    return "" if pd.isna(row[low]) else f"[{nats(row[low], pattern)}, {nats(row[high], pattern)}]"


def _count_seeds(row: pd.Series) -> str:
    """Returns the number of an arm's complete seeds, such as `3`, or `2 of 3`."""
    lost = sum(row[status] for status in UNSCORED_STATUSES)
    return f"{row['seeds']} of {row['seeds'] + lost}" if lost else str(row["seeds"])


def columns(summary: pd.DataFrame) -> list[Column]:
    """Returns the columns of a page's table, in order."""
    reference = summary["reference"].iloc[0]
    basis = comparison.sampled_over(summary)
    over = f" over {basis}" if basis else ""
    nll, *others = (_metric(metric) for metric in METRICS.values() if metric.title)
    return [
        *(_setting(axis) for axis in frames.setting_columns(summary)[1]),
        Column("prior", "the prior of the latents", _prior, True, True, "narrow"),
        *([_SOURCE] if "source" in summary else []),
        Column(
            "seeds", "seeds that completed, of those that were asked for",
            lambda row: Cell(_count_seeds(row), value=row["seeds"]), core=True, terminal="narrow",
        ),
        nll,
        Column(
            "difference", f"paired difference in NLL to {reference}, nats per image, and its 95 % "
            f"interval{over}; below zero is better", _difference, core=True, terminal="narrow",
        ),
        *(_ESTIMATOR_PART if summary["bias_difference"].notna().any() else []),
        Column(
            "Holm p", "p of the difference, adjusted over the priors of a setting",
            lambda row: Cell(_format_p(row), value=_sort_key(row["p_holm"])), terminal="medium",
        ),
        Column(
            "verdict", f"against {reference}: better or worse where that is resolved",
            lambda row: Cell(row["verdict"], value=row["verdict"]), core=True, is_text=True,
            terminal="narrow", short_title="",
        ),
        *others,
        Column(
            "failures", "seeds that diverged, failed or are missing",
            lambda row: Cell(row["mark"], value=row["mark"]), is_text=True,
        ),
    ]  # fmt: skip


def _metric(metric: Metric) -> Column:
    """Returns the column of a metric's means over seeds, with their intervals where there are."""
    name = metric.summary_column

    def cell(row: pd.Series) -> Cell:
        text = format_metric(row, metric)
        ends = _format_interval(row, f"{name}_low", f"{name}_high") if metric.interval else ""
        return Cell(text, ends, "" if text == SHARED_MARK else _sort_key(row[name]))

    ends = "; below it a 95 % interval over seeds" if metric.interval else ""
    return Column(
        metric.title, metric.brief + ends, cell, metric.core,
        terminal=metric.terminal, short_title=metric.short_title or None,
    )  # fmt: skip


def _difference(row: pd.Series) -> Cell:
    text = format_number(row["difference"], "+.2f")
    ends = _format_interval(row, "low", "high", "+.1f")
    return Cell(text, ends, _sort_key(row["difference"]))


def _small(column: str, pattern: str) -> Callable[[pd.Series], Cell]:
    """Returns the cell of a column of nats that are far below one."""
    return lambda row: Cell(format_number(row[column], pattern), value=_sort_key(row[column]))


_ESTIMATOR_PART = [
    Column(
        "bias", "difference of the estimated biases of the two NLLs, nats per image; in no "
        "interval", _small("bias_difference", "+.4f"),
    ),
    Column(
        "MC error", "Monte Carlo standard error of the difference, nats per image; part of its "
        "interval", _small("monte_carlo_se", ".4f"),
    ),
]  # fmt: skip


def _sort_key(value: Any) -> Any:  # noqa: ANN401
    return "" if pd.isna(value) else value


_SOURCE = Column(
    "from", "where its trials come from",
    lambda row: Cell(row["source"], value=row["source"]), core=True, is_text=True,
    terminal="narrow",
)  # fmt: skip


def _setting(axis: str) -> Column:
    title, meaning = (
        ("D", "latent size") if axis == "latent" else (axis, f"the {axis} of the trial")
    )
    is_text = axis != "latent"
    return Column(
        title,
        meaning,
        lambda row: Cell(frames.value_text(row[axis]), value=row[axis]),
        True,
        is_text,
        "narrow",
    )


def _prior(row: pd.Series) -> Cell:
    return Cell(row["prior"] + (CAVEAT_MARK if row["caveat"] else ""), value=row["prior"])


def heading(frame: pd.DataFrame) -> str:
    """Returns the heading of the table of arms: the score, the data, the estimator."""
    first = frame.iloc[0]
    return (
        f"Test NLL, nats per image, lower is better ({first['dataset']}, {first['binarise']}; "
        f"{estimator_settings(first)})"
    )


def list_devices(frame: pd.DataFrame) -> str:
    """Returns the devices that the trials were run and timed on."""
    known = pd.concat([frame["device"], timing_devices(frame)]).dropna().unique()
    return "; ".join(str(device) for device in known if device)


def _interval_basis(summary: pd.DataFrame) -> str:
    """Returns what the intervals of differences are over, and why not over images as well."""
    basis = comparison.sampled_over(summary)
    if basis != comparison.OVER_SEEDS:
        return basis
    return f"{basis} alone, on the test images as they are (each image's own score is not known)"


def footnotes(summary: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """Returns the notes below the table: intervals, caveats with their priors, excluded timings.

    Priors with the same caveat share a note.
    """
    reference = summary["reference"].iloc[0]
    basis = _interval_basis(summary)
    paired = f", of the paired difference to {reference} over {basis}" if basis else ""
    notes = [f"[ ]: 95 % intervals, of the NLL over seeds{paired}."]
    caveats = summary[summary["caveat"] != ""][["caveat", "prior"]].drop_duplicates()
    notes += [
        f"{CAVEAT_MARK} {', '.join(rows['prior'])}: {caveat}"
        for caveat, rows in caveats.groupby("caveat", sort=False)
    ]
    excluded = untimed(frame)
    return [*notes, f"{SHARED_MARK} {excluded}"] if excluded else notes
