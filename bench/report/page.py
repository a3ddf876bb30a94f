"""What a grid's report holds, in whatever format: question, answer, table, figures, protocol.

Nothing is computed here: sentences are those that were printed, numbers those of `stats.summary`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import pandas as pd
from PIL import Image

from bench.figures.catalogue import FIGURES
from bench.report.columns import (
    Cell,
    Column,
    columns,
    footnotes,
    format_number,
    heading,
    list_devices,
)
from bench.report.embed import inline
from bench.report.findings.best_prior import answer
from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.statistics.captions import FEW_SEEDS, estimator
from bench.store.address import masked
from flowvae.trial import Trial, field_info

__all__ = ["About", "Browsed", "Page", "Picture", "Row", "make_page"]


SHARP = 400_000
"""Characters up to which a figure is shown as SVG; a larger one is pixels where that is less."""
INCH = 116
"""CSS pixels of an inch of a figure, whose small print is for paper."""
MOST = 8_000_000
"""Characters of all figures together that a page holds; the others are named."""
RECIPE = {
    name: info
    for name, info in field_info(Trial).items()
    if info.role == "recipe" or name in ("precision", "training")
}
"""What is declared of the fields that the recipe's line states; the others have their own."""


class Browsed(Protocol):
    """Where runs can be looked at, such as a `Connection`."""

    def browse(self) -> str:
        """Says how to open the runs."""

    def link(self, run: str = "") -> str:
        """Returns the address of one."""


class About(NamedTuple):
    """What a report is about.

    Arguments:
        name: The grid's name, and that of its folder under `results/local`.
        command: The command that made the report.
        question: The question that the grid answers.
        store: Where its runs can be opened.
        origins: Notes on where the trials come from, each with its name.
    """

    name: str
    command: str
    question: str = ""
    store: Browsed | None = None
    origins: Sequence[tuple[str, str]] = ()


class Picture(NamedTuple):
    """A figure.

    Arguments:
        title: What it shows.
        file: Its PNG file, beside the page.
        width: How wide it is shown, CSS pixels.
        uri: Itself, or nothing where there is no room for it.
    """

    title: str
    file: str
    width: int
    uri: str


class Row(NamedTuple):
    """A row of a table, and whether a new setting begins with it."""

    cells: list[Cell]
    opens: bool = False


