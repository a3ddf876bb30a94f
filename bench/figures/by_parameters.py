"""Draw what a prior's capacity brings: its test NLL against the number of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.figures.axis_limits import BEYOND, beyond, span
from bench.figures.label_placement import beside
from bench.figures.style import (
    BELOW_THREE,
    COLUMN,
    FAINT,
    NLL,
    PAGE,
    SOFT,
    NoDataError,
    Style,
    arms,
    crosses,
    footer,
    key,
    key_height,
    panels,
    styles,
    theme,
)
from bench.statistics import frames
from bench.statistics.arms import POST_HOC, prior_spec
from bench.statistics.captions import DOT
from bench.statistics.formatting import thousands
from bench.statistics.outliers import is_far, limit

__all__ = ["nll_by_parameters"]


FEWEST = 3
"""Arms with parameters below which there is nothing to see."""
LINES: dict[str, Any] = {"transforms": "-", "hidden": (0, (4, 1.5))}
OTHER = (0, (1, 1.3))


@theme()
def nll_by_parameters(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw the test NLL by the number of the prior's parameters, a panel a latent size.

    Arms of one prior that differ in one option alone are joined: what depth brings, and width.

    Arguments:
        frame: One row a trial.
        table: `stats.summary` of it, where it is at hand.
    """
    table = arms(frame, table=table)
    table = table[table["prior_parameters"].notna()]
    learned = table[(table["prior_parameters"] > 0) & table["nll"].notna()]
    if (count := learned["prior"].nunique()) < FEWEST:
        raise NoDataError(f"Expected {FEWEST} arms with parameters or more; got {count}.")
    look = styles(list(dict.fromkeys(prior_spec(label).name for label in frames.priors(frame))))
    latents, low = sorted(table["latent"].unique()), float(learned["prior_parameters"].min())
    zero = 10 ** (np.floor(np.log10(low)) - 0.8)  # where no parameters stand on a log axis
    table = table.assign(x=table["prior_parameters"].mask(table["prior_parameters"] == 0, zero))
    post_hoc = table["prior"].str.endswith(POST_HOC).any()
    note = f"{footer(frame)}{DOT}bars: 95 % t interval over seeds, test images fixed"
    note += f"{DOT}lines: one option varied" + f"{DOT}hollow: fitted post hoc" * bool(post_hoc)
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    most = limit(table["nll"])
    note += f"{DOT}{BEYOND}" if is_far(table["nll"], most).any() else ""
    joined = {option for option, _ in _sweeps(table)}
    keys = [*look, *sorted({_named(option) for option in joined})]
    across = min(len(latents), 2)
    width = COLUMN if len(latents) == 1 and len(look) < 6 else PAGE
    high = 2.9 + key_height(keys, width) / -(-len(latents) // across)
    figure, cells = panels(len(latents), note, size=(width / across, high), across=across)
    for k, (ax, latent) in enumerate(zip(cells, latents, strict=True)):
        _panel(ax, table[table["latent"] == latent], look, most)
        _axis(ax, table["x"], zero)
        ax.set(title=f"D = {latent}", ylabel=NLL if k % across == 0 else "")
    _key(figure, look, joined)
    figure.draw_without_rendering()  # only a figure that is laid out says where its points are
    for ax, latent in zip(cells, latents, strict=True):
        here = (table["latent"] == latent) & table["nll"].notna() & ~is_far(table["nll"], most)
        _label(ax, table[here], look)
    return figure


def _sweeps(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each option with arms of one prior and latent size that differ in it alone."""
    joint = table[~table["prior"].str.endswith(POST_HOC) & table["nll"].notna()]
    names = joint["prior"].map(lambda label: prior_spec(label).name)
    for _, family in joint.groupby([joint["latent"], names], sort=False):
        options = [dict(prior_spec(label).options) for label in family["prior"]]
        for option in dict.fromkeys(name for each in options for name in each):
            rest = [
                str(sorted((k, v) for k, v in each.items() if k != option)) for each in options
            ]
            for _, rows in family.groupby(rest, sort=False):
                if rows["prior_parameters"].nunique() > 1:
                    yield option, rows.sort_values("prior_parameters")


def _named(option: str) -> str:
    return option if option in LINES else "other option"


def _panel(ax: Axes, rows: pd.DataFrame, look: Mapping[str, Style], most: float) -> None:
    """Draw one latent size: joined sweeps, intervals, points, and crosses for what diverged.

    An NLL beyond `most` is told at the edge.
    """
    for option, sweep in _sweeps(rows):
        style = look[prior_spec(sweep["prior"].iloc[0]).name]
        ax.plot(
            sweep["x"], sweep["nll"], color=style.colour, ls=LINES.get(option, OTHER), lw=1,
            alpha=0.7, gid=option,
        )  # fmt: skip
    for _, row in rows.iterrows():
        style = look[prior_spec(row["prior"]).name]
        face = "white" if row["prior"].endswith(POST_HOC) else style.colour
        if is_far(row["nll"], most):
            beyond(ax, row["x"], row["nll"], style.colour, inside=0.05)
            continue
        ax.plot([row["x"]] * 2, [row["nll_low"], row["nll_high"]], color=style.colour, lw=1)
        ax.plot(
            row["x"], row["nll"], marker=style.marker, ms=5.5, mfc=face, zorder=4, gid="arm",
            mec=style.colour if face == "white" else "white", mew=1 if face == "white" else 0.5,
        )  # fmt: skip
    lost = rows[rows["diverged"] > 0]
    crosses(ax, lost["x"], [look[prior_spec(label).name].colour for label in lost["prior"]])
    ax.margins(y=0.12)
    if is_far(rows["nll"], most).any():
        ax.set_ylim(*span(rows[["nll", "nll_low", "nll_high"]], most=most))
    ax.grid(axis="y")
    sns.despine(ax=ax)


def _axis(ax: Axes, x: pd.Series, zero: float) -> None:
    """Make the x axis logarithmic, with a place for no parameters at its left edge."""
    ax.set_xscale("log")
    low, high = float(x[x > zero].min()), float(x.max())
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    step = -(-(last - first + 1) // 5)
    narrow = high / low < 30
    ticks = [
        m * 10.0**k for k in range(first, last + 1, step) for m in ((1, 3) if narrow else (1,))
    ]
    none = bool((x == zero).any())
    left = zero / 1.8 if none else low / 1.6
    ax.xaxis.set_major_locator(FixedLocator([zero] * none + [t for t in ticks if t > zero]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda v, _: "0" if none and v <= 1.01 * zero else thousands(v))
    )
    if none:
        ax.axvline(2.2 * zero, color=FAINT, lw=0.8, ls=(0, (2, 2)), zorder=0)
    ax.set(xlim=(left, high * 2.2), xlabel="parameters of the prior")


def _key(figure: Figure, look: Mapping[str, Style], joined: set[str]) -> None:
    handles = [
        Line2D([], [], color=s.colour, marker=s.marker, ls="", ms=5, label=name)
        for name, s in look.items()
    ]
    for name in dict.fromkeys([*(o for o in LINES if o in joined), *map(_named, sorted(joined))]):
        handles.append(Line2D([], [], color=SOFT, lw=1, ls=LINES.get(name, OTHER), label=name))
    key(figure, handles)


def _short(label: str) -> str:
    """Return an arm's options as short as they can be read: `transforms=1`, `64x64`."""
    known = prior_spec(label)
    parts = [value if key == "hidden" else f"{key}={value}" for key, value in known.options]
    return ", ".join(parts) or known.name


def _label(ax: Axes, rows: pd.DataFrame, look: Mapping[str, Style]) -> None:
    """Name the arms of each prior that stands with several options."""
    rows = rows[~rows["prior"].str.endswith(POST_HOC)]
    names = rows["prior"].map(lambda label: prior_spec(label).name)
    several = names.map(names.value_counts()) > 1
    beside(
        ax,
        rows[["x", "nll"]].to_numpy(),
        [
            _short(label) if some else ""
            for label, some in zip(rows["prior"], several, strict=True)
        ],
        [look[name].colour for name in names],
    )
