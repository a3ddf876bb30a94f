"""Draw arms in a plane of two numbers: what speed costs, and how a bound is split."""

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

from bench.figures.axis_limits import BEYOND, beyond
from bench.figures.label_placement import beside
from bench.figures.style import (
    BELOW_THREE,
    COLUMN,
    EDGED,
    FAINT,
    HALO,
    MARKERS,
    NLL,
    PAGE,
    SOFT,
    NoDataError,
    Style,
    arms,
    blank,
    crosses,
    footer,
    key_height,
    legend,
    styles,
    theme,
)
from bench.statistics import frames
from bench.statistics.arms import (
    THROUGHPUT,
    UNSCORED_STATUSES,
    add_intervals,
    timed_alone,
    timing_devices,
)
from bench.statistics.captions import CROSS, DOT, untimed
from bench.statistics.outliers import is_far, limit

__all__ = ["SPEED", "rate_distortion", "split", "throughput_nll", "timed_arms"]


NAMED = 8
"""The most priors that are named beside their paths, and not in a key."""
SPEED = THROUGHPUT.removeprefix("time/")
PLANE = ("rate", "distortion")


def _plane(
    table: pd.DataFrame, x: str, y: str, look: Mapping[str, Style], note: str
) -> tuple[Figure, Axes]:
    """Draw each prior as a path through its latent sizes: colour and dash the prior, marker D.

    A bar is an interval over seeds.
    """
    latents = sorted(table["latent"].unique())
    few = len(look) <= NAMED  # which have their names beside them, and no key
    width = COLUMN if len(look) <= 5 else (5.2 if few else PAGE)
    keys = {} if few else look
    words = [*keys, *(f"D = {d}" for d in latents)]
    figure = blank(width, max(2.6, 0.55 * width) + key_height(words, width), note)
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
            edge = EDGED if style.face == style.colour else EDGED | {"mec": style.colour}
            ax.plot(row[x], row[y], sign, color=style.colour, ms=6, mfc=style.face, **edge)
    ax.margins(0.12)
    sns.despine(ax=ax)
    legend(figure, keys, latents)
    return figure, ax


def _named(
    figure: Figure, ax: Axes, table: pd.DataFrame, x: str, y: str, look: Mapping[str, Style]
) -> None:
    """Write each prior's name beside its path, where they are few enough to have no key."""
    if len(look) > NAMED:
        return
    table = table[table[[x, y]].notna().all(axis=1)].sort_values("latent")
    last = ~table.duplicated("prior", keep="last")
    names = table["prior"].where(last, "").tolist()
    figure.draw_without_rendering()
    beside(ax, table[[x, y]].to_numpy(), names, [look[p].colour for p in table["prior"]])


