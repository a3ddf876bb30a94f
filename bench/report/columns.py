"""How each number of the table of arms is written: on a terminal, a page, in markdown, in LaTeX.

The rows are those of `stats.summary`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from bench.statistics import comparison, frames
from bench.statistics.arms import SPEEDS, UNSCORED_STATUSES, timing_devices
from bench.statistics.captions import estimator, untimed
from bench.statistics.formatting import nats

__all__ = [
    "CAVEAT",
    "COSTS",
    "DETAILS",
    "SHARED_MARK",
    "Cell",
    "Column",
    "columns",
    "count_seeds",
    "footnotes",
    "format_column",
    "format_interval",
    "format_number",
    "heading",
    "list_devices",
]


CAVEAT = "*"
"""Stands after a prior of which a reader must know something, told below the table."""
SHARED_MARK = "\N{DAGGER}"
"""Stands for a speed that is left out, since it was not timed alone; told below the table."""
PATTERNS = {
    "p_holm": ".3f",
    "khat_high": ".0%",
    **dict.fromkeys(("elbo", "rate", "distortion", "marginal_kl"), ".2f"),
    "active_units_relative": ".1f",
    "train_seconds": ",.1f",
    **dict.fromkeys(("images_per_second", "samples_per_second"), ",.0f"),
    **dict.fromkeys(("prior_parameters", "parameters"), ",.0f"),
}
DETAILS = {
    "Holm p": "p_holm",
    "k-hat>0.7": "khat_high",
    "ELBO": "elbo",
    "rate": "rate",
    "dist.": "distortion",
    "images/s": "images_per_second",
}
COSTS = {"samples/s": "samples_per_second", "prior par.": "prior_parameters"}
"""What a narrow terminal leaves to `summary.csv`: column by title."""


class Cell(NamedTuple):
    """What stands in a table: a text, the interval behind it, and what it is sorted by."""

    text: str
    interval: str = ""
    value: Any = ""

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


class Column(NamedTuple):
    """A column: its title, what it means, how a row's cell is made, where else it belongs.

    Arguments:
        title: What stands above it.
        meaning: What it is, in words.
        cell: From a row of `stats.summary` to its cell.
        core: Whether a narrow table has it, too.
        is_text: Whether it holds words rather than numbers.
    """

    title: str
    meaning: str
    cell: Callable[[pd.Series], Cell]
    core: bool = False
    is_text: bool = False


def format_number(value: Any, pattern: str) -> str:  # noqa: ANN401
    """Write a number, or nothing where there is none; those with decimals are nats."""
    if pd.isna(value):
        return ""
    is_nats = "," not in pattern and pattern.endswith(("1f", "2f"))
    return nats(value, pattern) if is_nats else format(value, pattern)


def format_column(row: pd.Series, column: str) -> str:
    """Write one number of an arm; no p as zero, and no speed that is left out."""
    if column in SPEEDS and row["seeds"] and not row["timed"]:
        return SHARED_MARK
    if column == "p_holm" and row[column] < 0.001:
        return "<0.001"
    return format_number(row.get(column), PATTERNS[column])


def format_interval(row: pd.Series, low: str, high: str, pattern: str) -> str:
    """Write an interval such as `[-3.1, -0.2]`, or nothing where there is none."""
    return "" if pd.isna(row[low]) else f"[{nats(row[low], pattern)}, {nats(row[high], pattern)}]"


def count_seeds(row: pd.Series) -> str:
    """Write the number of an arm's complete seeds, and of how many where some were lost."""
    lost = sum(row[status] for status in UNSCORED_STATUSES)
    return f"{row['seeds']} of {row['seeds'] + lost}" if lost else str(row["seeds"])


