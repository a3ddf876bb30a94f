"""Sheets of panels, one a prior and latent size: the frame that pictures of models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.figures.style import (
    COLUMN,
    LOST,
    PAGE,
    SOFT,
    NoDataError,
    one_arm_each,
    panels,
)
from bench.statistics import frames
from bench.statistics.arms import UNSCORED_STATUSES
from bench.statistics.formatting import nats

__all__ = [
    "NAMED",
    "POINTS",
    "chosen_models",
    "fact",
    "fill_sheet",
    "make_sheet",
    "seed_of",
    "shown_models",
]


POINTS = 5000
"""The most points in a map."""
NAMED = 12
"""The most classes that are named in a map."""


def chosen_models(
    frame: pd.DataFrame, latent: int, kept: Mapping[str, Any]
) -> dict[str, pd.Series | None]:
    """Return one run a prior: the lowest seed that all have complete, else each prior's lowest."""
    one_arm_each(frame)
    runs = frames.validate(frame)
    runs = runs[(runs["latent"] == latent) & (runs["status"] == "complete")]
    runs = runs[runs["run_id"].isin(list(kept))].sort_values("seed")
    common = runs.groupby("seed")["prior"].nunique()
    seed = next(iter(common.index[common == runs["prior"].nunique()]), None)
    found: dict[str, pd.Series | None] = {}
    for label in frames.priors(frame[frame["latent"] == latent]):
        mine = runs[runs["prior"] == label]
        mine = mine[mine["seed"] == seed] if (mine["seed"] == seed).any() else mine
        found[label] = mine.iloc[0] if len(mine) else None
    return found


class Sheet(NamedTuple):
    """Square panels with a title each: their figure, inches, and points of the titles."""

    figure: Figure
    cells: list[Axes]
    width: float
    titles: list[str]
    size: float


def make_sheet(labels: Sequence[str], note: str) -> Sheet:
    """Return a figure of square panels, one a label, whose titles are the labels in lines.

    They fill the width of a page, in rows as even as can be; two or fewer fill that of a column.
    """
    count = len(labels)
    across = min((4, 3, 5), key=lambda k: (-(-count // k) * k - count, k != 4))
    across = count if count <= 4 else (5 if count > 12 else across)
    width = (COLUMN if count <= 2 else PAGE) / across - 0.1
    titles = [_lines(label, int(14 * width)) for label in labels]
    longest = max(len(line) for lines in titles for line in lines)
    rows = [max(map(len, titles[k : k + across])) for k in range(0, count, across)]
    high = width + 0.25 + 0.135 * sum(rows) / len(rows)
    figure, cells = panels(count, note, size=(width + 0.1, high), across=across)
    size = max(6.2, min(9.0, 95 * width / longest))
    return Sheet(figure, cells, width, ["\n".join(lines) for lines in titles], size)


def _lines(label: str, most: int) -> list[str]:
    """Return a label in lines: where it is long, its options have their own, of `most` letters."""
    if len(label) <= most:
        return [label]
    name, bracket, options = label.partition("[")
    lines = [""]
    for part in (bracket + options).replace(",", ",\n").splitlines():
        if len(lines[-1]) + len(part) <= most:
            lines[-1] += part
        else:
            lines.append(part)
    return [name, *filter(None, lines)]


def fill_sheet(
    sheet: Sheet, k: int, run: pd.Series | None, arm: pd.DataFrame, colour: str
) -> Axes:
    """Title panel `k` with its prior, and say which run it is of, or why there is none.

    Arguments:
        sheet: The panels.
        k: The number of this one.
        run: The run that is shown, if any.
        arm: All runs of the prior at this latent size.
        colour: The prior's.
    """
    ax = sheet.cells[k]
    ax.set(xticks=[], yticks=[])
    ax.set_title(
        sheet.titles[k], color=colour, weight="bold", pad=4, size=sheet.size, linespacing=1.1
    )
    if run is None:
        sns.despine(ax=ax, left=True, bottom=True)
        lost = arm["status"].value_counts()
        told = [f"{lost[s]} of {len(arm)} {s}" for s in UNSCORED_STATUSES if s in lost]
        words = "\n".join(["no complete seed", *told] if len(told) else ["no pictures kept"])
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top"}
        ax.text(0.5, 0.52, words, color=SOFT, size=7, linespacing=1.5, gid="absent", **place)
        if "diverged" in lost:
            ax.plot(0.5, 0.64, "x", color=colour, transform=ax.transAxes, **LOST | {"ms": 12})
        return ax
    fact(ax, f"seed {run['seed']}, test NLL {nats(run['test/nll'], '.1f')}")
    return ax


def fact(ax: Axes, words: str) -> None:
    """Write a line below a panel."""
    ax.set_xlabel(words, size=6.5, color=SOFT, loc="left", labelpad=3)


def shown_models(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]], what: str
) -> tuple[dict[str, pd.Series | None], dict[str, Mapping[str, NDArray[Any]]]]:
    """Return the run of each prior at D = 2, and the maps of those that have `what`."""
    kept = {run: arrays for run, arrays in maps.items() if what in arrays}
    chosen = chosen_models(frame, 2, kept)
    shown = {p: kept[r["run_id"]] for p, r in chosen.items() if r is not None}
    if not shown:
        raise NoDataError(f"Expected a complete run at D = 2 with its {what}; got none.")
    return chosen, shown


def seed_of(run: pd.Series | None) -> int:
    """Returns the seed of a trial as the tables have it."""
    assert run is not None, "A prior that is shown has a run."
    return int(run["seed"])
