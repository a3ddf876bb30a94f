"""Figures of the paired differences between priors, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from bench.figures.axis_limits import BEYOND_AXIS, beyond_note, mark_beyond
from bench.figures.style import (
    COLUMN_INCHES,
    GREY,
    HALO,
    LIGHT_GREY,
    PAGE_INCHES,
    NoDataError,
    Style,
    add_legend,
    check_one_arm_per_size,
    few_seeds_note,
    fit_forest,
    footer,
    format_forest,
    join_facts,
    make_panels,
    mark_lost_seeds,
    styles,
    summarise_arms,
    text_inches,
    theme,
    with_minus,
)
from bench.statistics import comparison
from bench.statistics.analysis import Analysis
from bench.statistics.arms import POST_HOC
from bench.statistics.captions import CROSS
from bench.statistics.formatting import PLUS_MINUS, nats
from bench.statistics.intervals import MAX_SEEDS
from bench.statistics.outliers import is_far, limit

__all__ = [
    "FILLED_NOTE",
    "RESOLVED",
    "absurd_differences",
    "compare_to_reference",
    "interval_note",
    "interval_widths",
    "joint_post_hoc",
    "pair_matrix",
    "paired_difference",
]


LEFT_ARROW = "\N{LEFTWARDS ARROW}"
RESOLVED = ("better", "worse")
"""Verdicts of a difference whose sign is known."""
FILLED_NOTE = "filled: resolved (Holm-adjusted p < 0.05); hollow: not resolved"
MIN_CELL_INCHES = 0.36
"""The smallest cell of a matrix in which two numbers are legible."""
VARIANCE_PARTS = {
    "sd_seed": ("seeds", "#3f4d6b"),
    "sd_image": ("images", "#8c9dbf"),
    "sd_rest": ("rest", "#d3dae6"),
}
"""Name and colour of each part of an interval's variance."""


def compare_to_reference(
    analysis: Analysis,
) -> tuple[pd.DataFrame, str, dict[str, Style], list[int]]:
    """Returns the arms but the reference, the reference, all styles, and the latent sizes."""
    table, first = summarise_arms(analysis), analysis.reference
    table = table[table["prior"] != first]
    return table, first, styles(analysis.priors), sorted(table["latent"].unique())


def random_effects(table: pd.DataFrame) -> str:
    """Returns which effects the intervals of a table of differences take to be random."""
    over = comparison.sampled_over(table)
    return f"{over} random" + ("" if over == comparison.OVER_BOTH else ", test images fixed")


def interval_note(table: pd.DataFrame) -> str:
    """Returns the note of a footer on the intervals of differences."""
    return f"bars: 95 % t interval, not adjusted, {random_effects(table)}"


def absurd_differences(table: pd.DataFrame) -> pd.Index:
    """Returns the index of the rows whose difference is far larger than the others."""
    differences = table["difference"]
    return table.index[is_far(differences, limit(differences))]


@theme()
def paired_difference(analysis: Analysis) -> Figure:
    """Draws the paired difference in NLL to the reference with its crossed-effects interval."""
    table, first, look, latents = compare_to_reference(analysis)
    if not (table["pairs"] > 0).any():
        raise NoDataError(f"Expected a prior with complete pairs to {first}; got none.")
    labels = [label for label in look if label != first]
    absurd = absurd_differences(table)
    note = join_facts(
        footer(analysis.trials),
        interval_note(table),
        FILLED_NOTE,
        BEYOND_AXIS if len(absurd) else "",
        few_seeds_note(table["pairs"]),
    )
    width, across = fit_forest(labels, len(latents), width=1.6, least=1.1)
    height = 0.55 + 0.35 * across / len(latents) + 0.2 * max(len(labels), 2)
    figure, cells = make_panels(
        len(latents), note, size=(width / across, height), across=across, sharey=True, sharex=True
    )
    for ax, latent in zip(cells, latents, strict=True):
        ax.axvline(0, color=look[first].colour, lw=0.9, zorder=1)
        for index, row in table[table["latent"] == latent].iterrows():
            y, style = labels.index(row["prior"]), look[row["prior"]]
            mark_lost_seeds(ax, row, y, style.colour, table["pairs"].max())
            if index not in absurd:
                solid = row["verdict"] in RESOLVED
                face, gid = (style.colour, "resolved") if solid else ("white", "open")
                _draw_interval(ax, row, y, style, face, gid)
        format_forest(ax, labels, f"D = {latent}", look)
    _fit_x_axis(cells, table, {p: (y, look[p].colour) for y, p in enumerate(labels)})
    low = cells[0].get_xlim()[0]
    for ax in cells:
        ax.axvspan(low, 0, color="#eef5ee", zorder=0, lw=0)
    cells[0].set_xlim(left=low)
    _add_headline(figure, first)
    return figure


