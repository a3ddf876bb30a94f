"""From results to what a person reads: a table, sentences, figures and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from flowvae.pareto import RELIABLE

from . import convergence, stats, troubles
from .command import RESULTS
from .figures import draw_all
from .levels import SPEEDS, UNSCORED, timed_on
from .look import estimator, untimed
from .results import Results
from .wording import nats

__all__ = ["conclude"]

DOUBTFUL = 0.1
"""The share of images with heavy-tailed weights above which a person is warned."""
SHORTEST = 12
"""Characters of a prior's name that a narrow terminal keeps."""
CAVEAT = "*"
"""Stands after a prior of which a reader must know something, told below the table."""
SHARED = "\N{DAGGER}"
"""Stands for a speed that is left out, since the device was shared; told below the table."""
DETAILS = {
    "Holm p": ("p_holm", ".3f"),
    "k-hat>0.7": ("khat_high", ".0%"),
    "ELBO": ("elbo", ".2f"),
    "rate": ("rate", ".2f"),
    "dist.": ("distortion", ".2f"),
    "images/s": ("images_per_second", ",.0f"),
}
COSTS = {
    "samples/s": ("samples_per_second", ",.0f"),
    "prior par.": ("prior_parameters", ",.0f"),
}
"""What a narrow terminal leaves to `summary.csv`: column and format by title."""


def conclude(
    console: Console,
    name: str,
    results: Results,
    command: str,
    *,
    resolution: float = stats.RESOLUTION,
) -> None:
    """Writes tables and figures of a grid, and prints what a person wants to know first.

    Arguments:
        console: Where to print.
        name: The grid's name, and that of its folder under `results/local`.
        results: What the store holds of the grid.
        command: The command that made it.
        resolution: The half-width, nats, that seeds are counted for.
    """
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    summary = stats.summary(results.frame, results.loglik, resolution=resolution)
    pairs = stats.pairs(results.frame, results.loglik, resolution=resolution)
    followed = results.frame.assign(**convergence.follow(results.frame, results.curves))
    followed.to_csv(folder / "trials.csv", index=False)
    summary.to_csv(folder / "summary.csv", index=False)
    pairs.to_csv(folder / "pairs.csv", index=False)
    (folder / "command.txt").write_text(command + "\n")
    with console.status("drawing the figures"):
        written = draw_all(
            results.frame,
            results.loglik,
            results.curves,
            results.samples,
            results.maps,
            folder,
            resolution=resolution,
        )
    console.print()
    console.print(_fitting(console, summary, results.frame))
    words = [*stats.sentences(summary), *stats.stages(pairs), *stats.resolutions(summary)]
    words += [*troubles.sentences(results.frame, summary)]
    words += convergence.sentences(results.frame, results.curves)
    words += _reliability(summary, results.frame)
    for sentence in words:
        console.print(sentence, markup=False, soft_wrap=True)
    console.print()
    for path in [
        folder / "trials.csv",
        folder / "summary.csv",
        folder / "pairs.csv",
        *_pictures(written),
    ]:
        console.print(str(path), markup=False, soft_wrap=True)


def _reliability(summary: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """Says where importance weights are too heavy-tailed to be relied on."""
    worst = summary.sort_values("khat_high", na_position="first").iloc[-1]
    if not worst["khat_high"] > DOUBTFUL:
        return []
    mine = (frame["prior"] == worst["prior"]) & (frame["latent"] == worst["latent"])
    run = frame["run_id"][mine & (frame["status"] == "complete")].iloc[0]
    return [
        f"At K = {worst['nll_samples']} up to {worst['khat_high']:.0%} of the test images "
        f"({worst['prior']}, D = {worst['latent']}) have a k-hat above {RELIABLE:g}: their NLL is "
        f"an upper bound that may lie far above the truth; `python -m bench.audit {run}` brackets "
        "it (other models: `run_id` in trials.csv)."
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


def _notes(summary: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """What a reader must know: each caveat once, with its priors, and timings left out."""
    found = summary[summary["caveat"] != ""][["caveat", "prior"]].drop_duplicates()
    notes = [
        f"{CAVEAT} {', '.join(rows['prior'])}: {caveat}"
        for caveat, rows in found.groupby("caveat", sort=False)
    ]
    left_out = untimed(frame)
    return [*notes, f"{SHARED} {left_out}"] if left_out else notes


def _table(
    summary: pd.DataFrame,
    frame: pd.DataFrame,
    details: Mapping[str, tuple[str, str]],
    *,
    short: bool = False,
) -> Table:
    """The summary as a table, a section for each setting, with what it rests on as its caption.

    A short one leaves out the NLLs' intervals, and cuts long names rather than numbers.
    """
    first = frame.iloc[0]
    reference = summary["reference"].iloc[0]
    devices = "; ".join(pd.concat([frame["device"], timed_on(frame)]).dropna().unique())
    by = [axis for axis in stats.axes(frame) if axis == "latent" or frame[axis].nunique() > 1]
    table = Table(
        title=f"Test NLL, nats per image, lower is better ({first['dataset']}, "
        f"{first['binarise']}, {estimator(first)})",
        caption=Text(
            "[ ]: 95 % intervals, of the NLL over seeds, of the paired difference to "
            + "\n".join([f"{reference} over seeds and images.", *_notes(summary, frame), devices])
        ),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption_justify="left",
    )
    marks = summary["caveat"].ne("").map({True: CAVEAT, False: ""})
    names = [*("D" if axis == "latent" else axis for axis in by), "prior"]
    names += ["seeds", "NLL", "difference", "", *details]
    rows = [
        [*(str(row[axis]) for axis in by), row["prior"] + mark, *_scores(row, short=short)]
        + [_detail(row, *detail) for detail in details.values()]
        for mark, (_, row) in zip(marks, summary.iterrows(), strict=True)
    ]
    for k, name in enumerate(names):
        least = max(len(cell) for cell in (name, *(row[k] for row in rows)))
        side: Literal["left", "right"] = "left" if name in ("prior", "") else "right"
        least = min(least, SHORTEST if short else 26) if name == "prior" else least
        cut = short and name == "prior"
        table.add_column(name, justify=side, no_wrap=not cut, overflow="ellipsis", min_width=least)
    for before, row in zip([None, *rows], rows, strict=False):
        if before and before[: len(by)] != row[: len(by)]:
            table.add_section()
        table.add_row(*(Text(cell) for cell in row))
    return table


def _number(value: Any, pattern: str) -> str:  # noqa: ANN401
    if pd.isna(value):
        return ""
    return nats(value, pattern) if pattern.endswith(("1f", "2f")) else format(value, pattern)


def _detail(row: pd.Series, column: str, pattern: str) -> str:
    left_out = column in SPEEDS and row["timing"] == "shared"
    return SHARED if left_out else _number(row[column], pattern)


def _span(row: pd.Series, low: str, high: str, pattern: str) -> str:
    return "" if pd.isna(row[low]) else f" [{nats(row[low], pattern)}, {nats(row[high], pattern)}]"


def _scores(row: pd.Series, *, short: bool) -> list[str]:
    """Seeds, NLL, difference and verdict of an arm."""
    seeds = f"{row['seeds']} ({row['mark']})" if row["mark"] else str(row["seeds"])
    if short and row["mark"]:
        seeds = f"{row['seeds']} of {row['seeds'] + sum(row[status] for status in UNSCORED)}"
    return [
        seeds,
        _number(row["nll"], ".2f") + ("" if short else _span(row, "nll_low", "nll_high", ".1f")),
        _number(row["difference"], "+.2f") + _span(row, "low", "high", "+.1f"),
        str(row["verdict"]),
    ]
