"""From results to what a person reads: a table, sentences, figures and files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from filelock import FileLock
from rich.console import Console

from bench.figures.catalogue import draw_all
from bench.report.findings import comparison as comparison_findings
from bench.report.findings import convergence as convergence_findings
from bench.report.findings import failures as failures_findings
from bench.report.findings.best_prior import rivalry
from bench.report.findings.reliability import reliability_sentences
from bench.report.page import Browsed, Page, make_page
from bench.report.render import publish
from bench.report.terminal import fit_table
from bench.results.read import Results
from bench.statistics import comparison, convergence
from bench.system.paths import RESULTS_FOLDER, writing

__all__ = ["build_report"]


def build_report(
    console: Console,
    name: str,
    results: Results,
    command: str,
    *,
    resolution: float = comparison.RESOLUTION,
    question: str = "",
    store: Browsed | None = None,
    origins: Sequence[tuple[str, str]] = (),
) -> tuple[Page, list[Path]]:
    """Writes tables, figures and pages of a grid, and prints what a person wants to know first.

    Figures take the longest, and are drawn when the answer is said. One process at a time writes
    to a folder: two may end at once.

    Arguments:
        console: Where to print.
        name: The grid's name, and that of its folder under `results/local`.
        results: What the store holds of the grid.
        command: The command that made it.
        resolution: The half-width, nats, that seeds are counted for.
        question: What the grid asks.
        store: Where its runs can be looked at.
        origins: What a reader must know of where the trials come from, by name.

    Returns:
        The report's content, and its files.

    Raises:
        InputError: The folder cannot be written to.
    """
    folder = RESULTS_FOLDER / name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            return _conclude(
                console, folder, results, command, resolution, question, store, origins
            )


def _conclude(
    console: Console,
    folder: Path,
    results: Results,
    command: str,
    resolution: float,
    question: str,
    store: Browsed | None,
    origins: Sequence[tuple[str, str]],
) -> tuple[Page, list[Path]]:
    """Does what `build_report` says, in a folder that is no other's."""
    summary = comparison.summary(results.frame, results.loglik, resolution=resolution)
    pairs = comparison.pairs(results.frame, results.loglik, resolution=resolution)
    followed = results.frame.assign(**convergence.follow(results.frame, results.curves))
    followed.to_csv(folder / "trials.csv", index=False)
    summary.to_csv(folder / "summary.csv", index=False)
    pairs.to_csv(folder / "pairs.csv", index=False)
    (folder / "command.txt").write_text(command + "\n")
    console.print()
    console.print(fit_table(console, summary, results.frame))
    for what, text in origins:
        console.print(f"{what}: {text}", markup=False, soft_wrap=True)
    words = _words(results, summary, pairs)
    for sentence in words:
        console.print(sentence, markup=False, soft_wrap=True)
    console.print()
    with console.status("drawing the figures"):
        drawn = draw_all(
            results.frame,
            results.loglik,
            results.curves,
            results.samples,
            results.maps,
            folder,
            resolution=resolution,
        )
    page = make_page(
        folder.name, results, summary, pairs, words, drawn, command,
        question=question, store=store, origins=origins,
    )  # fmt: skip
    tables = [folder / f"{table}.csv" for table in ("trials", "summary", "pairs")]
    files = [*publish(page, folder), *tables, *_pictures(drawn)]
    for path in files:
        console.print(str(path), markup=False, soft_wrap=True)
    return page, files


def _words(results: Results, summary: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Says what was found, and what it is worth."""
    return [
        *comparison_findings.comparison_sentences(summary),
        *rivalry(summary, pairs),
        *comparison_findings.stages(pairs),
        *comparison_findings.resolutions(summary),
        *failures_findings.failure_sentences(results.frame, summary),
        *convergence_findings.convergence_sentences(results.frame, results.curves),
        *reliability_sentences(summary, results.frame),
    ]


def _pictures(written: Iterable[Path]) -> list[Path]:
    return [path for path in written if path.suffix == ".png"]
