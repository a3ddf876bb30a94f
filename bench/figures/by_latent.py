"""Figures by latent size: the test NLL, and the gain of each prior on the reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures.axis_limits import BEYOND_AXIS, beyond_note, cut_y_axis, mark_beyond
from bench.figures.differences import (
    FILLED_NOTE,
    RESOLVED,
    absurd_differences,
    compare_to_reference,
    interval_note,
)
from bench.figures.label_placement import latent_shifts, name_line_ends
from bench.figures.style import (
    COLUMN_INCHES,
    NLL_LABEL,
    PAGE_INCHES,
    NoDataError,
    Style,
    few_seeds_note,
    footer,
    format_latent_axis,
    join_facts,
    make_figure,
    mark_diverged,
    styles,
    summarise_arms,
    text_inches,
    theme,
)
from bench.statistics.analysis import Analysis
from bench.statistics.outliers import is_far, limit

__all__ = ["gain_by_latent", "nll_by_latent"]


@theme()
def nll_by_latent(analysis: Analysis) -> Figure:
    """Draws the test NLL by latent size and prior, with t intervals over seeds and every seed."""
    table, look = summarise_arms(analysis), styles(analysis.priors)
    latents = sorted(int(d) for d in table["latent"].unique())
    if not (table["seeds"] > 0).any():
        raise NoDataError("Expected a complete trial with a test NLL; got none.")
    runs = analysis.complete
    bound = limit(runs["test/nll"])
    note = join_facts(
        footer(analysis.trials),
        "bars: 95 % t interval over seeds, test images fixed",
        few_seeds_note(table["seeds"]),
        beyond_note(runs["test/nll"], bound),
    )
    figure, ax = _make_axes(look, latents, note)
    ends: dict[str, tuple[float, float]] = {}
    for (label, style), shift in zip(look.items(), latent_shifts(latents, len(look)), strict=True):
        rows = table[table["prior"] == label].sort_values("latent")
        x, colour = rows["latent"] * shift, style.colour
        y = rows["nll"].mask(is_far(rows["nll"], bound))
        half = np.abs(rows[["nll_low", "nll_high"]].to_numpy().T - y.to_numpy())
        seeds = runs[runs["prior"] == label]
        ax.scatter(seeds["latent"] * shift, seeds["test/nll"], s=9, color=colour, alpha=0.3, lw=0)
        ax.errorbar(
            x, y, half, color=colour, ls=style.dash, marker=style.marker, ms=4.5,
            mew=0.4 if style.face == colour else 1, mfc=style.face,
            mec="white" if style.face == colour else colour,
            elinewidth=1.1, capsize=2, label=label,
        )  # fmt: skip
        for latent, nll in seeds["test/nll"].groupby(seeds["latent"]):
            if is_far(nll, bound).any():
                value = nll.mean() if is_far(nll.mean(), bound) else nll.abs().max()
                mark_beyond(ax, latent * shift, value, colour, inside=0.05)
        lost = x[rows["diverged"] > 0]
        mark_diverged(ax, lost, [colour] * len(lost))
        if (means := rows["nll"].dropna()).size:
            ends[label] = (float(x[means.index[-1]]), float(means.iloc[-1]))
        elif len(lost):
            ends[label] = (float(lost.iloc[-1]), np.inf)  # its last cross
    ax.set_ylabel(NLL_LABEL)
    cut_y_axis(ax, runs["test/nll"], table[["nll_low", "nll_high"]], bound=bound)
    name_line_ends(ax, ends, look)
    return figure


@theme()
def gain_by_latent(analysis: Analysis) -> Figure:
    """Draws the paired difference in NLL to the reference by latent size, with its interval.

    The intervals are those of `paired_difference`.
    """
    table, first, look, latents = compare_to_reference(analysis)
    if len(latents) < 2 or not (table["pairs"] > 0).any():
        raise NoDataError(f"Expected two latent sizes, and a complete pair to {first}.")
    absurd = absurd_differences(table)
    note = join_facts(
        footer(analysis.trials),
        interval_note(table),
        FILLED_NOTE,
        BEYOND_AXIS if len(absurd) else "",
        few_seeds_note(table["pairs"]),
    )
    shown = {label: style for label, style in look.items() if label != first}
    figure, ax = _make_axes(look, latents, note)
    ax.axhline(0, color=look[first].colour, lw=0.9, zorder=1)
    ends: dict[str, tuple[float, float]] = {first: (latents[-1] * 2**0.35, 0.0)}
    shifts = latent_shifts(latents, len(shown))
    for (label, style), shift in zip(shown.items(), shifts, strict=True):
        rows = table[table["prior"] == label].sort_values("latent")
        near = rows.drop(index=absurd.intersection(rows.index))
        ax.plot(
            near["latent"] * shift, near["difference"], color=style.colour, ls=style.dash, lw=1,
            alpha=0.7,
        )  # fmt: skip
        for index, row in rows.iterrows():
            x = row["latent"] * shift
            if index in absurd:
                mark_beyond(ax, x, row["difference"], style.colour, inside=0.05)
                continue
            ax.plot([x, x], [row["low"], row["high"]], color=style.colour, lw=1.3, zorder=2)
            solid = row["verdict"] in RESOLVED
            ax.plot(
                x, row["difference"], marker=style.marker, ms=5, mec=style.colour, mew=1.2,
                mfc=style.colour if solid else "white", zorder=3,
                gid="resolved" if solid else "open",
            )  # fmt: skip
        lost = rows.loc[rows["diverged"] > 0, "latent"] * shift
        mark_diverged(ax, lost, [style.colour] * len(lost))
        if (known := near["difference"].dropna()).size:
            last = known.index[-1]
            ends[label] = (float(near["latent"][last] * shift), float(known.iloc[-1]))
    ax.set_ylabel(f"NLL minus that of {first}\nnats per image (lower is better)")
    name_line_ends(ax, ends, look)
    return figure


def _make_axes(look: Mapping[str, Style], latents: list[int], note: str) -> tuple[Figure, Axes]:
    """Returns a figure with one panel over latent sizes, and room for names at its right."""
    width = 2.1 + 0.12 * len(look) * len(latents) + text_inches(look, 8)
    height = max(2.7, 1.0 + 0.16 * len(look))
    figure = make_figure(min(max(COLUMN_INCHES, width), PAGE_INCHES), height, note)
    ax = figure.subplots()
    format_latent_axis(ax, latents)
    room = 2**0.35
    ax.set_xlim(latents[0] / room, latents[-1] * room)
    ax.margins(y=0.12)
    ax.grid(axis="y")
    sns.despine(ax=ax)
    return figure, ax