def _draw_interval(ax: Axes, row: pd.Series, y: float, style: Style, face: str, gid: str) -> None:
    """Draws a difference and its interval at height `y`, with a marker filled by `face`."""
    ax.plot([row["low"], row["high"]], [y, y], color=style.colour, lw=1.3, zorder=2)
    ax.plot(
        row["difference"], y, marker=style.marker, ms=5.5, mec=style.colour, mew=1.2, zorder=3,
        mfc=face, gid=gid,
    )  # fmt: skip


def _add_headline(figure: Figure, first: str) -> None:
    """Writes what the panels show above them, from the left."""
    words = f"NLL minus that of {first}, nats per image  ({LEFT_ARROW} better)"
    figure.suptitle(words, x=0.012, ha="left", size=9)


def _fit_x_axis(
    cells: list[Axes], table: pd.DataFrame, places: Mapping[str, tuple[float, str]]
) -> None:
    """Extends the shared x axis to zero, with room at its right for the marks of lost seeds.

    An absurd difference is beyond the axis and is written at its edge.

    Arguments:
        cells: The panels, one for each latent size.
        table: The arms that are drawn.
        places: The height and the colour of each arm.
    """
    low, high = cells[0].get_xlim()
    complete = table["pairs"].max()
    room = 0.3 if (table["pairs"] < complete).any() else 0.04
    cells[0].set_xlim(min(low, 0), max(high, 0) + room * (high - low))
    latents = sorted(table["latent"].unique())
    for _, row in table.loc[absurd_differences(table)].iterrows():
        y, colour = places[row["prior"]]
        inside = 0.28 * (row["pairs"] < complete) * (row["difference"] > 0)
        ax = cells[latents.index(row["latent"])]
        mark_beyond(ax, y, row["difference"], colour, upright=False, inside=inside)


