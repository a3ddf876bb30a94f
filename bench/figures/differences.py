"""Draw how priors differ on the same images at the same seeds, and how surely that is known."""

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
from numpy.typing import NDArray

from bench.figures.axis_limits import BEYOND, beyond
from bench.figures.style import (
    BELOW_THREE,
    COLUMN,
    FAINT,
    HALO,
    PAGE,
    SOFT,
    NoDataError,
    Style,
    arms,
    footer,
    forest,
    inches,
    key,
    losses,
    one_arm_each,
    panels,
    rows_beside,
    styles,
    theme,
)
from bench.statistics import comparison, frames
from bench.statistics.arms import POST_HOC
from bench.statistics.captions import CROSS, DOT
from bench.statistics.formatting import nats
from bench.statistics.intervals import MOST_SEEDS
from bench.statistics.outliers import is_far, limit

__all__ = [
    "RESOLVED",
    "far_off",
    "interval_widths",
    "joint_post_hoc",
    "others",
    "pair_matrix",
    "paired_difference",
    "random_over",
]


ARROW, PLUS_MINUS = "\N{LEFTWARDS ARROW}", "\N{PLUS-MINUS SIGN}"
MINUS = "\N{MINUS SIGN}"
RESOLVED = ("better", "worse")
SMALLEST = 0.36
"""Inches of a matrix's cell in which its two numbers can be read."""
PARTS = {"sd_seed": "#3f4d6b", "sd_image": "#8c9dbf", "sd_rest": "#d3dae6"}
NAMES = {"sd_seed": "seeds", "sd_image": "images", "sd_rest": "rest"}


def others(
    frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]], table: pd.DataFrame | None
) -> tuple[pd.DataFrame, str, dict[str, Style], list[int]]:
    """Return the arms that are not the reference, the reference, all styles, the latent sizes."""
    table, first = arms(frame, loglik, table), frames.reference(frame)
    table = table[table["prior"] != first]
    return table, first, styles(frames.priors(frame)), sorted(table["latent"].unique())


def random_over(table: pd.DataFrame) -> str:
    """Return what the intervals of a table's differences take to be random."""
    over = comparison.over(table)
    return f"{over} random" + ("" if over == comparison.BOTH else ", test images fixed")


def far_off(table: pd.DataFrame) -> pd.Index:
    """Return the rows whose difference is far off the others'."""
    each = table["difference"]
    return table.index[is_far(each, limit(each))]


@theme()
def paired_difference(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]],
    *,
    table: pd.DataFrame | None = None,
) -> Figure:
    """Draw the paired difference in NLL to the reference with its crossed-effects interval.

    Arguments:
        frame: One row a trial.
        loglik: Per-image test log-likelihoods, (N,) nats, by run.
        table: `stats.summary` of both, where it is at hand.
    """
    table, first, look, latents = others(frame, loglik, table)
    if not (table["pairs"] > 0).any():
        raise NoDataError(f"Expected a prior with complete pairs to {first}; got none.")
    labels = [p for p in look if p != first]
    most = table["pairs"].max()
    note = f"{footer(frame)}{DOT}bars: 95 % t interval, not adjusted, {random_over(table)}"
    note += f"{DOT}filled: resolved (Holm-adjusted p < 0.05); hollow: not resolved"
    far = far_off(table)
    note += f"{DOT}{BEYOND}" if len(far) else ""
    note += f"{DOT}{BELOW_THREE}" if (table["pairs"] < 3).any() else ""
    width, across = rows_beside(labels, len(latents), each=1.6, least=1.1)
    height = 0.55 + 0.35 * across / len(latents) + 0.2 * max(len(labels), 2)
    figure, cells = panels(
        len(latents), note, size=(width / across, height), across=across, sharey=True, sharex=True
    )
    for ax, latent in zip(cells, latents, strict=True):
        ax.axvline(0, color=look[first].colour, lw=0.9, zorder=1)
        for _, row in table[table["latent"] == latent].iterrows():
            y, style = labels.index(row["prior"]), look[row["prior"]]
            solid = row["verdict"] in RESOLVED
            losses(ax, row, y, style.colour, most)
            if row.name in far:
                continue
            ax.plot([row["low"], row["high"]], [y, y], color=style.colour, lw=1.3, zorder=2)
            ax.plot(
                row["difference"], y, marker=style.marker, ms=5.5, mec=style.colour, mew=1.2,
                zorder=3, mfc=style.colour if solid else "white",
                gid="resolved" if solid else "open",
            )  # fmt: skip
        forest(ax, labels, f"D = {latent}", look)
    _with_room(cells, table, {p: (y, look[p].colour) for y, p in enumerate(labels)})
    low = cells[0].get_xlim()[0]
    for ax in cells:
        ax.axvspan(low, 0, color="#eef5ee", zorder=0, lw=0)
    cells[0].set_xlim(left=low)
    _headline(figure, f"NLL minus that of {first}, nats per image  ({ARROW} better)")
    return figure