class Run(NamedTuple):
    """A trial's row: what it was, what became of it, and where its record is, or nothing."""

    cells: list[Cell]
    run: str
    link: str


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Arguments:
        name: The grid's name.
        question: What it asks.
        answer: What the best priors bring, in sentences.
        findings: What else was printed.
        heading: What the table shows.
        columns: The table's columns.
        rows: Its rows, one an arm.
        notes: What stands below it.
        pictures: The figures, in order.
        protocol: How all was measured, by name.
        titles: The columns of the table of trials, but for the run.
        runs: Its rows, one a trial.
        browse: How to open the runs, or nothing.
    """

    name: str
    question: str
    answer: list[str]
    findings: list[str]
    heading: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str]
    pictures: list[Picture]
    protocol: list[tuple[str, str]]
    titles: list[str]
    runs: list[Run]
    browse: str


def make_page(
    analysis: Analysis, about: About, sentences: Sequence[str], drawn: Iterable[Path]
) -> Page:
    """Returns the content of a report.

    Arguments:
        analysis: The trials and their statistics.
        about: Name, command, question and origins of the report.
        sentences: The findings, as they were printed.
        drawn: The files of the figures; those that do not exist are left out.
    """
    summary, store = analysis.summary, about.store
    first = answer(summary, analysis.pairs)
    shown = columns(summary)
    notes = footnotes(summary, analysis.trials)
    if summary["seeds"].between(1, 2).any():
        notes.append(f"{FEW_SEEDS[0].upper()}{FEW_SEEDS[1:]}.")
    titles, runs = _runs(analysis, store)
    return Page(
        name=about.name,
        question=about.question,
        answer=first,
        findings=[sentence for sentence in sentences if sentence not in first],
        heading=heading(analysis.trials),
        columns=shown,
        rows=_rows(summary, shown),
        notes=notes,
        pictures=_pictures(drawn),
        protocol=[*_protocol(analysis, masked(about.command)), *about.origins],
        titles=titles,
        runs=runs,
        browse=masked(store.browse()) if store else "",
    )


def _rows(summary: pd.DataFrame, heads: Sequence[Column]) -> list[Row]:
    by, _ = frames.setting_columns(summary)
    opens = summary.groupby(by, dropna=False).ngroup().diff() != 0
    return [
        Row([head.cell(row) for head in heads], bool(new))
        for new, (_, row) in zip(opens, summary.iterrows(), strict=True)
    ]


def _runs(analysis: Analysis, store: Browsed | None) -> tuple[list[str], list[Run]]:
    """Returns the titles and the rows of the table of trials."""
    _, settings = frames.setting_columns(analysis.summary)
    joined, rows = "source" in analysis.trials, []
    for _, row in analysis.trials.iterrows():
        cells = [Cell(frames.valued(row[axis]), value=row[axis]) for axis in settings]
        cells += [
            Cell(row["prior"], value=row["prior"]),
            Cell(str(row["seed"]), value=row["seed"]),
        ]
        cells += [Cell(row["source"], value=row["source"])] if joined else []
        done = row["status"] == "complete"
        scores = [row.get("test/nll"), row.get("test/elbo")] if done else [None, None]
        cells += [Cell(format_number(s, ".2f"), value="" if pd.isna(s) else s) for s in scores]
        reason = row.get("reason")
        why = f": {reason}" if isinstance(reason, str) and reason else ""
        cells.append(Cell(f"{row['status']}{why}", value=row["status"]))
        run = str(row["run_id"])
        rows.append(Run(cells, run, masked(store.link(run)) if store and run else ""))
    axes = ["D" if axis == "latent" else axis for axis in settings]
    origin = ["from"] if joined else []
    return [*axes, "prior", "seed", *origin, "test NLL", "test ELBO", "status"], rows


def _pictures(drawn: Iterable[Path]) -> list[Picture]:
    """Returns the figures, inlined as long as there is room."""
    shown, room = [], MOST
    for png in (path for path in drawn if path.suffix == ".png" and path.is_file()):
        found = inline(png, SHARP)
        uri = found if len(found) <= room else ""
        room -= len(uri)
        with Image.open(png) as image:
            width = round(INCH * image.width / image.info["dpi"][0])
        shown.append(Picture(_title(png.stem), png.name, width, uri))
    return shown


def _title(stem: str) -> str:
    """Returns the title of a figure and its setting.

    Example:
        >>> _title("pair_matrix-net=mlp")
        'All pairs of priors: rows minus columns, one triangle a latent size (net=mlp)'
    """
    name, _, setting = stem.partition("-")
    return f"{FIGURES[name].title}{f' ({setting})' if setting else ''}"


def _values(frame: pd.DataFrame, column: str) -> str:
    """Returns the values of a column in words; nothing where there are none."""
    known = list(frame[column].dropna().unique()) if column in frame else []
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in known if v != "")


def _protocol(analysis: Analysis, command: str) -> list[tuple[str, str]]:
    """Returns how all was measured: what has a default is told where it differs from it."""
    frame, first = analysis.trials, analysis.trials.iloc[0]
    recipe = [
        f"{field.replace('_', ' ')} {values}"
        for field, info in RECIPE.items()
        if (values := _values(frame, field)) and (info.always or values != str(info.default))
    ]
    scored = f"importance weighting, {estimator(first)}"
    if first["nll_precision"] == "float32":
        scored += ", float32"  # which `estimator` leaves unsaid
    if (count := max(map(len, analysis.loglik.values()), default=0)) > 1:
        scored += f", {count} test images"
    digest = _values(frame, "data_hash")
    return [
        (name, text)
        for name, text in (
            ("data set", f"{first['dataset']}" + (f", content hash {digest}" if digest else "")),
            ("binarisation", f"{first['binarise']}"),
            ("validation images", _values(frame, "valid")),
            ("priors", ", ".join(frames.priors(frame))),
            ("latent sizes", _values(frame, "latent")),
            ("seeds", _values(frame, "seed")),
            ("nets", _values(frame, "net")),
            ("recipe", "Adam, " + ", ".join(recipe)),
            ("test NLL", scored),
            ("hardware", list_devices(frame)),
            ("versions", _values(frame, "versions")),
            ("commit", _values(frame, "commit")),
            ("command", command),
        )
        if text
    ]
