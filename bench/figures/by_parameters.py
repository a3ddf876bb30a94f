"""Figure of capacity: the test NLL against the number of the prior's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.figures.axis_limits import beyond_note, cut_y_axis, mark_beyond
from bench.figures.label_placement import name_points
from bench.figures.style import (
    COLUMN_INCHES,
    GREY,
    LIGHT_GREY,
    NLL_LABEL,
    PAGE_INCHES,
    NoDataError,
    Style,
    add_legend,
    few_seeds_note,
    footer,
    join_facts,
    legend_inches,
    make_panels,
    mark_diverged,
    set_log_ticks,
    styles,
    summarise_arms,
    theme,
)
from bench.statistics.analysis import Analysis
from bench.statistics.arms import POST_HOC, prior_spec
from bench.statistics.formatting import thousands
from bench.statistics.outliers import is_far, limit

__all__ = ["nll_by_parameters"]


MIN_ARMS = 3
"""The smallest number of arms with parameters for which the figure is drawn."""
OPTION_DASHES: dict[str, Any] = {"transforms": "-", "hidden": (0, (4, 1.5))}
OTHER_DASH = (0, (1, 1.3))


@theme()
def nll_by_parameters(analysis: Analysis) -> Figure:
    """Draws the test NLL by the number of the prior's parameters, a panel a latent size.

    Lines join arms of one prior that differ in one option only, such as depth or width.
    """
    table = summarise_arms(analysis)
    table = table[table["prior_parameters"].notna()]
    learned = table[(table["prior_parameters"] > 0) & table["nll"].notna()]
    if (count := learned["prior"].nunique()) < MIN_ARMS:
        raise NoDataError(f"Expected {MIN_ARMS} arms with parameters or more; got {count}.")
    look = styles(list(dict.fromkeys(prior_spec(label).name for label in analysis.priors)))
    latents, low = sorted(table["latent"].unique()), float(learned["prior_parameters"].min())
    zero = 10 ** (np.floor(np.log10(low)) - 0.8)  # the place of no parameters on a log axis
    table = table.assign(x=table["prior_parameters"].mask(table["prior_parameters"] == 0, zero))
    bound = limit(table["nll"])
    note = join_facts(
        footer(analysis.trials),
        "bars: 95 % t interval over seeds, test images fixed",
        "lines: one option varied",
        "hollow: fitted post hoc" if table["prior"].str.endswith(POST_HOC).any() else "",
        few_seeds_note(table["seeds"]),
        beyond_note(table["nll"], bound),
    )
    varied = {option for option, _ in _option_sweeps(table)}
    labels = [*look, *sorted({_option_label(option) for option in varied})]
    across = min(len(latents), 2)
    width = COLUMN_INCHES if len(latents) == 1 and len(look) < 6 else PAGE_INCHES
    high = 2.9 + legend_inches(labels, width) / -(-len(latents) // across)
    figure, cells = make_panels(len(latents), note, size=(width / across, high), across=across)
    for k, (ax, latent) in enumerate(zip(cells, latents, strict=True)):
        _draw_panel(ax, table[table["latent"] == latent], look, bound)
        _format_x_axis(ax, table["x"], zero)
        ax.set(title=f"D = {latent}", ylabel=NLL_LABEL if k % across == 0 else "")
    _add_legend(figure, look, varied)
    figure.draw_without_rendering()  # points have their final positions only after the layout
    for ax, latent in zip(cells, latents, strict=True):
        near = (table["latent"] == latent) & table["nll"].notna() & ~is_far(table["nll"], bound)
        _name_arms(ax, table[near], look)
    return figure


def _option_sweeps(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields each option with arms of one prior and latent size that differ in it only."""
    joint = table[~table["prior"].str.endswith(POST_HOC) & table["nll"].notna()]
    names = joint["prior"].map(lambda label: prior_spec(label).name)
    for _, family in joint.groupby([joint["latent"], names], sort=False):
        options = [dict(prior_spec(label).options) for label in family["prior"]]
        for option in dict.fromkeys(name for arm in options for name in arm):
            rest = [str(sorted((k, v) for k, v in arm.items() if k != option)) for arm in options]
            for _, rows in family.groupby(rest, sort=False):
                if rows["prior_parameters"].nunique() > 1:
                    yield option, rows.sort_values("prior_parameters")


