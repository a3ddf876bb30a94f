"""Figure of failures: lost seeds, samples outside splines, unused dimensions, bad samples.

`bench.statistics.failures.find_failures` defines and counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from bench.figures.style import (
    GREY,
    NoDataError,
    Style,
    check_one_arm_per_size,
    fit_forest,
    footer,
    format_forest,
    join_facts,
    make_panels,
    styles,
    theme,
)
from bench.statistics.analysis import Analysis
from bench.statistics.arms import prior_spec
from bench.statistics.failures import MIN_ACTIVE_SHARE
from bench.statistics.formatting import nats, percent
from bench.statistics.metrics import share_bad_samples, share_outside

__all__ = ["failures"]


COLLAPSE_COLOUR = "#d1495b"
TITLES = {
    "lost": "seeds lost",
    "outside": "samples\noutside the box",
    "active": "active dimensions,\nrate",
    "bad": "bad prior\nsamples",
}
NOTES = {
    "lost": "seeds lost: diverged (full) or failed (hatched), of those tried, with Wilson's "
    "95 % interval",
    "outside": "outside the box of the worst spline, counted coordinate by coordinate: there "
    "the spline is the identity",
    "active": "active: Var(mu) / Var(z) > 0.01; hatched: fewer than half",
    "bad": "bad: not finite",
}
WIDTH_RATIOS = {"lost": 1.0, "outside": 0.8, "active": 1.6, "bad": 0.8}
TICKS = {"lost": (0, 0.5, 1), "active": (0, 1)}


@theme()
def failures(analysis: Analysis) -> Figure:
    """Draws what went wrong, a row an arm and a band of panels a latent size."""
    check_one_arm_per_size(analysis.trials)
    arms = analysis.failures
    names = _panel_names(arms)
    labels, latents = _group_by_prior(analysis.priors), sorted(arms["latent"].unique())
    look = styles(analysis.priors)
    width, _ = fit_forest(labels, len(names), width=1.7, least=1.0, more=0.2)
    all_finite = "bad" not in names and arms["bad_share"].notna().any()
    note = join_facts(
        footer(analysis.trials),
        *(NOTES[name] for name in names),
        "bars: means; dots: seeds",
        "all prior samples are finite" if all_finite else "",
    )
    figure, cells = make_panels(
        len(latents) * len(names),
        note,
        size=(width / len(names), 0.35 + 0.65 / len(latents) + 0.15 * max(len(labels), 2)),
        across=len(names),
        ratios=[WIDTH_RATIOS[name] for name in names],
    )
    runs = analysis.complete
    for k, ax in enumerate(cells):
        row, column = divmod(k, len(names))
        latent, name = latents[row], names[column]
        rows = arms[arms["latent"] == latent]
        if name == "lost":
            _draw_lost(ax, rows, labels, look)
        elif name == "active":
            _draw_active(ax, rows, labels, look)
        else:
            _draw_share(ax, name, rows, runs[runs["latent"] == latent], labels, look)
        title = TITLES[name] if row == 0 else ""
        format_forest(ax, labels if column == 0 else [""] * len(labels), title, look)
        ticks = TICKS.get(name)
        ax.xaxis.set_major_locator(FixedLocator(ticks) if ticks else MaxNLocator(2))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: percent(v)))
        if column == 0:
            ax.set_ylabel(f"D = {latent}", weight="bold")
    for k in range(len(names)):  # the panels of a column share their axis
        right = max(ax.get_xlim()[1] for ax in cells[k :: len(names)])
        for ax in cells[k :: len(names)]:
            ax.set_xlim(0, right)
    return figure


def _panel_names(arms: pd.DataFrame) -> list[str]:
    """Returns the names of the panels that have something to show."""
    shown = {
        "lost": True,
        "outside": arms["outside_posterior"].notna().any(),
        "active": arms["active_share"].notna().any(),
        "bad": (arms["bad_share"] > 0).any(),
    }
    names = [name for name, has_data in shown.items() if has_data]
    if names == ["lost"] and not (arms["lost_share"] > 0).any():
        raise NoDataError("Expected a lost seed, or the surgery of a complete trial; got neither.")
    return names


def _group_by_prior(labels: list[str]) -> list[str]:
    """Returns the arms sorted so that those of one prior are adjacent."""
    names = list(dict.fromkeys(prior_spec(label).name for label in labels))
    return sorted(labels, key=lambda label: names.index(prior_spec(label).name))


def _draw_lost(ax: Axes, rows: pd.DataFrame, labels: list[str], look: Mapping[str, Style]) -> None:
    for _, row in rows.iterrows():
        y, colour, tried = labels.index(row["prior"]), look[row["prior"]].colour, row["tried"]
        if not tried:
            continue
        left = 0.0
        for status, hatch in (("diverged", None), ("failed", "/////")):
            width = row[status] / tried
            if width:
                ax.barh(
                    y, width, 0.62, left, fc="none" if hatch else colour, ec=colour, lw=0.8,
                    hatch=hatch, gid=status,
                )  # fmt: skip
            left += width
        ax.plot([row["lost_low"], row["lost_high"]], [y, y], color=GREY, lw=0.9, gid="interval")
        n = f"{row['diverged'] + row['failed']} of {tried}"
        ink: dict[str, Any] = {"color": colour if left else GREY, "size": 6.8}
        ax.text(1.48, y, n, ha="right", va="center", weight="bold" if left else "normal", **ink)
    ax.set_xlim(0, 1.5)


def _draw_share(
    ax: Axes,
    name: str,
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    labels: list[str],
    look: Mapping[str, Style],
) -> None:
    column, share_by_seed = {
        "outside": ("outside_posterior", share_outside),
        "bad": ("bad_share", share_bad_samples),
    }[name]
    largest = 0.01
    for _, row in rows[rows[column].notna()].iterrows():
        y, colour = labels.index(row["prior"]), look[row["prior"]].colour
        ax.barh(y, row[column], 0.62, fc=colour, lw=0, alpha=0.45, gid=name)
        dots = share_by_seed(runs[runs["prior"] == row["prior"]])
        ax.plot(dots, [y] * len(dots), ".", color=colour, ms=3.5, clip_on=False)
        largest = max(largest, float(dots.max()), row[column])
    ax.set_xlim(0, 1.08 * largest)


def _draw_active(
    ax: Axes, rows: pd.DataFrame, labels: list[str], look: Mapping[str, Style]
) -> None:
    ax.axvline(MIN_ACTIVE_SHARE, color=GREY, lw=0.7, ls=(0, (2, 2)), zorder=1)
    for _, row in rows[rows["active_share"].notna()].iterrows():
        y, colour = labels.index(row["prior"]), look[row["prior"]].colour
        share, units, latent = row[["active_share", "active_units_relative", "latent"]]
        ax.barh(y, share, 0.62, fc=colour, lw=0, alpha=0.45, gid="active")
        if share < MIN_ACTIVE_SHARE:
            ax.barh(
                y, 1 - share, 0.62, share, fc="none", ec=COLLAPSE_COLOUR, lw=0, hatch="//////",
                gid="collapsed",
            )  # fmt: skip
        rate = f", {nats(row['rate'], '.1f')} nats" if pd.notna(row["rate"]) else ""
        ink = COLLAPSE_COLOUR if share < MIN_ACTIVE_SHARE else GREY
        ax.text(1.03, y, f"{units:.3g} of {latent}{rate}", size=6.8, va="center", color=ink)
    ax.set_xlim(0, 2.15)
