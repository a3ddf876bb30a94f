"""Figure of a tuning: validation ELBO by learning rate."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.figures.axis_limits import beyond_note, cut_y_axis, mark_beyond
from bench.figures.style import (
    GREY,
    WHITE_EDGE,
    NoDataError,
    Style,
    join_facts,
    make_panels,
    mark_diverged,
    set_log_ticks,
    styles,
    theme,
)
from bench.grid.tuning import mean_elbos
from bench.statistics.captions import CROSS
from bench.statistics.outliers import is_far, limit

__all__ = ["tuning_curves"]


@theme()
def tuning_curves(trials: pd.DataFrame) -> Figure:
    """Draws the validation ELBO by learning rate: a line a prior, a ring at the chosen rate.

    Small dots are the tuning seeds, the line is their mean, a cross marks a diverged seed.

    Arguments:
        trials: One row a trial, as `read_tuning` returns.
    """
    if not (trials["status"] == "complete").any():
        raise NoDataError("Expected a trial of the tuning that completed; got none.")
    look = styles([str(label) for label in dict.fromkeys(trials["prior"])])
    columns = ["latent", "net", "precision"]
    varying = [column for column in columns if trials[column].nunique() > 1]
    settings = list(trials.groupby(columns, sort=True))
    elbos, rates = trials["valid_elbo"], sorted(trials["lr"].unique())
    bound = limit(elbos)
    note = join_facts(_footer(trials), beyond_note(elbos, bound))
    figure, cells = make_panels(len(settings), note, size=(3.0, 2.6), extra=1.3)
    for ax, (setting, rows) in zip(cells, settings, strict=True):
        for prior, style in look.items():
            _draw_prior(ax, rows[rows["prior"] == prior], style, bound)
        value_of = dict(zip(columns, setting, strict=True))
        words = [f"D = {value_of[c]}" if c == "latent" else str(value_of[c]) for c in varying]
        set_log_ticks(ax.xaxis, rates)
        ax.set(xlabel="learning rate", title=", ".join(words))
        ax.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
        ax.margins(y=0.12)
        ax.grid(axis="y")
        sns.despine(ax=ax)
        cut_y_axis(ax, rows["valid_elbo"], bound=bound)
    for ax in cells[:: min(len(cells), 4)]:
        ax.set_ylabel("validation ELBO, nats per image\n(higher is better)")
    handles = [
        Line2D([], [], color=s.colour, ls=s.dash, marker=s.marker, ms=4, mfc=s.face, label=p)
        for p, s in look.items()
    ]
    handles.append(Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec=GREY, label="chosen"))
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.6)
    return figure


def _footer(trials: pd.DataFrame) -> str:
    """Returns the facts of the figure, as `style.footer` does for test scores."""
    first = trials.iloc[0]
    lost = int((trials["status"] == "diverged").sum())
    return join_facts(
        f"{first['dataset']}, {first['binarise']} binarisation",
        f"validation images, one sample an image, weights of the {first['select']} epoch",
        f"net {', '.join(trials['net'].unique())}",
        f"epochs {', '.join(map(str, sorted(trials['epochs'].unique())))}",
        f"tuning seeds {', '.join(map(str, sorted(trials['seed'].unique())))}, none of them in "
        "the comparison",
        *dict.fromkeys(trials["device"]),
        f"{CROSS} diverged: {lost} of {len(trials)}" if lost else "",
    )


def _draw_prior(ax: Axes, rows: pd.DataFrame, style: Style, bound: float) -> None:
    """Draws one prior in one panel; an ELBO larger than `bound` in size is written at the edge."""
    if not len(rows):
        return
    means, colour = mean_elbos(rows), style.colour
    ax.plot(rows["lr"], rows["valid_elbo"], ".", color=colour, alpha=0.35, ms=4, mew=0)
    ax.plot(
        means.index, means, color=colour, ls=style.dash, marker=style.marker, ms=5,
        mfc=style.face, **WHITE_EDGE,
    )  # fmt: skip
    for rate in means.index:
        seeds = rows["valid_elbo"][rows["lr"] == rate]
        if is_far(seeds, bound).any():
            value = means[rate] if is_far(means[rate], bound) else seeds.min()
            mark_beyond(ax, float(rate), float(value), colour)
    chosen = rows["lr"][rows["chosen"]]
    if len(chosen):
        rate = chosen.iloc[0]
        ax.plot(rate, means[rate], "o", ms=10, mfc="none", mec=colour, mew=1.2, gid="chosen")
    lost = rows["lr"][rows["status"] == "diverged"].unique()
    mark_diverged(ax, lost, [colour] * len(lost))
