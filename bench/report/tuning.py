"""Table of a tuning on a terminal, and its files."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.figures.style import NoDataError, write_figure
from bench.figures.tuning import tuning_curves
from bench.grid.tuning import edge_warnings, mean_elbos, tuned_settings
from bench.statistics.formatting import nats
from bench.system.paths import RESULTS_FOLDER

__all__ = ["conclude_tuning"]


def conclude_tuning(console: Console, name: str, trials: pd.DataFrame) -> None:
    """Writes a tuning's table and figure under `results/local/NAME`; prints the chosen rates.

    Arguments:
        console: Where to print.
        name: The grid's name.
        trials: The trials of the tuning, as `read_tuning` returns them.
    """
    folder = RESULTS_FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(_table(trials))
    for sentence in edge_warnings(trials):
        console.print(sentence, markup=False, soft_wrap=True)
    try:
        written = write_figure(tuning_curves(trials), folder / "tuning", trials, 200)
    except NoDataError:  # all trials diverged, as the table shows
        trials.to_csv(folder / "tuning.csv", index=False)
        written = []
    for path in written:
        if path.suffix != ".svg":
            console.print(str(path), markup=False, soft_wrap=True)
    console.print()


def _table(trials: pd.DataFrame) -> Table:
    """Returns the validation ELBO by setting and rate, and the chosen rate."""
    seeds, rates = trials["seed"].nunique(), sorted(trials["lr"].unique())
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
    for setting, rows in tuned_settings(trials):
        means, chosen = mean_elbos(rows), rows["lr"][rows["chosen"]]
        cells = [_cell(rows[rows["lr"] == rate], means[rate]) for rate in rates]
        table.add_row(Text(setting), *cells, f"{chosen.iloc[0]:g}" if len(chosen) else "none")
    return table


def _cell(rows: pd.DataFrame, mean: float) -> str:
    lost = rows["status"][rows["status"] != "complete"]
    return nats(mean) if not len(lost) else str(lost.iloc[0])
