"""From results to what a person reads: a table, sentences, figures and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from filelock import FileLock
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from flowvae.pareto import RELIABLE
from flowvae.quadrature import MOST_FEATURES

from . import convergence, stats, troubles
from .answer import rivalry
from .columns import (
    CAVEAT,
    COSTS,
    DETAILS,
    devices,
    footnotes,
    heading,
    interval,
    number,
    survivors,
    written,
)
from .command import RESULTS, writing
from .figures import draw_all
from .page import Browsed, Page, make_page
from .publish import publish
from .results import Results

__all__ = ["conclude"]

DOUBTFUL = 0.1
"""The share of images with heavy-tailed weights above which a person is warned."""
SHORTEST = 12
"""Characters of a prior's name that a narrow terminal keeps."""


def conclude(
    console: Console,
    name: str,
    results: Results,
    command: str,
    *,
    resolution: float = stats.RESOLUTION,
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
    folder = RESULTS / name
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
    """Does what `conclude` says, in a folder that is no other's."""
    summary = stats.summary(results.frame, results.loglik, resolution=resolution)
    pairs = stats.pairs(results.frame, results.loglik, resolution=resolution)
    followed = results.frame.assign(**convergence.follow(results.frame, results.curves))
    followed.to_csv(folder / "trials.csv", index=False)
    summary.to_csv(folder / "summary.csv", index=False)
    pairs.to_csv(folder / "pairs.csv", index=False)
    (folder / "command.txt").write_text(command + "\n")
    console.print()
    console.print(_fitting(console, summary, results.frame))
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
        *stats.sentences(summary),
        *rivalry(summary, pairs),
        *stats.stages(pairs),
        *stats.resolutions(summary),
        *troubles.sentences(results.frame, summary),
        *convergence.sentences(results.frame, results.curves),
        *_reliability(summary, results.frame),
    ]


def _reliability(summary: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """Says where importance weights are too heavy-tailed to be relied on."""
    worst = summary.sort_values("khat_high", na_position="first").iloc[-1]
    if not worst["khat_high"] > DOUBTFUL:
        return []
    mine = (frame["prior"] == worst["prior"]) & (frame["latent"] == worst["latent"])
    run = frame["run_id"][mine & (frame["status"] == "complete")].iloc[0]
    few = (summary["latent"] <= MOST_FEATURES).any()
    exactly = f" and, at D <= {MOST_FEATURES}, integrates" if few else ""
    return [
        f"At K = {worst['nll_samples']} up to {worst['khat_high']:.0%} of the test images "
        f"({worst['prior']}, D = {worst['latent']}) have a k-hat above {RELIABLE:g}: their NLL is "
        f"an upper bound that may lie far above the truth; `python -m bench.audit {run}` brackets"
        f"{exactly} it (other models: `run_id` in trials.csv)."
    ]


def _pictures(written: Iterable[Path]) -> list[Path]:
    return [path for path in written if path.suffix == ".png"]


def _fitting(console: Console, summary: pd.DataFrame, frame: pd.DataFrame) -> Table:
    """The summary as a table with as many columns as the terminal is wide."""
    room = console.options.update(width=10_000)
    for details in (DETAILS | COSTS, DETAILS, {}):
        table = _table(summary, frame, details)
        if Measurement.get(console, room, table).maximum <= console.width:
            return table
    return _table(summary, frame, {}, short=True)


def _table(
    summary: pd.DataFrame,
    frame: pd.DataFrame,
    details: Mapping[str, str],
    *,
    short: bool = False,
) -> Table:
    """The summary as a table, a section for each setting, with what it rests on as its caption.

    A short one leaves out the NLLs' intervals, and cuts long names rather than numbers.
    """
    by = stats.settings(summary)[1]
    table = Table(
        title=heading(frame),
        caption=Text("\n".join([*footnotes(summary, frame), devices(frame)])),
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
        [*(stats.valued(row[axis]) for axis in by), row["prior"] + mark, *row[origin]]
        + _scores(row, short=short)
        + [written(row, column) for column in details.values()]
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
    nll, span = number(row["nll"], ".2f"), interval(row, "nll_low", "nll_high", ".1f")
    difference = number(row["difference"], "+.2f"), interval(row, "low", "high", "+.1f")
    return [
        survivors(row) if short else seeds,
        nll if short else f"{nll} {span}".rstrip(),
        " ".join(difference).rstrip(),
        str(row["verdict"]),
    ]
