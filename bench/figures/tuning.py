"""The figure of a tuning: validation ELBO by learning rate."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.figures.axis_limits import BEYOND, beyond, span
from bench.figures.style import (
    EDGED,
    SOFT,
    NoDataError,
    Style,
    crosses,
    panels,
    styles,
    theme,
)
from bench.grid.tuning import mean_elbos
from bench.statistics.captions import CROSS, DOT
from bench.statistics.outliers import is_far, limit

__all__ = ["tuning_curves"]


@theme()
def tuning_curves(found: pd.DataFrame) -> Figure:
    """Draw the validation ELBO against the learning rate: a line a prior, the chosen one ringed.

    Small dots are the tuning seeds, the line is their mean, and a cross stands where one diverged.

    Arguments:
        found: A row a trial, as `read_tuning` returns.
    """
    if not (found["status"] == "complete").any():
        raise NoDataError("Expected a trial of the tuning that completed; got none.")
    look = styles([str(label) for label in dict.fromkeys(found["prior"])])
    where = ["latent", "net", "precision"]
    varying = [c for c in where if found[c].nunique() > 1]
    groups = list(found.groupby(where, sort=True))
    most = limit(found["valid_elbo"])
    note = _note(found) + (f"{DOT}{BEYOND}" if is_far(found["valid_elbo"], most).any() else "")
    figure, cells = panels(len(groups), note, size=(3.0, 2.6), extra=1.3)
    for ax, (key, rows) in zip(cells, groups, strict=True):
        for prior, style in look.items():
            _line(ax, rows[rows["prior"] == prior], style, most)
        names = dict(zip(where, key, strict=True))
        told = [f"D = {names[c]}" if c == "latent" else str(names[c]) for c in varying]
        _axes(ax, sorted(found["lr"].unique()), ", ".join(told))
        if is_far(rows["valid_elbo"], most).any():
            ax.set_ylim(*span(rows["valid_elbo"], most=most))
    for ax in cells[:: min(len(cells), 4)]:
        ax.set_ylabel("validation ELBO, nats per image\n(higher is better)")
    handles = [
        Line2D([], [], color=s.colour, ls=s.dash, marker=s.marker, ms=4, mfc=s.face, label=p)
        for p, s in look.items()
    ]
    handles.append(Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec=SOFT, label="chosen"))
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.6)
    return figure


def _note(found: pd.DataFrame) -> str:
    """Returns what the figure carries at its foot, as `look.footer` does for test scores."""
    first = found.iloc[0]
    epochs = ", ".join(f"{n}" for n in sorted(found["epochs"].unique()))
    seeds = ", ".join(f"{n}" for n in sorted(found["seed"].unique()))
    facts = [
        f"{first['dataset']}, {first['binarise']} binarisation",
        f"validation images, one sample an image, weights of the {first['select']} epoch",
        f"net {', '.join(found['net'].unique())}",
        f"epochs {epochs}",
        f"tuning seeds {seeds}, none of them in the comparison",
        *dict.fromkeys(device for device in found["device"] if device),
    ]
    lost = int((found["status"] == "diverged").sum())
    return DOT.join(facts + ([f"{CROSS} diverged: {lost} of {len(found)}"] if lost else []))


def _line(ax: Axes, rows: pd.DataFrame, style: Style, most: float) -> None:
    """Draws one prior in one panel; what lies beyond `most` is told at the edge."""
    if not len(rows):
        return
    means, colour = mean_elbos(rows), style.colour
    ax.plot(rows["lr"], rows["valid_elbo"], ".", color=colour, alpha=0.35, ms=4, mew=0)
    ax.plot(
        means.index, means, color=colour, ls=style.dash, marker=style.marker, ms=5,
        mfc=style.face, **EDGED,
    )  # fmt: skip
    for rate in means.index:
        seeds = rows["valid_elbo"][rows["lr"] == rate]
        if is_far(seeds, most).any():
            value = means[rate] if is_far(means[rate], most) else seeds.min()
            beyond(ax, float(rate), float(value), colour)
    best = rows["lr"][rows["chosen"]]
    if len(best):
        at = best.iloc[0]
        ax.plot(at, means[at], "o", ms=10, mfc="none", mec=colour, mew=1.2, gid="chosen")
    lost = rows["lr"][rows["status"] == "diverged"].unique()
    crosses(ax, lost, [colour] * len(lost))


def _axes(ax: Axes, rates: list[float], title: str) -> None:
    """Makes the x axis logarithmic, with ticks at the rates that were tried and no others."""
    ax.set(xscale="log", xlabel="learning rate", title=title)
    ax.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
    ax.margins(y=0.12)
    ax.xaxis.set_major_locator(FixedLocator(rates))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.grid(axis="y")
    sns.despine(ax=ax)
