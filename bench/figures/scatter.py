"""Scatter plots of arms: test NLL against throughput, rate against distortion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bench.figures.axis_limits import BEYOND_AXIS, mark_beyond
from bench.figures.label_placement import name_points
from bench.figures.style import (
    COLUMN_INCHES,
    GREY,
    HALO,
    LIGHT_GREY,
    MARKERS,
    NLL_LABEL,
    PAGE_INCHES,
    WHITE_EDGE,
    NoDataError,
    Style,
    add_style_legend,
    few_seeds_note,
    footer,
    join_facts,
    legend_inches,
    make_figure,
    mark_diverged,
    styles,
    summarise_arms,
    theme,
    with_minus,
)
from bench.statistics.analysis import Analysis
from bench.statistics.arms import (
    THROUGHPUT,
    UNSCORED_STATUSES,
    add_intervals,
    timed_alone,
    timing_devices,
)
from bench.statistics.captions import CROSS, untimed
from bench.statistics.outliers import is_far, limit

__all__ = [
    "SPEED",
    "rate_distortion",
    "rate_table",
    "speed_table",
    "throughput_nll",
]


MAX_NAMED_PRIORS = 8
"""The largest number of priors that are named beside their paths instead of in a legend."""
SPEED = THROUGHPUT.removeprefix("time/")
RATE_DISTORTION = ("rate", "distortion")


def _draw_paths(
    table: pd.DataFrame, x: str, y: str, look: Mapping[str, Style], note: str
) -> tuple[Figure, Axes]:
    """Draws each prior as a path through its latent sizes, with intervals over seeds.

    Colour and dash show the prior, the marker the latent size.
    """
    latents = sorted(table["latent"].unique())
    named = len(look) <= MAX_NAMED_PRIORS  # beside their paths
    width = COLUMN_INCHES if len(look) <= 5 else (5.2 if named else PAGE_INCHES)
    keys = {} if named else look
    labels = [*keys, *(f"D = {d}" for d in latents)]
    figure = make_figure(width, max(2.6, 0.55 * width) + legend_inches(labels, width), note)
    ax = figure.subplots()
    marker = dict(zip(latents, cycle(MARKERS), strict=False))
    for label, style in look.items():
        rows = table[table["prior"] == label].sort_values("latent")
        ax.plot(rows[x], rows[y], color=style.colour, ls=style.dash, lw=1, alpha=0.75)
        for _, row in rows.iterrows():
            bar: dict[str, Any] = {"color": style.colour, "lw": 0.8, "alpha": 0.55, "gid": "span"}
            ax.plot([row[x]] * 2, [row[f"{y}_low"], row[f"{y}_high"]], **bar)
            ax.plot([row[f"{x}_low"], row[f"{x}_high"]], [row[y]] * 2, **bar)
            sign = marker[row["latent"]]
            edge = WHITE_EDGE if style.face == style.colour else WHITE_EDGE | {"mec": style.colour}
            ax.plot(row[x], row[y], sign, color=style.colour, ms=6, mfc=style.face, **edge)
    ax.margins(0.12)
    sns.despine(ax=ax)
    add_style_legend(figure, keys, latents)
    return figure, ax


def _name_paths(
    figure: Figure, ax: Axes, table: pd.DataFrame, x: str, y: str, look: Mapping[str, Style]
) -> None:
    """Writes each prior's name beside its path, unless there are so many that a legend does."""
    if len(look) > MAX_NAMED_PRIORS:
        return
    table = table[table[[x, y]].notna().all(axis=1)].sort_values("latent")
    last = ~table.duplicated("prior", keep="last")
    names = table["prior"].where(last, "").tolist()
    figure.draw_without_rendering()
    name_points(ax, table[[x, y]].to_numpy(), names, [look[p].colour for p in table["prior"]])


@theme()
def throughput_nll(analysis: Analysis) -> Figure:
    """Draws training throughput against test NLL: what a prior costs beside what it gains."""
    table, trials = speed_table(analysis), analysis.trials
    look, excluded = styles(analysis.priors), untimed(trials)
    if not table[[SPEED, "nll"]].notna().all(axis=1).any():
        reason = f"none: {excluded}" if excluded else "none"
        raise NoDataError(f"Expected an arm with both throughput and test NLL; got {reason}.")
    runs = trials[timed_alone(trials)]
    absurd = is_far(table["nll"], limit(table["nll"])) & table[SPEED].notna()
    note = join_facts(
        footer(trials.assign(device=timing_devices(runs))),
        "bars: 95 % t intervals over seeds, cut where they leave the axes",
        excluded,
        few_seeds_note(table["seeds"]),
        BEYOND_AXIS if absurd.any() else "",
    )
    figure, ax = _draw_paths(table[~absurd], SPEED, "nll", look, note)
    for _, row in table[absurd].iterrows():
        mark_beyond(ax, row[SPEED], row["nll"], look[row["prior"]].colour, inside=0.05)
    speeds = runs.groupby(["latent", "prior"])[THROUGHPUT].mean()
    lost = table[table["diverged"] > 0]
    places = [speeds.get(arm, np.nan) for arm in zip(lost["latent"], lost["prior"], strict=True)]
    mark_diverged(ax, places, [look[p].colour for p in lost["prior"]])
    ax.set_xscale("log")
    positive = runs[THROUGHPUT][runs[THROUGHPUT] > 0]
    low, high = float(positive.min()), float(positive.max())
    if high / low < 20:  # ticks at powers of ten alone could leave the axis without numbers
        narrow = high / low < 3
        ax.xaxis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set(xlim=(low / 1.35, high * 1.35), ylabel=NLL_LABEL)
    ax.set_xlabel("training images per second  (faster \N{RIGHTWARDS ARROW})")
    ax.grid()
    _name_paths(figure, ax, table[~absurd], SPEED, "nll", look)
    return figure