@theme()
def joint_post_hoc(analysis: Analysis) -> Figure:
    """Draws what a prior gains when fitted post hoc, and what it gains when trained jointly.

    Both are paired differences to the Gaussian, whose encoder and decoder a post-hoc prior keeps:
    the distance from the hollow to the full marker is what encoder and decoder gain by training
    with the prior.
    """
    table, first, look, latents = compare_to_reference(analysis)
    known = set(table["prior"][table["pairs"] > 0])
    both = [p for p in look if p + POST_HOC in look]
    labels = [p for p in both if known & {p, p + POST_HOC}]  # a lost one shows its cross
    if not any({p, p + POST_HOC} <= known for p in both):
        raise NoDataError("Expected a prior fitted both jointly and post hoc; got none.")
    table = table[table["prior"].isin([*labels, *(p + POST_HOC for p in labels)])]
    absurd = absurd_differences(table)
    note = join_facts(
        footer(analysis.trials),
        interval_note(table),
        "hollow: the prior fitted post hoc, for as many epochs again, to the frozen encoder and "
        f"decoder of {first}",
        "full: all trained jointly",
        BEYOND_AXIS if len(absurd) else "",
        few_seeds_note(table["pairs"]),
    )
    width, across = fit_forest(labels, len(latents), width=1.7, least=1.1)
    figure, cells = make_panels(
        len(latents), note, size=(width / across, 0.85 + 0.38 * len(labels)), across=across,
        sharey=True, sharex=True,
    )  # fmt: skip
    pairs = int(table["pairs"].max())
    for ax, latent in zip(cells, latents, strict=True):
        ax.axvline(0, color=look[first].colour, lw=0.9, zorder=1)
        rows = table[table["latent"] == latent]
        for y, label in enumerate(labels):
            ends = []
            for arm, height in ((label + POST_HOC, y - 0.13), (label, y + 0.13)):
                for index, row in rows[rows["prior"] == arm].iterrows():
                    mark_lost_seeds(ax, row, height, look[arm].colour, pairs)
                    if index not in absurd:
                        _draw_interval(ax, row, height, look[arm], look[arm].face, arm)
                        ends.append((float(row["difference"]), height))
            if len(ends) == 2:
                ax.plot(*np.transpose(ends), color=look[label].colour, lw=0.6, alpha=0.6)
        format_forest(ax, labels, f"D = {latent}", look)
    places = {p: (y + 0.13, look[p].colour) for y, p in enumerate(labels)}
    places |= {p + POST_HOC: (y - 0.26, colour) for p, (y, colour) in places.items()}
    _fit_x_axis(cells, table, places)
    _add_headline(figure, first)
    return figure