def _option_label(option: str) -> str:
    return option if option in OPTION_DASHES else "other option"


def _draw_panel(ax: Axes, rows: pd.DataFrame, look: Mapping[str, Style], bound: float) -> None:
    """Draws one latent size: joined arms, intervals, points, and crosses for diverged trials.

    An NLL larger than `bound` is written at the edge.
    """
    for option, sweep in _option_sweeps(rows):
        style = look[prior_spec(sweep["prior"].iloc[0]).name]
        ax.plot(
            sweep["x"], sweep["nll"], color=style.colour, lw=1, alpha=0.7, gid=option,
            ls=OPTION_DASHES.get(option, OTHER_DASH),
        )  # fmt: skip
    for _, row in rows.iterrows():
        style = look[prior_spec(row["prior"]).name]
        face = "white" if row["prior"].endswith(POST_HOC) else style.colour
        if is_far(row["nll"], bound):
            mark_beyond(ax, row["x"], row["nll"], style.colour, inside=0.05)
            continue
        ax.plot([row["x"]] * 2, [row["nll_low"], row["nll_high"]], color=style.colour, lw=1)
        ax.plot(
            row["x"], row["nll"], marker=style.marker, ms=5.5, mfc=face, zorder=4, gid="arm",
            mec=style.colour if face == "white" else "white", mew=1 if face == "white" else 0.5,
        )  # fmt: skip
    lost = rows[rows["diverged"] > 0]
    mark_diverged(ax, lost["x"], [look[prior_spec(label).name].colour for label in lost["prior"]])
    ax.margins(y=0.12)
    cut_y_axis(ax, rows["nll"], rows[["nll_low", "nll_high"]], bound=bound)
    ax.grid(axis="y")
    sns.despine(ax=ax)


def _format_x_axis(ax: Axes, x: pd.Series, zero: float) -> None:
    """Makes the x axis logarithmic, with a place for no parameters at its left edge."""
    low, high = float(x[x > zero].min()), float(x.max())
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    step = -(-(last - first + 1) // 5)
    factors = (1, 3) if high / low < 30 else (1,)
    ticks = [m * 10.0**k for k in range(first, last + 1, step) for m in factors]
    has_zero = bool((x == zero).any())
    set_log_ticks(
        ax.xaxis,
        [zero] * has_zero + [tick for tick in ticks if tick > zero],
        lambda value: "0" if has_zero and value <= 1.01 * zero else thousands(value),
    )
    if has_zero:
        ax.axvline(2.2 * zero, color=LIGHT_GREY, lw=0.8, ls=(0, (2, 2)), zorder=0)
    left = zero / 1.8 if has_zero else low / 1.6
    ax.set(xlim=(left, high * 2.2), xlabel="parameters of the prior")


def _add_legend(figure: Figure, look: Mapping[str, Style], varied: set[str]) -> None:
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, ls="", ms=5, label=name)
        for name, s in look.items()
    ]
    known = [option for option in OPTION_DASHES if option in varied]
    for name in dict.fromkeys([*known, *map(_option_label, sorted(varied))]):
        dash = OPTION_DASHES.get(name, OTHER_DASH)
        handles.append(Line2D([], [], color=GREY, lw=1, ls=dash, label=name))
    add_legend(figure, handles)


def _options_text(label: str) -> str:
    """Returns an arm's options in short: `transforms=1`, or `64x64` for hidden layers."""
    spec = prior_spec(label)
    parts = [value if key == "hidden" else f"{key}={value}" for key, value in spec.options]
    return ", ".join(parts) or spec.name


def _name_arms(ax: Axes, rows: pd.DataFrame, look: Mapping[str, Style]) -> None:
    """Names the arms of each prior that is drawn with several options."""
    rows = rows[~rows["prior"].str.endswith(POST_HOC)]
    names = rows["prior"].map(lambda label: prior_spec(label).name)
    several = names.map(names.value_counts()) > 1
    texts = rows["prior"].map(_options_text).where(several, "")
    name_points(ax, rows[["x", "nll"]].to_numpy(), list(texts), [look[n].colour for n in names])
