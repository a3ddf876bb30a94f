"""The table of a tuning on a terminal, and its files."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.figures.style import (
    NoDataError,
    write_figure,
)
from bench.figures.tuning import tuning_curves
from bench.grid.tuning import edge_warnings, mean_elbos, tuned_settings
from bench.statistics.formatting import nats
from bench.system.paths import RESULTS_FOLDER

__all__ = ["conclude_tuning"]


def conclude_tuning(console: Console, name: str, found: pd.DataFrame) -> None:
    """Writes the tuning's table and figure under `results/local/NAME`, and prints what it chose.

    Arguments:
        console: Where to print.
        name: The grid's name.
        found: What `read_tuning` returned for it.
    """
    folder = RESULTS_FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(_table(found))
    for sentence in edge_warnings(found):
        console.print(sentence, markup=False, soft_wrap=True)
    try:
        written = write_figure(tuning_curves(found), folder / "tuning", found, 200)
    except NoDataError:  # all diverged, as the table says
        found.to_csv(folder / "tuning.csv", index=False)
        written = []
    for path in written:
        if path.suffix != ".svg":
            console.print(str(path), markup=False, soft_wrap=True)
    console.print()


def _table(found: pd.DataFrame) -> Table:
    """The validation ELBO by setting and rate, and the rate that was chosen."""
    seeds, rates = found["seed"].nunique(), sorted(found["lr"].unique())
    table = Table(
        title=f"Tuning: validation ELBO, nats per image, higher is better "
        f"(mean over {seeds} seed{'s' if seeds > 1 else ''})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("prior", no_wrap=True)
    for rate in rates:
        table.add_column(f"lr {rate:g}", justify="right", no_wrap=True)
    table.add_column("chosen", justify="right", no_wrap=True)
    for where, rows in tuned_settings(found):
        means, chosen = mean_elbos(rows), rows["lr"][rows["chosen"]]
        cells = [_cell(rows[rows["lr"] == rate], means[rate]) for rate in rates]
        table.add_row(Text(where), *cells, f"{chosen.iloc[0]:g}" if len(chosen) else "none")
    return table


def _cell(rows: pd.DataFrame, mean: float) -> str:
    lost = rows["status"][rows["status"] != "complete"]
    return nats(mean) if not len(lost) else str(lost.iloc[0])