def columns(summary: pd.DataFrame) -> list[Column]:
    """Return the columns of a page's table, in order."""
    reference = summary["reference"].iloc[0]
    over = f" over {found}" if (found := comparison.over(summary)) else ""

    def plain(title: str, column: str, meaning: str, *, core: bool = False) -> Column:
        def cell(row: pd.Series) -> Cell:
            text = format_column(row, column)
            return Cell(text, value="" if text in ("", SHARED_MARK) else row[column])

        return Column(title, meaning, cell, core)

    return [
        *(_setting(axis) for axis in frames.setting_columns(summary)[1]),
        Column("prior", "the prior of the latents", _prior, core=True, is_text=True),
        *([_SOURCE] if "source" in summary else []),
        Column(
            "seeds", "seeds that completed, of those that were asked for",
            lambda row: Cell(count_seeds(row), value=row["seeds"]), core=True,
        ),
        Column(
            "NLL", "test NLL, nats per image, and its 95 % interval over seeds",
            lambda row: _nats(row, "nll", "nll_low", "nll_high", ".2f", ".1f"), core=True,
        ),
        Column(
            "difference", f"paired difference in NLL to {reference}, nats per image, and its 95 % "
            f"interval{over}; below zero is better",
            lambda row: _nats(row, "difference", "low", "high", "+.2f", "+.1f"), core=True,
        ),
        plain("Holm p", "p_holm", "p of the difference, adjusted over the priors of a setting"),
        Column(
            "verdict", f"against {reference}: better or worse where that is resolved",
            lambda row: Cell(row["verdict"], value=row["verdict"]), core=True, is_text=True,
        ),
        plain("ELBO", "elbo", "test ELBO, nats per image"),
        plain("rate", "rate", "E[log q(z|x) - log p(z)] on the test images, nats", core=True),
        plain("distortion", "distortion", "-E[log p(x|z)] on the test images, nats", core=True),
        plain("marginal KL", "marginal_kl", "KL(q(z) || p(z)), a part of the rate, nats"),
        plain(
            "active units", "active_units_relative",
            "latent dimensions with Var(E[z|x]) > 0.01 Var(z)",
        ),
        plain(
            "k-hat>0.7", "khat_high", "share of test images whose importance weights have a "
            "Pareto k-hat above 0.7: their NLL is not to be relied on at this K", core=True,
        ),
        plain("prior par.", "prior_parameters", "parameters of the prior", core=True),
        plain("parameters", "parameters", "parameters of the whole model"),
        plain("seconds", "train_seconds", "time of training, s"),
        plain("images/s", "images_per_second", "training images per second", core=True),
        plain("samples/s", "samples_per_second", "latents drawn from the prior per second"),
        Column(
            "failures", "seeds that diverged, failed or are missing",
            lambda row: Cell(row["mark"], value=row["mark"]), is_text=True,
        ),
    ]  # fmt: skip


_SOURCE = Column(
    "from", "where its trials come from",
    lambda row: Cell(row["source"], value=row["source"]), core=True, is_text=True,
)  # fmt: skip


def _setting(axis: str) -> Column:
    title, meaning = (
        ("D", "latent size") if axis == "latent" else (axis, f"the {axis} of the trial")
    )
    is_text = axis != "latent"
    return Column(
        title, meaning, lambda row: Cell(frames.valued(row[axis]), value=row[axis]), True, is_text
    )


def _prior(row: pd.Series) -> Cell:
    return Cell(row["prior"] + (CAVEAT if row["caveat"] else ""), value=row["prior"])


def _nats(row: pd.Series, mean: str, low: str, high: str, fine: str, coarse: str) -> Cell:
    value = "" if pd.isna(row[mean]) else row[mean]
    return Cell(format_number(row[mean], fine), format_interval(row, low, high, coarse), value)


def heading(frame: pd.DataFrame) -> str:
    """Return what the table of arms shows, of which data, by which estimator."""
    first = frame.iloc[0]
    return (
        f"Test NLL, nats per image, lower is better ({first['dataset']}, "
        f"{first['binarise']}, {estimator(first)})"
    )


def list_devices(frame: pd.DataFrame) -> str:
    """Return on what the trials were run and timed."""
    known = pd.concat([frame["device"], timing_devices(frame)]).dropna().unique()
    return "; ".join(str(device) for device in known if device)


def _over(summary: pd.DataFrame) -> str:
    """Say what the intervals of differences are over, and why where it is not all."""
    found = comparison.over(summary)
    if found != comparison.SEEDS:
        return found
    return f"{found} alone, on the test images as they are (each image's own score is not known)"


def footnotes(summary: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """Return what stands below the table: intervals, caveats with their priors, timings left out.

    Each caveat is told once.
    """
    reference = summary["reference"].iloc[0]
    over = _over(summary)
    paired = f", of the paired difference to {reference} over {over}" if over else ""
    notes = [f"[ ]: 95 % intervals, of the NLL over seeds{paired}."]
    found = summary[summary["caveat"] != ""][["caveat", "prior"]].drop_duplicates()
    notes += [
        f"{CAVEAT} {', '.join(rows['prior'])}: {caveat}"
        for caveat, rows in found.groupby("caveat", sort=False)
    ]
    left_out = untimed(frame)
    return [*notes, f"{SHARED_MARK} {left_out}"] if left_out else notes