@theme()
def pair_matrix(analysis: Analysis) -> Figure:
    """Draws all pairs of priors: rows minus columns, one triangle a latent size."""
    check_one_arm_per_size(analysis.trials)
    labels = analysis.priors
    if len(labels) < 3:
        raise NoDataError(f"Expected at least 3 priors for a matrix; got {len(labels)}.")
    table = analysis.pairs
    if not (table["pairs"] > 0).any():
        raise NoDataError("Expected a pair of priors with a common complete seed; got none.")
    latents, complete = sorted(table["latent"].unique()), int(table["pairs"].max())
    look = styles(labels)
    resolved = table["difference"].abs()[table["verdict"].isin(RESOLVED)]
    reach = float(resolved.quantile(0.95)) if len(resolved) else 1.0
    norm, colour_map = Normalize(-reach, reach), colormaps["RdBu_r"]
    note = join_facts(
        footer(analysis.trials),
        f"cell: NLL of its row minus that of its column, {PLUS_MINUS} half of its 95 % t "
        f"interval, not adjusted, {random_effects(table)}",
        "filled: resolved (Holm-adjusted p < 0.05 over all pairs of a latent size); "
        "white: not resolved",
        f"{CROSS}: one of the two diverged" if (table["diverged"] > 0).any() else "",
        few_seeds_note(table["pairs"]),
    )
    # the names of the columns lean out of the triangle at its diagonal; long ones are numbered
    count, longest = len(labels) - 1, max(map(len, labels))
    numbers = longest > 12 or len(labels) > 8
    rows = [f"{label}  {k}" for k, label in enumerate(labels, 1)] if numbers else labels
    columns = [str(k) for k in range(1, count + 1)] if numbers else labels[:-1]
    points = 8.0 if longest <= 26 else 6.5
    left = 0.2 + text_inches(rows, points)
    lean = 0.1 if numbers else 0.82 * text_inches(labels, 8)
    side = min(0.6, max(MIN_CELL_INCHES, (PAGE_INCHES - 0.2 - left - lean) / count))
    size = 7.2 if side >= 0.5 else 6.2
    right, top = side * count + lean, 0.45 if numbers else 0.25 + 0.6 * text_inches(labels[:1], 8)
    across = max(1, min(len(latents), int(PAGE_INCHES // (left + right))))
    bar_height = 0.6 / -(-len(latents) // across)
    figure, cells = make_panels(
        len(latents), note, size=(left + right, top + side * count + bar_height), across=across,
        extra=max(COLUMN_INCHES - across * (left + right), 0),  # room for the bar's label
    )  # fmt: skip
    for ax, latent in zip(cells, latents, strict=True):
        ax.set(aspect="equal", xlim=(-0.5 - left / side, right / side - 0.5))
        ax.set(ylim=(count + 0.5, 0.5 - top / side))
        ax.set_axis_off()
        ax.set_title(f"D = {latent}", weight="bold", pad=-9)
        for k, label in enumerate(labels):
            ink = look[label].colour
            if k or numbers:  # the first prior has no row, but a number to explain
                ax.text(-0.6, k, rows[k], size=points, color=ink, ha="right", va="center")
            if k < count:
                place: dict[str, Any] = {"ha": "center", "va": "bottom"}
                if not numbers:
                    place = {"rotation": 35, "rotation_mode": "anchor", "va": "bottom"}
                ax.text(
                    k if numbers else k - 0.25,
                    k + 0.42,
                    columns[k],
                    size=points,
                    color=ink,
                    **place,
                )
        for _, row in table[table["latent"] == latent].iterrows():
            x, y = labels.index(row["against"]), labels.index(row["prior"])
            _draw_cell(ax, x, y, row, size, colour_map(norm(row["difference"])), complete)
    bar = figure.colorbar(
        ScalarMappable(norm, colour_map), ax=cells, location="bottom", shrink=0.6, aspect=40,
        pad=0.02, extend="both" if len(resolved) and resolved.max() > reach else "neither",
    )  # fmt: skip
    bar.set_label(f"row minus column, nats per image  ({LEFT_ARROW} row better)")
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    return figure


def _draw_cell(
    ax: Axes,
    x: int,
    y: int,
    row: pd.Series,
    size: float,
    colour: tuple[float, float, float, float],
    complete: int,
) -> None:
    """Draws one pair: coloured if it is resolved, else white and grey.

    `complete` is the number of pairs where no seed was lost.
    """
    solid = row["verdict"] in RESOLVED
    ax.add_patch(
        Rectangle(
            (x - 0.47, y - 0.47), 0.94, 0.94, lw=0.6, ec="white" if solid else LIGHT_GREY,
            fc=colour if solid else "white", gid="resolved" if solid else "open",
        )
    )  # fmt: skip
    dark = solid and float(np.dot(colour[:3], (0.299, 0.587, 0.114))) < 0.55
    ink = "white" if dark else ("black" if solid else GREY)
    marked = row["diverged"] or row["pairs"] < complete  # by a line above the numbers
    middle = y + 0.1 * marked
    if row["pairs"]:
        places = 1 if abs(row["difference"]) >= 9.95 else 2
        value = with_minus(nats(row["difference"], f"+.{places}f"))
        has_interval = pd.notna(row["low"])
        ax.text(
            x, middle - 0.14 * has_interval, value, size=size, color=ink, ha="center", va="center",
            weight="bold" if solid else "normal",
        )  # fmt: skip
        if has_interval:
            half = f"{PLUS_MINUS}{nats((row['high'] - row['low']) / 2, f'.{places}f')}"
            ax.text(
                x, middle + 0.19, half, size=max(6.0, 0.84 * size), color=ink, ha="center",
                va="center",
            )  # fmt: skip
    if row["diverged"]:
        ax.plot(x + 0.36, y - 0.35, "x", color=ink, ms=0.45 * size, mew=0.8, gid="diverged")
    if row["pairs"] < complete:
        n = f"n={row['pairs']}"
        ax.text(x - 0.42, y - 0.34, n, size=6.0, color=ink, ha="left", va="center")


@theme()
def interval_widths(analysis: Analysis) -> Figure:
    """Draws how wide each interval is, what makes it wide, and how many seeds would narrow it.

    A bar is half of the interval; its shades are the shares of seeds, images and the rest in the
    variance of the mean.
    """
    table, first, look, latents = compare_to_reference(analysis)
    if not table["sd_rest"].notna().any():
        raise NoDataError(f"Expected a prior with at least 3 pairs to {first}; got none.")
    resolution = float(table["resolution"].iloc[0])
    labels = [label for label in look if label != first]
    halves = (table["high"] - table["low"]) / 2
    bound = limit(halves, resolution, least=1)
    note = join_facts(
        footer(analysis.trials),
        "bar: half-width of the 95 % t interval of the paired difference, not adjusted",
        "shades: shares of its variance, by the method of moments",
        f"at its end: seeds for {PLUS_MINUS}{resolution:g} nats (the line), all else as observed",
        "" if comparison.sampled_over(table) == comparison.OVER_BOTH else random_effects(table),
        few_seeds_note(table["pairs"]),
        beyond_note(halves, bound),
    )
    width, across = fit_forest(labels, len(latents), width=2.2, least=1.6)
    height = 0.55 + 0.6 * across / len(latents) + 0.2 * max(len(labels), 2)
    figure, cells = make_panels(
        len(latents), note, size=(width / across, height), across=across, sharey=True, sharex=True
    )
    for ax, latent in zip(cells, latents, strict=True):
        ax.axvline(resolution, color="black", lw=0.8, ls=(0, (3, 2)), zorder=3)
        for _, row in table[table["latent"] == latent].iterrows():
            y, half = labels.index(row["prior"]), (row["high"] - row["low"]) / 2
            colour = look[row["prior"]].colour
            mark_lost_seeds(ax, row, y, colour)
            if is_far(half, bound):
                mark_beyond(ax, y, half, colour, upright=False, inside=0.1)
                continue
            _draw_variance_parts(ax, row, y)
            ax.annotate(
                _seeds_text(row, resolution), (np.nan_to_num(half), y), (4, 0),
                textcoords="offset points", size=6.8, va="center", path_effects=HALO,
            )  # fmt: skip
        format_forest(ax, labels, f"D = {latent}", look)
    widest = float(halves[~is_far(halves, bound)].max())
    room = 1.15 if (table["diverged"] > 0).any() else 0.75  # for the text at the end of a bar
    cells[0].set_xlim(0, max(widest, resolution) * (1 + room))
    handles = [Patch(fc=colour, label=name) for name, colour in VARIANCE_PARTS.values()]
    title = f"Half-width of the interval of the difference to {first}, nats per image"
    add_legend(figure, handles, title)
    return figure


def _draw_variance_parts(ax: Axes, row: pd.Series, y: int) -> None:
    """Draws the half-width of one interval, divided into its parts, if there is an interval."""
    if pd.isna(row["sd_rest"]):
        return
    s, n = row["pairs"], row["images"]
    variance = {"sd_seed": row["sd_seed"] ** 2 / s, "sd_rest": row["sd_rest"] ** 2 / (s * n)}
    variance["sd_image"] = row["sd_image"] ** 2 / n
    half, total, left = (row["high"] - row["low"]) / 2, sum(variance.values()), 0.0
    for name, (_, colour) in VARIANCE_PARTS.items():
        part = half * variance[name] / total if total else 0.0
        ax.barh(y, part, 0.6, left, color=colour, lw=0, gid=name)
        left += part


def _seeds_text(row: pd.Series, resolution: float) -> str:
    """Returns the number of seeds that give a half-width of `resolution`, or why none does."""
    count, half_width = row["seeds_for_resolution"], row["half_width_limit"]
    if pd.isna(count):
        return "needs 3 seeds"
    if np.isfinite(count):
        return f"{count:.0f} seeds"
    if half_width >= resolution:
        return f"images leave {PLUS_MINUS}{half_width:.2g}"
    return f"> {MAX_SEEDS} seeds"
