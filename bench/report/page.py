"""Content of a report in any format: question, answer, table, figures, protocol.

Nothing is computed here: the sentences are those that the terminal shows, and the numbers those of
an `Analysis`.
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
from bench.report.embed import data_uri
from bench.report.findings.best_prior import answer_sentences
from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.statistics.captions import FEW_SEEDS, estimator_settings
from bench.store.address import masked
from flowvae.trial import Trial, field_info

__all__ = ["About", "Page", "Picture", "Row", "RunLinks", "make_page"]


MAX_SVG_CHARACTERS = 400_000
"""Characters up to which a figure is shown as SVG; a larger one as pixels if they are smaller."""
PIXELS_PER_INCH = 116
"""CSS pixels per inch of a figure: more than 96, as its small text is made for paper."""
MAX_PICTURE_CHARACTERS = 8_000_000
"""Characters of all figures in a page; the file names of the others are given instead."""
RECIPE_FIELDS = {
    name: info
    for name, info in field_info(Trial).items()
    if info.role == "recipe" or name in ("precision", "training")
}
"""The fields that the line "recipe" of the protocol states; the others have their own lines."""


class RunLinks(Protocol):
    """Addresses at which runs can be opened, such as those of a `Connection`."""

    def browse(self) -> str:
        """Returns how to open the runs, as text."""

    def link(self, run: str = "") -> str:
        """Returns the address of a run; of all runs without one."""


class About(NamedTuple):
    """Subject of a report: name, command, question and origins.

    Arguments:
        name: The grid's name, and that of its folder under `results/local`.
        command: The command that made the report.
        question: The question that the grid answers.
        store: The addresses of its runs.
        origins: Notes on where the trials come from, each with its name.
    """

    name: str
    command: str
    question: str = ""
    store: RunLinks | None = None
    origins: Sequence[tuple[str, str]] = ()


class Picture(NamedTuple):
    """A figure.

    Arguments:
        title: Its title.
        file: Its PNG file, beside the page.
        width: Its width on the page, CSS pixels.
        uri: The figure as a data URI; empty where the page has no room for it.
    """

    title: str
    file: str
    width: int
    uri: str


class Row(NamedTuple):
    """Row of the table of arms; `opens` marks the first row of a setting."""

    cells: list[Cell]
    opens: bool = False


class Run(NamedTuple):
    """Row of the table of trials, with the id of the run and its address or nothing."""

    cells: list[Cell]
    run: str
    link: str


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Arguments:
        name: The grid's name.
        question: The question that the grid answers.
        answer: Sentences on the best prior of each setting.
        findings: The other sentences.
        heading: The heading of the table.
        columns: The table's columns.
        rows: Its rows, one per arm.
        notes: The notes below it.
        pictures: The figures, in order.
        protocol: How the trials were run and scored, by name.
        titles: The columns of the table of trials, except the run.
        runs: Its rows, one per trial.
        browse: How to open the runs, as text, or nothing.
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
        sentences: The findings, as the terminal shows them.
        drawn: The files of the figures; those that do not exist are skipped.
    """
    summary, store = analysis.summary, about.store
    answer = answer_sentences(summary, analysis.pairs)
    heads = columns(summary)
    notes = footnotes(summary, analysis.trials)
    if summary["seeds"].between(1, 2).any():
        notes.append(f"{FEW_SEEDS[0].upper()}{FEW_SEEDS[1:]}.")
    titles, runs = _runs(analysis, store)
    return Page(
        name=about.name,
        question=about.question,
        answer=answer,
        findings=[sentence for sentence in sentences if sentence not in answer],
        heading=heading(analysis.trials),
        columns=heads,
        rows=_rows(summary, heads),
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


def _runs(analysis: Analysis, store: RunLinks | None) -> tuple[list[str], list[Run]]:
    """Returns the titles and the rows of the table of trials."""
    _, settings = frames.setting_columns(analysis.summary)
    joined, rows = "source" in analysis.trials, []
    for _, row in analysis.trials.iterrows():
        cells = [Cell(frames.value_text(row[axis]), value=row[axis]) for axis in settings]
        cells += [
            Cell(row["prior"], value=row["prior"]),
            Cell(str(row["seed"]), value=row["seed"]),
        ]
        cells += [Cell(row["source"], value=row["source"])] if joined else []
        done = row["status"] == "complete"
        scores = [row.get("test/nll"), row.get("test/elbo")] if done else [None, None]
        cells += [Cell(format_number(s, ".2f"), value="" if pd.isna(s) else s) for s in scores]
        reason = row.get("reason")
        suffix = f": {reason}" if isinstance(reason, str) and reason else ""
        cells.append(Cell(f"{row['status']}{suffix}", value=row["status"]))
        run = str(row["run_id"])
        rows.append(Run(cells, run, masked(store.link(run)) if store and run else ""))
    axes = ["D" if axis == "latent" else axis for axis in settings]
    origin = ["from"] if joined else []
    return [*axes, "prior", "seed", *origin, "test NLL", "test ELBO", "status"], rows


def _pictures(drawn: Iterable[Path]) -> list[Picture]:
    """Returns the figures, as data URIs as long as the page has room for them."""
    pictures, room = [], MAX_PICTURE_CHARACTERS
    for png in (path for path in drawn if path.suffix == ".png" and path.is_file()):
        uri = data_uri(png, MAX_SVG_CHARACTERS)
        uri = uri if len(uri) <= room else ""
        room -= len(uri)
        with Image.open(png) as image:
            width = round(PIXELS_PER_INCH * image.width / image.info["dpi"][0])
        pictures.append(Picture(_title(png.stem), png.name, width, uri))
    return pictures


def _title(stem: str) -> str:
    """Returns the title of a figure and its setting.

    Example:
        >>> _title("pair_matrix-net=mlp")
        'All pairs of priors: rows minus columns, one triangle a latent size (net=mlp)'
    """
    name, _, setting = stem.partition("-")
    return f"{FIGURES[name].title}{f' ({setting})' if setting else ''}"


def _values(frame: pd.DataFrame, column: str) -> str:
    """Returns the distinct values of a column as text; nothing where there are none."""
    values = list(frame[column].dropna().unique()) if column in frame else []
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values if v != "")


def _protocol(analysis: Analysis, command: str) -> list[tuple[str, str]]:
    """Returns how the trials were run and scored; a setting at its default is left out."""
    frame, first = analysis.trials, analysis.trials.iloc[0]
    recipe = [
        f"{field.replace('_', ' ')} {values}"
        for field, info in RECIPE_FIELDS.items()
        if (values := _values(frame, field)) and (info.always or values != str(info.default))
    ]
    scored = estimator_settings(first)
    if first["nll_precision"] == "float32":
        scored += ", float32"  # `estimator_settings` omits the usual precision
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
