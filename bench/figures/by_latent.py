"""Draw by latent size: the test NLL, and what a prior gains on the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.figures.axis_limits import BEYOND, beyond, span
from bench.figures.differences import RESOLVED, far_off, others, random_over
from bench.figures.label_placement import direct_labels, dodge
from bench.figures.style import (
    BELOW_THREE,
    COLUMN,
    NLL,
    PAGE,
    NoDataError,
    Style,
    arms,
    blank,
    crosses,
    footer,
    inches,
    latent_axis,
    styles,
    theme,
)
from bench.statistics import frames
from bench.statistics.captions import DOT
from bench.statistics.outliers import is_far, limit

__all__ = ["gain_by_latent", "nll_by_latent"]


@theme()
def nll_by_latent(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw the test NLL by latent size and prior, with t intervals over seeds and every seed."""
    table, look = arms(frame, table=table), styles(frames.priors(frame))
    latents = sorted(int(d) for d in table["latent"].unique())
    if not (table["seeds"] > 0).any():
        raise NoDataError("Expected a complete trial with a test NLL; got none.")
    note = footer(frame) + f"{DOT}bars: 95 % t interval over seeds, test images fixed"
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    runs = frames.validate(frame)
    runs = runs[runs["status"] == "complete"]
    most = limit(runs["test/nll"])
    far = is_far(runs["test/nll"], most).any()
    note += f"{DOT}{BEYOND}" if far else ""
    figure, ax = _axes(look, latents, note)
    ends: dict[str, tuple[float, float]] = {}
    for (label, style), shift in zip(look.items(), dodge(latents, len(look)), strict=True):
        rows = table[table["prior"] == label].sort_values("latent")
        x, colour = rows["latent"] * shift, style.colour
        y = rows["nll"].mask(is_far(rows["nll"], most))
        half = np.abs(rows[["nll_low", "nll_high"]].to_numpy().T - y.to_numpy())
        each = runs[runs["prior"] == label]
        ax.scatter(each["latent"] * shift, each["test/nll"], s=9, color=colour, alpha=0.3, lw=0)
        ax.errorbar(
            x, y, half, color=colour, ls=style.dash, marker=style.marker, ms=4.5,
            mew=0.4 if style.face == colour else 1, mfc=style.face,
            mec="white" if style.face == colour else colour,
            elinewidth=1.1, capsize=2, label=label,
        )  # fmt: skip
        for latent, seeds in each["test/nll"].groupby(each["latent"]):
            if is_far(seeds, most).any():
                value = seeds.mean() if is_far(seeds.mean(), most) else seeds.abs().max()
                beyond(ax, latent * shift, value, colour, inside=0.05)
        lost = x[rows["diverged"] > 0]
        crosses(ax, lost, [colour] * len(lost))
        if (seen := rows["nll"].dropna()).size:
            ends[label] = (float(x[seen.index[-1]]), float(seen.iloc[-1]))
        elif len(lost):
            ends[label] = (float(lost.iloc[-1]), np.inf)  # its last cross
    ax.set_ylabel(NLL)
    if far:
        ax.set_ylim(*span(runs["test/nll"], table[["nll_low", "nll_high"]], most=most))
    direct_labels(ax, ends, look)
    return figure


@theme()
def gain_by_latent(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]],
    *,
    table: pd.DataFrame | None = None,
) -> Figure:
    """Draw the paired difference in NLL to the reference by latent size, with its interval.

    The intervals are those of `paired_difference`; here their course over the latent sizes shows.

    Arguments:
        frame: One row a trial.
        loglik: Per-image test log-likelihoods, (N,) nats, by run.
        table: `stats.summary` of both, where it is at hand.
    """
    table, first, look, latents = others(frame, loglik, table)
    if len(latents) < 2 or not (table["pairs"] > 0).any():
        raise NoDataError(f"Expected two latent sizes, and a complete pair to {first}.")
    note = f"{footer(frame)}{DOT}bars: 95 % t interval, not adjusted, {random_over(table)}"
    note += f"{DOT}filled: resolved (Holm-adjusted p < 0.05); hollow: not resolved"
    far = far_off(table)
    note += f"{DOT}{BEYOND}" if len(far) else ""
    note += f"{DOT}{BELOW_THREE}" if (table["pairs"] < 3).any() else ""
    shown = {label: style for label, style in look.items() if label != first}
    figure, ax = _axes(look, latents, note)
    ax.axhline(0, color=look[first].colour, lw=0.9, zorder=1)
    ends: dict[str, tuple[float, float]] = {first: (latents[-1] * 2**0.35, 0.0)}
    for (label, style), shift in zip(shown.items(), dodge(latents, len(shown)), strict=True):
        rows = table[table["prior"] == label].sort_values("latent")
        near = rows.drop(index=far.intersection(rows.index))
        ax.plot(
            near["latent"] * shift, near["difference"], color=style.colour, ls=style.dash, lw=1,
            alpha=0.7,
        )  # fmt: skip
        for index, row in rows.iterrows():
            x = row["latent"] * shift
            if index in far:
                beyond(ax, x, row["difference"], style.colour, inside=0.05)
                continue
            ax.plot([x, x], [row["low"], row["high"]], color=style.colour, lw=1.3, zorder=2)
            solid = row["verdict"] in RESOLVED
            ax.plot(
                x, row["difference"], marker=style.marker, ms=5, mec=style.colour, mew=1.2,
                mfc=style.colour if solid else "white", zorder=3,
                gid="resolved" if solid else "open",
            )  # fmt: skip
        lost = rows.loc[rows["diverged"] > 0, "latent"] * shift
        crosses(ax, lost, [style.colour] * len(lost))
        if (seen := near["difference"].dropna()).size:
            last = seen.index[-1]
            ends[label] = (float(near["latent"][last] * shift), float(seen.iloc[-1]))
    ax.set_ylabel(f"NLL minus that of {first}\nnats per image (lower is better)")
    direct_labels(ax, ends, look)
    return figure


def _axes(look: Mapping[str, Style], latents: list[int], note: str) -> tuple[Figure, Axes]:
    """Return a figure with one panel over latent sizes, and room for names at its right."""
    names, high = inches(look, 8), 0.16 * len(look)
    wide = 2.1 + 0.12 * len(look) * len(latents) + names
    figure = blank(min(max(COLUMN, wide), PAGE), max(2.7, 1.0 + high), note)
    ax = figure.subplots()
    latent_axis(ax, latents)
    room = 2**0.35
    ax.set_xlim(latents[0] / room, latents[-1] * room)
    ax.margins(y=0.12)
    ax.grid(axis="y")
    sns.despine(ax=ax)
    return figure, ax
