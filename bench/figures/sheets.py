"""Sheets of square panels, one for each prior, that pictures of models are drawn in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.figures.style import (
    COLUMN_INCHES,
    GREY,
    LOST_MARK,
    PAGE_INCHES,
    NoDataError,
    check_one_arm_per_size,
    make_panels,
)
from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.statistics.arms import UNSCORED_STATUSES
from bench.statistics.formatting import nats

__all__ = [
    "Sheet",
    "choose_models",
    "choose_models_with",
    "fill_panel",
    "make_sheet",
    "seed_of",
    "write_below",
]


def choose_models(
    analysis: Analysis, latent: int, pictures: Mapping[str, Any]
) -> dict[str, pd.Series | None]:
    """Returns one run for each prior, of those with pictures; None where there is none.

    Its seed is the lowest that is complete for all priors, else the lowest of the prior.
    """
    check_one_arm_per_size(analysis.trials)
    runs = analysis.complete
    runs = runs[runs["latent"] == latent]
    runs = runs[runs["run_id"].isin(list(pictures))].sort_values("seed")
    counts = runs.groupby("seed")["prior"].nunique()
    common = next(iter(counts.index[counts == runs["prior"].nunique()]), None)
    chosen: dict[str, pd.Series | None] = {}
    for label in frames.priors(analysis.trials[analysis.trials["latent"] == latent]):
        seeds = runs[runs["prior"] == label]
        seeds = seeds[seeds["seed"] == common] if (seeds["seed"] == common).any() else seeds
        chosen[label] = seeds.iloc[0] if len(seeds) else None
    return chosen


def choose_models_with(
    part: str, analysis: Analysis
) -> tuple[dict[str, pd.Series | None], dict[str, Mapping[str, NDArray[Any]]]]:
    """Returns the run of each prior at D = 2, and the maps of the runs that have `part`."""
    having = {run: arrays for run, arrays in analysis.maps.items() if part in arrays}
    chosen = choose_models(analysis, 2, having)
    shown = {p: having[run["run_id"]] for p, run in chosen.items() if run is not None}
    if not shown:
        raise NoDataError(f"Expected a complete run at D = 2 with its {part}; got none.")
    return chosen, shown


def seed_of(run: pd.Series | None) -> int:
    """Returns the seed of a run that is shown."""
    assert run is not None, "A prior that is shown has a run."
    return int(run["seed"])


class Sheet(NamedTuple):
    """Square panels with titles.

    Arguments:
        figure: The figure.
        cells: The panels.
        width: The width of a panel, inches.
        titles: The title of each panel, in lines.
        points: The font size of the titles.
    """

    figure: Figure
    cells: list[Axes]
    width: float
    titles: list[str]
    points: float


def make_sheet(labels: Sequence[str], note: str) -> Sheet:
    """Returns a sheet of square panels with the labels as titles, and `note` as its footer.

    It is as wide as a page, with rows as equal as possible; two panels or fewer as a column.
    """
    count = len(labels)
    across = min((4, 3, 5), key=lambda k: (-(-count // k) * k - count, k != 4))
    across = count if count <= 4 else (5 if count > 12 else across)
    width = (COLUMN_INCHES if count <= 2 else PAGE_INCHES) / across - 0.1
    titles = [_wrap_label(label, int(14 * width)) for label in labels]
    longest = max(len(line) for lines in titles for line in lines)
    rows = [max(map(len, titles[k : k + across])) for k in range(0, count, across)]
    high = width + 0.25 + 0.135 * sum(rows) / len(rows)
    figure, cells = make_panels(count, note, size=(width + 0.1, high), across=across)
    points = max(6.2, min(9.0, 95 * width / longest))
    return Sheet(figure, cells, width, ["\n".join(lines) for lines in titles], points)


def _wrap_label(label: str, length: int) -> list[str]:
    """Returns a label in lines of at most `length` letters; a long one is broken at options."""
    if len(label) <= length:
        return [label]
    name, bracket, options = label.partition("[")
    lines = [""]
    for part in (bracket + options).replace(",", ",\n").splitlines():
        if len(lines[-1]) + len(part) <= length:
            lines[-1] += part
        else:
            lines.append(part)
    return [name, *filter(None, lines)]


def fill_panel(
    sheet: Sheet, k: int, run: pd.Series | None, arm: pd.DataFrame, colour: str
) -> Axes:
    """Returns panel `k` with its prior as title, and its run below it, or why there is none.

    Arguments:
        sheet: The panels.
        k: The index of the panel.
        run: The run that is shown, if any.
        arm: All runs of the prior at this latent size.
        colour: The colour of the prior.
    """
    ax = sheet.cells[k]
    ax.set(xticks=[], yticks=[])
    ax.set_title(
        sheet.titles[k], color=colour, weight="bold", pad=4, size=sheet.points, linespacing=1.1
    )
    if run is None:
        sns.despine(ax=ax, left=True, bottom=True)
        lost = arm["status"].value_counts()
        counts = [f"{lost[s]} of {len(arm)} {s}" for s in UNSCORED_STATUSES if s in lost]
        words = "\n".join(["no complete seed", *counts] if counts else ["no pictures kept"])
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top"}
        ax.text(0.5, 0.52, words, color=GREY, size=7, linespacing=1.5, gid="absent", **place)
        if "diverged" in lost:
            ax.plot(0.5, 0.64, "x", color=colour, transform=ax.transAxes, **LOST_MARK | {"ms": 12})
        return ax
    write_below(ax, f"seed {run['seed']}, test NLL {nats(run['test/nll'], '.1f')}")
    return ax


def write_below(ax: Axes, words: str) -> None:
    """Writes a line below a panel."""
    ax.set_xlabel(words, size=6.5, color=GREY, loc="left", labelpad=3)
