"""What a grid's report holds, in whatever format: question, answer, table, figures, protocol.

Nothing is computed here: sentences are those that were printed, numbers those of `stats.summary`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import pandas as pd
from PIL import Image

from bench.figures.catalogue import FIGURES
from bench.figures.style import FEW_SEEDS
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
from bench.results.read import Results
from bench.statistics import frames
from bench.statistics.captions import estimator
from bench.store.address import masked
from flowvae.trial import Trial, field_info

__all__ = ["Browsed", "Page", "Picture", "Row", "make_page"]


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
    name: str,
    results: Results,
    summary: pd.DataFrame,
    pairs: pd.DataFrame,
    words: Sequence[str],
    drawn: Iterable[Path],
    command: str,
    *,
    question: str = "",
    store: Browsed | None = None,
    origins: Sequence[tuple[str, str]] = (),
) -> Page:
    """Returns the content of a grid's report.

    Arguments:
        name: The grid's name.
        results: What the store holds of it.
        summary: `stats.summary` of them.
        pairs: `stats.pairs` of them.
        words: The sentences that were printed.
        drawn: The files of the figures; those that are not there are left out.
        command: The command that made it.
        question: What the grid asks.
        store: Where its runs can be looked at.
        origins: What a reader must know of where the trials come from, by name.
    """
    frame = results.frame
    first = answer(summary, pairs)
    heads = columns(summary)
    notes = footnotes(summary, frame)
    if summary["seeds"].between(1, 2).any():
        notes.append(f"{FEW_SEEDS[0].upper()}{FEW_SEEDS[1:]}.")
    titles, runs = _runs(frame, summary, store)
    return Page(
        name=name,
        question=question,
        answer=first,
        findings=[sentence for sentence in words if sentence not in first],
        heading=heading(frame),
        columns=heads,
        rows=_rows(summary, heads),
        notes=notes,
        pictures=_pictures(drawn),
        protocol=[*_protocol(results, masked(command)), *origins],
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


def _runs(
    frame: pd.DataFrame, summary: pd.DataFrame, store: Browsed | None
) -> tuple[list[str], list[Run]]:
    """Returns the titles and the rows of the table of trials."""
    _, told = frames.setting_columns(summary)
    joined, rows = "source" in frame, []
    for _, row in frames.validate(frame).iterrows():
        cells = [Cell(frames.valued(row[axis]), value=row[axis]) for axis in told]
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
    axes = ["D" if axis == "latent" else axis for axis in told]
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
    """Returns what a figure shows, as its function says, and its setting.

    Example:
        >>> _title("elbo_curves-net=mlp")
        'Training and validation ELBO by epoch: faint lines the seeds, and their mean (net=mlp)'
    """
    name, _, setting = stem.partition("-")
    known = {draw.__name__: draw.__doc__ or name for draw in FIGURES}
    told = known.get(name, name.replace("_", " ")).splitlines()[0].rstrip(".").replace("`", "")
    told = re.sub("^Draws?,? ", "", told)
    return f"{told[0].upper()}{told[1:]}{f' ({setting})' if setting else ''}"


def _values(frame: pd.DataFrame, column: str) -> str:
    """Returns the values of a column in words; nothing where there are none."""
    known = list(frame[column].dropna().unique()) if column in frame else []
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in known if v != "")


def _protocol(results: Results, command: str) -> list[tuple[str, str]]:
    """Returns how all was measured: what has a default is told where it differs from it."""
    frame, first = results.frame, results.frame.iloc[0]
    recipe = [
        f"{field.replace('_', ' ')} {values}"
        for field, info in RECIPE.items()
        if (values := _values(frame, field)) and (info.always or values != str(info.default))
    ]
    scored = f"importance weighting, {estimator(first)}"
    if first["nll_precision"] == "float32":
        scored += ", float32"  # which `estimator` leaves unsaid
    if (count := max(map(len, results.loglik.values()), default=0)) > 1:
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