@theme()
def throughput_nll(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw training throughput against test NLL: what a prior costs beside what it brings."""
    table = timed_arms(arms(frame, table=table), frame)
    look, left_out = styles(frames.priors(frame)), untimed(frame)
    if not table[[SPEED, "nll"]].notna().all(axis=1).any():
        reason = f"none: {left_out}" if left_out else "none"
        raise NoDataError(f"Expected an arm with both throughput and test NLL; got {reason}.")
    fair = frame[timed_alone(frame)]
    note = footer(frame.assign(device=timing_devices(fair)))
    note += f"{DOT}bars: 95 % t intervals over seeds, cut where they leave the axes"
    note += f"{DOT}{left_out}" if left_out else ""
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    far = is_far(table["nll"], limit(table["nll"])) & table[SPEED].notna()
    note += f"{DOT}{BEYOND}" if far.any() else ""
    figure, ax = _plane(table[~far], SPEED, "nll", look, note)
    colours = table["prior"].map(lambda p: look[p].colour)
    for _, row in table[far].iterrows():
        beyond(ax, row[SPEED], row["nll"], look[row["prior"]].colour, inside=0.05)
    speeds = fair.groupby(["latent", "prior"])[THROUGHPUT].mean()
    lost = table[table["diverged"] > 0]
    where = [
        speeds.get((d, p), np.nan) for d, p in zip(lost["latent"], lost["prior"], strict=True)
    ]
    crosses(ax, where, colours[lost.index].tolist())
    ax.set_xscale("log")
    each = fair[THROUGHPUT][fair[THROUGHPUT] > 0]
    low, high = float(each.min()), float(each.max())
    if high / low < 20:  # a decade's ticks alone would leave the axis without numbers
        near = high / low < 3
        ax.xaxis.set_major_locator(MaxNLocator(4) if near else LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set(xlim=(low / 1.35, high * 1.35), ylabel=NLL)
    ax.set_xlabel("training images per second  (faster \N{RIGHTWARDS ARROW})")
    ax.grid()
    _named(figure, ax, table[~far], SPEED, "nll", look)
    return figure


def timed_arms(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return arms with the intervals of their speed, over seeds that were timed alone."""
    settled = frames.validate(frame)
    return add_intervals(table, settled[timed_alone(settled)], {SPEED: [THROUGHPUT]})


@theme()
def rate_distortion(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw the rate-distortion plane of the test set, with lines of equal ELBO.

    References:
        Fixing a Broken ELBO (Alemi et al., 2018)
        https://arxiv.org/abs/1711.00464
    """
    table, look = split(arms(frame, table=table), frame), styles(frames.priors(frame))
    if not table[["rate", "distortion"]].notna().all(axis=1).any():
        raise NoDataError("Expected an arm with test rate and distortion; got none.")
    note = f"{footer(frame)}{DOT}means over complete seeds, with 95 % t intervals"
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    far = np.logical_or(*(is_far(table[name], limit(table[name])) for name in PLANE))
    note += f"{DOT}{BEYOND}" if far.any() else ""
    figure, ax = _plane(table[~far], *PLANE, look, note)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for total in MaxNLocator(7).tick_values(left + bottom, right + top):
        # from where the line enters the axes at the top or left to where it leaves them
        start, end = max(left, total - top), min(right, total - bottom)
        if end - start < 0.2 * (right - left):
            continue
        ax.plot([start, end], [total - start, total - end], color=FAINT, lw=0.8, zorder=0)
        at, side = _free_end(start, end, table["rate"], 0.02 * (right - left))
        label = f"ELBO {-total:g}".replace("-", "\N{MINUS SIGN}")
        ax.text(
            at, total - at, label, size=6.2, color=SOFT, rotation=-45, va="bottom", ha=side,
            transform_rotates_text=True, rotation_mode="anchor", path_effects=HALO, zorder=1,
        )  # fmt: skip
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set(xlabel="rate, nats per image", ylabel="distortion, nats per image")
    for k, (gid, row, words) in enumerate(_absent(table, table[far])):
        text = f"{row['prior']}, D = {row['latent']}: {words}"
        ax.text(
            0.985, 0.965 - 0.05 * k, text, color=look[row["prior"]].colour, size=7, ha="right",
            va="center", transform=ax.transAxes, path_effects=HALO, gid=gid,
        )  # fmt: skip
    _named(figure, ax, table[~far], *PLANE, look)
    return figure


def split(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return arms with the intervals of rate and distortion."""
    return add_intervals(table, frames.validate(frame), {name: [f"test/{name}"] for name in PLANE})


def _free_end(
    start: float, end: float, taken: pd.Series, pad: float
) -> tuple[float, Literal["left", "right"]]:
    """Return the end of a line that is farther from what is drawn, and where its words begin."""
    if (taken - start).abs().min() > (taken - end).abs().min():
        return start + pad, "left"
    return end - pad, "right"


def _absent(
    table: pd.DataFrame, far: pd.DataFrame
) -> Iterator[tuple[Literal["diverged", "beyond"], pd.Series, str]]:
    """Yield what has no place in the plane: lost seeds, and arms far off."""
    for _, row in table[table["diverged"] > 0].iterrows():
        tried = row["seeds"] + sum(row[status] for status in UNSCORED_STATUSES)
        yield "diverged", row, f"{row['diverged']} of {tried} {CROSS}"
    for _, row in far.iterrows():
        words = ", ".join(f"{name} {row[name]:.3g}" for name in PLANE)
        yield "beyond", row, f"{words} \N{RIGHTWARDS ARROW}"