def speed_table(analysis: Analysis) -> pd.DataFrame:
    """Returns arms with the intervals of their throughput, over seeds that were timed alone."""
    trials = analysis.trials
    arms = summarise_arms(analysis)
    return add_intervals(arms, trials[timed_alone(trials)], {SPEED: [THROUGHPUT]})


@theme()
def rate_distortion(analysis: Analysis) -> Figure:
    """Draws the rate-distortion plane of the test set, with lines of equal ELBO.

    References:
        Fixing a Broken ELBO (Alemi et al., 2018)
        https://arxiv.org/abs/1711.00464
    """
    table = rate_table(analysis)
    look = styles(analysis.priors)
    if not table[[*RATE_DISTORTION]].notna().all(axis=1).any():
        raise NoDataError("Expected an arm with test rate and distortion; got none.")
    absurd = np.logical_or(*(is_far(table[c], limit(table[c])) for c in RATE_DISTORTION))
    note = join_facts(
        footer(analysis.trials),
        "means over complete seeds, with 95 % t intervals",
        few_seeds_note(table["seeds"]),
        BEYOND_AXIS if absurd.any() else "",
    )
    figure, ax = _draw_paths(table[~absurd], *RATE_DISTORTION, look, note)
    _draw_equal_elbo(ax, table["rate"])
    ax.set(xlabel="rate, nats per image", ylabel="distortion, nats per image")
    for k, (gid, row, words) in enumerate(_arms_outside(table, table[absurd])):
        text = f"{row['prior']}, D = {row['latent']}: {words}"
        ax.text(
            0.985, 0.965 - 0.05 * k, text, color=look[row["prior"]].colour, size=7, ha="right",
            va="center", transform=ax.transAxes, path_effects=HALO, gid=gid,
        )  # fmt: skip
    _name_paths(figure, ax, table[~absurd], *RATE_DISTORTION, look)
    return figure


def rate_table(analysis: Analysis) -> pd.DataFrame:
    """Returns arms with the intervals of rate and distortion."""
    columns = {name: [f"test/{name}"] for name in RATE_DISTORTION}
    return add_intervals(summarise_arms(analysis), analysis.trials, columns)


def _draw_equal_elbo(ax: Axes, rates: pd.Series) -> None:
    """Draws lines of equal ELBO, each named at the end that is farther from the arms."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    pad = 0.02 * (right - left)
    for total in MaxNLocator(7).tick_values(left + bottom, right + top):
        # the rates at which the line enters the axes and leaves them
        start, end = max(left, total - top), min(right, total - bottom)
        if end - start < 0.2 * (right - left):
            continue
        ax.plot([start, end], [total - start, total - end], color=LIGHT_GREY, lw=0.8, zorder=0)
        at_start = (rates - start).abs().min() > (rates - end).abs().min()
        rate = start + pad if at_start else end - pad
        label = with_minus(f"ELBO {-total:g}")
        ax.text(
            rate, total - rate, label, size=6.2, color=GREY, rotation=-45, va="bottom",
            ha="left" if at_start else "right",
            transform_rotates_text=True, rotation_mode="anchor", path_effects=HALO, zorder=1,
        )  # fmt: skip
    ax.set(xlim=(left, right), ylim=(bottom, top))


def _arms_outside(
    table: pd.DataFrame, absurd: pd.DataFrame
) -> Iterator[tuple[Literal["diverged", "beyond"], pd.Series, str]]:
    """Yields the arms without a place in the plane, lost or absurd, with words on each."""
    for _, row in table[table["diverged"] > 0].iterrows():
        tried = row["seeds"] + sum(row[status] for status in UNSCORED_STATUSES)
        yield "diverged", row, f"{row['diverged']} of {tried} {CROSS}"
    for _, row in absurd.iterrows():
        words = ", ".join(f"{name} {row[name]:.3g}" for name in RATE_DISTORTION)
        yield "beyond", row, f"{words} \N{RIGHTWARDS ARROW}"
