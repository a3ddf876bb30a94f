"""Builds a report from an analysis: table, findings, figures and files."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock
from rich.console import Console

from bench.figures.catalogue import draw_all
from bench.report.findings.best_prior import rival_sentences
from bench.report.findings.comparison import (
    comparison_sentences,
    joint_training_sentences,
    precision_sentences,
)
from bench.report.findings.convergence import convergence_sentences
from bench.report.findings.failures import failure_sentences
from bench.report.findings.reliability import reliability_sentences
from bench.report.page import About, Page, make_page
from bench.report.render import write_pages
from bench.report.terminal import fit_table
from bench.statistics.analysis import Analysis
from bench.system.paths import RESULTS_FOLDER, writing

__all__ = ["build_report", "find_sentences"]


def build_report(console: Console, analysis: Analysis, about: About) -> tuple[Page, list[Path]]:
    """Writes the tables, figures and pages of a report, and prints table and findings.

    The findings are printed before the figures are drawn, which takes longest. A lock on the
    folder keeps two processes from writing to it at once.

    Arguments:
        console: Where to print.
        analysis: The trials and their statistics.
        about: Name, command, question and origins of the report.

    Returns:
        The report's content, and its files.

    Raises:
        InputError: The folder cannot be written to.
    """
    folder = RESULTS_FOLDER / about.name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            return _write_report(console, folder, analysis, about)


def _write_report(
    console: Console, folder: Path, analysis: Analysis, about: About
) -> tuple[Page, list[Path]]:
    tables = {
        "trials": analysis.frame.assign(**analysis.convergence),
        "summary": analysis.summary,
        "pairs": analysis.pairs,
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    (folder / "command.txt").write_text(about.command + "\n")
    console.print()
    console.print(fit_table(console, analysis.summary, analysis.trials))
    sentences = find_sentences(analysis)
    for line in [*(f"{name}: {text}" for name, text in about.origins), *sentences]:
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    with console.status("drawing the figures"):
        drawn = draw_all(analysis, folder)
    page = make_page(analysis, about, sentences, drawn)
    pictures = [path for path in drawn if path.suffix == ".png"]
    files = [*write_pages(page, folder), *(folder / f"{name}.csv" for name in tables), *pictures]
    for path in files:
        console.print(str(path), markup=False, soft_wrap=True)
    return page, files


def find_sentences(analysis: Analysis) -> list[str]:
    """Returns the findings: the comparison first, then its limits."""
    summary, pairs = analysis.summary, analysis.pairs
    return [
        *comparison_sentences(summary),
        *rival_sentences(summary, pairs),
        *joint_training_sentences(pairs),
        *precision_sentences(summary),
        *failure_sentences(analysis),
        *convergence_sentences(analysis),
        *reliability_sentences(analysis),
    ]