def _headline(figure: Figure, words: str) -> None:
    """Say above all panels, from the left as all other words, what they show."""
    figure.suptitle(words, x=0.012, ha="left", size=9)


def _with_room(
    cells: list[Axes], table: pd.DataFrame, places: Mapping[str, tuple[float, str]]
) -> None:
    """Make the shared x axis reach zero, with room at its right for what is lost.

    A difference that is far off the others is cut, and told at the edge.

    Arguments:
        cells: The panels, one a latent size.
        table: The arms that are drawn.
        places: The height and the colour of each arm.
    """
    low, high = cells[0].get_xlim()
    far = table.loc[far_off(table)]
    most = table["pairs"].max()
    room = 0.3 if (table["pairs"] < most).any() else 0.04
    cells[0].set_xlim(min(low, 0), max(high, 0) + room * (high - low))
    latents = sorted(table["latent"].unique())
    for _, row in far.iterrows():
        y, colour = places[row["prior"]]
        inside = 0.28 * (row["pairs"] < most) * (row["difference"] > 0)
        ax = cells[latents.index(row["latent"])]
        beyond(ax, y, row["difference"], colour, upright=False, inside=inside)


@theme()
def joint_post_hoc(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]],
    *,
    table: pd.DataFrame | None = None,
) -> Figure:
    """Draw what a prior gains alone, fitted post hoc, and what it gains trained jointly.

    Both are paired differences to the Gaussian, whose encoder and decoder a post-hoc prior keeps:
    the way from the hollow to the full marker is what an encoder and a decoder gain by having
    learned with the prior.

    Arguments:
        frame: One row a trial.
        loglik: Per-image test log-likelihoods, (N,) nats, by run.
        table: `stats.summary` of both, where it is at hand.
    """
    table, first, look, latents = others(frame, loglik, table)
    known = set(table["prior"][table["pairs"] > 0])
    both = [p for p in look if p + POST_HOC in look]
    labels = [p for p in both if known & {p, p + POST_HOC}]  # of a lost one its cross is drawn
    if not any({p, p + POST_HOC} <= known for p in both):
        raise NoDataError("Expected a prior fitted both jointly and post hoc; got none.")
    note = f"{footer(frame)}{DOT}bars: 95 % t interval, not adjusted, {random_over(table)}"
    note += f"{DOT}hollow: the prior fitted post hoc, for as many epochs again, to the frozen "
    note += f"encoder and decoder of {first}"
    note += f"{DOT}full: all trained jointly"
    table = table[table["prior"].isin([*labels, *(p + POST_HOC for p in labels)])]
    far = far_off(table)
    note += f"{DOT}{BEYOND}" if len(far) else ""
    note += f"{DOT}{BELOW_THREE}" if (table["pairs"] < 3).any() else ""
    width, across = rows_beside(labels, len(latents), each=1.7, least=1.1)
    figure, cells = panels(
        len(latents), note, size=(width / across, 0.85 + 0.38 * len(labels)), across=across,
        sharey=True, sharex=True,
    )  # fmt: skip
    most = int(table["pairs"].max())
    for ax, latent in zip(cells, latents, strict=True):
        ax.axvline(0, color=look[first].colour, lw=0.9, zorder=1)
        here = table[table["latent"] == latent]
        for y, label in enumerate(labels):
            ends = []
            for arm, height in ((label + POST_HOC, y - 0.13), (label, y + 0.13)):
                for _, row in here[here["prior"] == arm].iterrows():
                    style = look[arm]
                    losses(ax, row, height, style.colour, most)
                    if row.name in far:
                        continue
                    ax.plot([row["low"], row["high"]], [height] * 2, color=style.colour, lw=1.2)
                    ax.plot(
                        row["difference"], height, marker=style.marker, ms=5.5,
                        mec=style.colour, mew=1.2, mfc=style.face, zorder=3, gid=arm,
                    )  # fmt: skip
                    ends.append((float(row["difference"]), height))
            if len(ends) == 2:
                ax.plot(*np.transpose(ends), color=look[label].colour, lw=0.6, alpha=0.6)
        forest(ax, labels, f"D = {latent}", look)
    places = {p: (y + 0.13, look[p].colour) for y, p in enumerate(labels)}
    places |= {p + POST_HOC: (y - 0.26, colour) for p, (y, colour) in places.items()}
    _with_room(cells, table, places)
    _headline(figure, f"NLL minus that of {first}, nats per image  ({ARROW} better)")
    return figure


