"""From results to what a person reads: a table, sentences, figures and files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowvae.pareto import RELIABLE

from . import stats
from .command import RESULTS
from .figures import draw_all
from .results import Results

__all__ = ["conclude"]

DOUBTFUL = 0.1
"""The share of images with heavy-tailed weights above which a person is warned."""
WIDE = 150
"""The least width of a terminal, in characters, for the whole table."""
DETAILS = {
    "Holm p": ("p_holm", ".3f"),
    "k-hat>0.7": ("khat_high", ".0%"),
    "ELBO": ("elbo", ".2f"),
    "rate": ("rate", ".2f"),
    "dist.": ("distortion", ".2f"),
    "images/s": ("images_per_second", ",.0f"),
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
    results.frame.to_csv(folder / "trials.csv", index=False)
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
    console.print(_table(summary, results.frame, wide=console.width >= WIDE))
    words = [*stats.sentences(summary), *stats.stages(pairs), *stats.resolutions(summary)]
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


def _table(summary: pd.DataFrame, frame: pd.DataFrame, *, wide: bool) -> Table:
    """The summary as a table, a section for each setting, with what it rests on as its caption."""
    first = frame.iloc[0]
    reference = summary["reference"].iloc[0]
    devices = "; ".join(frame["device"].dropna().unique())
    by = [axis for axis in stats.axes(frame) if axis == "latent" or frame[axis].nunique() > 1]
    table = Table(
        title=f"Test NLL, nats per image, lower is better ({first['dataset']}, "
        f"{first['binarise']}, K = {first['nll_samples']}"
        + ("" if first["nll_precision"] == "float32" else f", {first['nll_precision']}")
        + ")",
        caption="[ ]: 95 % intervals, of the NLL over seeds, of the paired difference to "
        f"{reference} over seeds and images.\n{devices}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption_justify="left",
    )
    for axis in by:
        table.add_column("D" if axis == "latent" else axis, justify="right", no_wrap=True)
    table.add_column("prior", no_wrap=True, min_width=min(26, max(map(len, summary["prior"]))))
    columns = ["seeds", "NLL", "difference", "", *(DETAILS if wide else {})]
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    last = None
    for _, row in summary.iterrows():
        setting = tuple(row[axis] for axis in by)
        if last not in (None, setting):
            table.add_section()
        last = setting
        cells = [*map(str, setting), row["prior"], _seeds(row), *_scores(row)]
        if wide:
            cells += [_number(row[name], pattern) for name, pattern in DETAILS.values()]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _seeds(row: pd.Series) -> str:
    return f"{row['seeds']} ({row['mark']})" if row["mark"] else str(row["seeds"])


def _number(value: Any, pattern: str) -> str:  # noqa: ANN401
    return "" if pd.isna(value) else format(value, pattern)


def _span(row: pd.Series, low: str, high: str, pattern: str) -> str:
    return "" if pd.isna(row[low]) else f" [{row[low]:{pattern}}, {row[high]:{pattern}}]"


def _scores(row: pd.Series) -> list[str]:
    return [
        _number(row["nll"], ".2f") + _span(row, "nll_low", "nll_high", ".1f"),
        _number(row["difference"], "+.2f") + _span(row, "low", "high", "+.1f"),
        str(row["verdict"]),
    ]