@theme()
def pair_matrix(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]],
    *,
    table: pd.DataFrame | None = None,
) -> Figure:
    """Draw all pairs of priors: rows minus columns, one triangle a latent size.

    Arguments:
        frame: One row a trial.
        loglik: Per-image test log-likelihoods, (N,) nats, by run.
        table: `stats.pairs` of both, where it is at hand.
    """
    one_arm_each(frame)
    labels = frames.priors(frame)
    if len(labels) < 3:
        raise NoDataError(f"Expected at least 3 priors for a matrix; got {len(labels)}.")
    table = comparison.pairs(frame, loglik) if table is None else table
    if not (table["pairs"] > 0).any():
        raise NoDataError("Expected a pair of priors with a common complete seed; got none.")
    latents, most = sorted(table["latent"].unique()), int(table["pairs"].max())
    look = styles(labels)
    strong = table["difference"].abs()[table["verdict"].isin(RESOLVED)]
    reach = float(strong.quantile(0.95)) if len(strong) else 1.0
    norm, hues = Normalize(-reach, reach), colormaps["RdBu_r"]
    note = DOT.join([
        footer(frame),
        f"cell: NLL of its row minus that of its column, {PLUS_MINUS} half of its 95 % t "
        f"interval, not adjusted, {random_over(table)}",
        "filled: resolved (Holm-adjusted p < 0.05 over all pairs of a latent size); "
        "white: not resolved",
    ])  # fmt: skip
    note += f"{DOT}{CROSS}: one of the two diverged" if (table["diverged"] > 0).any() else ""
    note += f"{DOT}{BELOW_THREE}" if (table["pairs"] < 3).any() else ""
    # names lean out of the triangle at its diagonal, or are numbers there where they are long
    count, longest = len(labels) - 1, max(map(len, labels))
    numbers = longest > 12 or len(labels) > 8
    rows = [f"{label}  {k}" for k, label in enumerate(labels, 1)] if numbers else labels
    columns = [str(k) for k in range(1, count + 1)] if numbers else labels[:-1]
    points = 8.0 if longest <= 26 else 6.5
    left = 0.2 + inches(rows, points)
    lean = 0.1 if numbers else 0.82 * inches(labels, 8)
    side = min(0.6, max(SMALLEST, (PAGE - 0.2 - left - lean) / count))
    size = 7.2 if side >= 0.5 else 6.2
    right, top = side * count + lean, 0.45 if numbers else 0.25 + 0.6 * inches(labels[:1], 8)
    across = max(1, min(len(latents), int(PAGE // (left + right))))
    bar_height = 0.6 / -(-len(latents) // across)
    figure, cells = panels(
        len(latents), note, size=(left + right, top + side * count + bar_height), across=across,
        extra=max(COLUMN - across * (left + right), 0),  # room for the bar's label
    )  # fmt: skip
    for ax, latent in zip(cells, latents, strict=True):
        ax.set(aspect="equal", xlim=(-0.5 - left / side, right / side - 0.5))
        ax.set(ylim=(count + 0.5, 0.5 - top / side))
        ax.set_axis_off()
        ax.set_title(f"D = {latent}", weight="bold", pad=-9)
        for k, label in enumerate(labels):
            ink = look[label].colour
            if k:
                ax.text(-0.6, k, rows[k], size=points, color=ink, ha="right", va="center")
            if k == 0 and numbers:  # the first is no row
                ax.text(-0.6, k, rows[k], size=points, color=ink, ha="right", va="center")
            if k < count:
                place: dict[str, Any] = {"ha": "center", "va": "bottom"}
                if not numbers:
                    place = {"rotation": 35, "rotation_mode": "anchor", "va": "bottom"}
                at = k if numbers else k - 0.25
                ax.text(at, k + 0.42, columns[k], size=points, color=ink, **place)
        for _, row in table[table["latent"] == latent].iterrows():
            x, y = labels.index(row["against"]), labels.index(row["prior"])
            _cell(ax, x, y, row, size, hues(norm(row["difference"])), most)
    bar = figure.colorbar(
        ScalarMappable(norm, hues), ax=cells, location="bottom", shrink=0.6, aspect=40, pad=0.02,
        extend="both" if len(strong) and strong.max() > reach else "neither",
    )  # fmt: skip
    bar.set_label(f"row minus column, nats per image  ({ARROW} row better)")
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)
    return figure


def _cell(
    ax: Axes,
    x: int,
    y: int,
    row: pd.Series,
    size: float,
    colour: tuple[float, float, float, float],
    most: int,
) -> None:
    """Draw one pair: coloured where resolved, hollow and grey where not."""
    solid = row["verdict"] in RESOLVED
    ax.add_patch(
        Rectangle(
            (x - 0.47, y - 0.47), 0.94, 0.94, lw=0.6, ec="white" if solid else FAINT,
            fc=colour if solid else "white", gid="resolved" if solid else "open",
        )
    )  # fmt: skip
    dark = solid and float(np.dot(colour[:3], (0.299, 0.587, 0.114))) < 0.55
    ink = "white" if dark else ("black" if solid else SOFT)
    told = row["diverged"] or row["pairs"] < most  # a line of its own above the numbers
    middle = y + 0.1 * told
    if row["pairs"]:
        places = 1 if abs(row["difference"]) >= 9.95 else 2
        value = nats(row["difference"], f"+.{places}f").replace("-", MINUS)
        sure = pd.notna(row["low"])
        ax.text(
            x, middle - 0.14 * sure, value, size=size, color=ink, ha="center", va="center",
            weight="bold" if solid else "normal",
        )  # fmt: skip
        if sure:
            half = f"{PLUS_MINUS}{nats((row['high'] - row['low']) / 2, f'.{places}f')}"
            ax.text(
                x,
                middle + 0.19,
                half,
                size=max(6.0, 0.84 * size),
                color=ink,
                ha="center",
                va="center",
            )
    if row["diverged"]:
        ax.plot(x + 0.36, y - 0.35, "x", color=ink, ms=0.45 * size, mew=0.8, gid="diverged")
    if row["pairs"] < most:
        n = f"n={row['pairs']}"
        ax.text(x - 0.42, y - 0.34, n, size=6.0, color=ink, ha="left", va="center")


@theme()
def interval_widths(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]],
    *,
    table: pd.DataFrame | None = None,
) -> Figure:
    """Draw how wide each interval is, what makes it wide, and how many seeds would narrow it.

    A bar is as long as half of the interval, and its shades part it as seeds, images and the rest
    part the variance of the mean.

    Arguments:
        frame: One row a trial.
        loglik: Per-image test log-likelihoods, (N,) nats, by run.
        table: `stats.summary` of both, where it is at hand.
    """
    table, first, look, latents = others(frame, loglik, table)
    if not table["sd_rest"].notna().any():
        raise NoDataError(f"Expected a prior with at least 3 pairs to {first}; got none.")
    wanted = float(table["resolution"].iloc[0])
    labels = [p for p in look if p != first]
    halves = (table["high"] - table["low"]) / 2
    most = limit(halves, wanted, least=1)
    note = DOT.join([
        footer(frame),
        "bar: half-width of the 95 % t interval of the paired difference, not adjusted",
        "shades: shares of its variance, by the method of moments",
        f"at its end: seeds for {PLUS_MINUS}{wanted:g} nats (the line), all else as observed",
        *([random_over(table)] if comparison.over(table) != comparison.BOTH else ()),
        *([BELOW_THREE] if (table["pairs"] < 3).any() else ()),
        *([BEYOND] if is_far(halves, most).any() else ()),
    ])  # fmt: skip
    width, across = rows_beside(labels, len(latents), each=2.2, least=1.6)
    height = 0.55 + 0.6 * across / len(latents) + 0.2 * max(len(labels), 2)
    figure, cells = panels(
        len(latents), note, size=(width / across, height), across=across, sharey=True, sharex=True
    )
    for ax, latent in zip(cells, latents, strict=True):
        ax.axvline(wanted, color="black", lw=0.8, ls=(0, (3, 2)), zorder=3)
        for _, row in table[table["latent"] == latent].iterrows():
            y = labels.index(row["prior"])
            colour = look[row["prior"]].colour
            losses(ax, row, y, colour)
            if is_far((row["high"] - row["low"]) / 2, most):
                beyond(ax, y, (row["high"] - row["low"]) / 2, colour, upright=False, inside=0.1)
                continue
            half = _stack(ax, row, y)
            ax.annotate(
                _told(row, wanted), (half, y), (4, 0), textcoords="offset points", size=6.8,
                va="center", path_effects=HALO,
            )  # fmt: skip
        forest(ax, labels, f"D = {latent}", look)
    far = float(halves[~is_far(halves, most)].max())
    room = 1.15 if (table["diverged"] > 0).any() else 0.75  # for the words at a bar's end
    cells[0].set_xlim(0, max(far, wanted) * (1 + room))
    keys = [Patch(fc=colour, label=NAMES[name]) for name, colour in PARTS.items()]
    words = f"Half-width of the interval of the difference to {first}, nats per image"
    key(figure, keys, words)
    return figure


def _stack(ax: Axes, row: pd.Series, y: int) -> float:
    """Draw one interval's half-width, parted; return it, or 0 where there is none."""
    if pd.isna(row["sd_rest"]):
        return 0.0
    s, n = row["pairs"], row["images"]
    variance = {"sd_seed": row["sd_seed"] ** 2 / s, "sd_rest": row["sd_rest"] ** 2 / (s * n)}
    variance["sd_image"] = row["sd_image"] ** 2 / n
    half, total, left = (row["high"] - row["low"]) / 2, sum(variance.values()), 0.0
    for name, colour in PARTS.items():
        part = half * variance[name] / total if total else 0.0
        ax.barh(y, part, 0.6, left, color=colour, lw=0, gid=name)
        left += part
    return float(half)


def _told(row: pd.Series, wanted: float) -> str:
    """Return how many seeds the wanted half-width takes, as short as it can be said."""
    count, limit = row["seeds_for_resolution"], row["half_width_limit"]
    if pd.isna(count):
        return "needs 3 seeds"
    if np.isfinite(count):
        return f"{count:.0f} seeds"
    if limit >= wanted:
        return f"images leave {PLUS_MINUS}{limit:.2g}"
    return f"> {MOST_SEEDS} seeds"
