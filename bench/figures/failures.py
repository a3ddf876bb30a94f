"""Show what goes wrong with learned priors: seeds lost, latents out of reach, dimensions unused.

These are looked at, each a pure function of the frame of trials:

- seeds that diverged or failed, a share of those that were tried, with Wilson's 95 % interval;
- posterior samples outside the box of a flow's worst spline, where that spline is the identity;
- dimensions that no image moves, Var(E[z|x]) below 0.01 Var(z), and rates near zero: posterior
  collapse;
- test NLLs that are finite and yet absurd;
- prior samples that are not finite: the prior's sampler failed.

`find` returns them in numbers, `sentences` in words where they are worth some, `troubles` draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from bench.figures.style import (
    SOFT,
    NoDataError,
    Style,
    arms,
    footer,
    forest,
    panels,
    rows_beside,
    styles,
    theme,
)
from bench.statistics import frames
from bench.statistics.arms import prior_spec, share_bad_samples, share_outside
from bench.statistics.captions import DOT
from bench.statistics.failures import find_failures
from bench.statistics.formatting import nats, percent

__all__ = ["USED", "troubles"]


USED = 0.5
"""The share of active dimensions below which it is said."""
COLLAPSE = "#d1495b"
TITLES = {
    "lost": "seeds lost",
    "outside": "samples\noutside the box",
    "active": "active dimensions,\nrate",
    "bad": "bad prior\nsamples",
}
RATIOS = {"lost": 1.0, "outside": 0.8, "active": 1.6, "bad": 0.8}
"""How wide each panel is to the first."""


@theme()
def troubles(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw what went wrong, a row an arm and a band of panels a latent size.

    Arguments:
        frame: One row a trial.
        table: `stats.summary` of it, where it is at hand.
    """
    found = find_failures(frame, arms(frame, table=table))
    shown = _shown(found)
    labels, latents = _side_by_side(frames.priors(frame)), sorted(found["latent"].unique())
    look = styles(frames.priors(frame))
    width, _ = rows_beside(labels, len(shown), each=1.7, least=1.0, more=0.2)
    figure, cells = panels(
        len(latents) * len(shown),
        _note(frame, found, shown),
        size=(width / len(shown), 0.35 + 0.65 / len(latents) + 0.15 * max(len(labels), 2)),
        across=len(shown),
        ratios=[RATIOS[name] for name in shown],
    )
    runs = frames.validate(frame)
    runs = runs[runs["status"] == "complete"]
    parts = {"lost": _draw_lost, "active": _draw_active}
    for k, ax in enumerate(cells):
        latent, name = latents[k // len(shown)], shown[k % len(shown)]
        here, mine = (rows[rows["latent"] == latent] for rows in (found, runs))
        if name in parts:
            parts[name](ax, here, labels, look)
        else:
            _draw_share(ax, name, here, mine, labels, look)
        title = TITLES[name] if k < len(shown) else ""
        forest(ax, labels if k % len(shown) == 0 else [""] * len(labels), title, look)
        known = {"lost": (0, 0.5, 1), "active": (0, 1)}.get(name)
        ax.xaxis.set_major_locator(FixedLocator(known) if known else MaxNLocator(2))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: percent(v)))
        if k % len(shown) == 0:
            ax.set_ylabel(f"D = {latent}", weight="bold")
    for k in range(len(shown)):  # a column shares its axis
        column = cells[k :: len(shown)]
        most = max(ax.get_xlim()[1] for ax in column)
        for ax in column:
            ax.set_xlim(0, most)
    return figure


def _shown(found: pd.DataFrame) -> list[str]:
    """Return the panels that have something to show."""
    has = {
        "lost": True,
        "outside": found["outside_posterior"].notna().any(),
        "active": found["active_share"].notna().any(),
        "bad": (found["bad_share"] > 0).any(),
    }
    shown = [name for name, some in has.items() if some]
    if shown == ["lost"] and not (found["lost_share"] > 0).any():
        raise NoDataError("Expected a lost seed, or the surgery of a complete trial; got neither.")
    return shown


def _side_by_side(labels: list[str]) -> list[str]:
    """Return the arms with those of one prior together."""
    names = list(dict.fromkeys(prior_spec(label).name for label in labels))
    return sorted(labels, key=lambda label: names.index(prior_spec(label).name))


def _note(frame: pd.DataFrame, found: pd.DataFrame, shown: list[str]) -> str:
    told = {
        "lost": "seeds lost: diverged (full) or failed (hatched), of those tried, with Wilson's "
        "95 % interval",
        "outside": "outside the box of the worst spline, counted coordinate by coordinate: there "
        "the spline models nothing",
        "active": "active: Var(mu) / Var(z) > 0.01; hatched: fewer than half",
        "bad": "bad: not finite",
    }
    facts = [footer(frame), *(told[name] for name in shown), "bars: means; dots: seeds"]
    if "bad" not in shown and found["bad_share"].notna().any():
        facts.append("all prior samples are finite")
    return DOT.join(facts)


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
        ax.plot([row["lost_low"], row["lost_high"]], [y, y], color=SOFT, lw=0.9, gid="interval")
        n = f"{row['diverged'] + row['failed']} of {tried}"
        ink: dict[str, Any] = {"color": colour if left else SOFT, "size": 6.8}
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
    column, each = {
        "outside": ("outside_posterior", share_outside),
        "bad": ("bad_share", share_bad_samples),
    }[name]
    most = 0.01
    for _, row in rows[rows[column].notna()].iterrows():
        y, colour = labels.index(row["prior"]), look[row["prior"]].colour
        ax.barh(y, row[column], 0.62, fc=colour, lw=0, alpha=0.45, gid=name)
        dots = each(runs[runs["prior"] == row["prior"]])
        ax.plot(dots, [y] * len(dots), ".", color=colour, ms=3.5, clip_on=False)
        most = max(most, float(dots.max()), row[column])
    ax.set_xlim(0, 1.08 * most)


def _draw_active(
    ax: Axes, rows: pd.DataFrame, labels: list[str], look: Mapping[str, Style]
) -> None:
    ax.axvline(USED, color=SOFT, lw=0.7, ls=(0, (2, 2)), zorder=1)
    for _, row in rows[rows["active_share"].notna()].iterrows():
        y, colour = labels.index(row["prior"]), look[row["prior"]].colour
        share, units, latent = row[["active_share", "active_units_relative", "latent"]]
        ax.barh(y, share, 0.62, fc=colour, lw=0, alpha=0.45, gid="active")
        if share < USED:
            ax.barh(
                y, 1 - share, 0.62, share, fc="none", ec=COLLAPSE, lw=0, hatch="//////",
                gid="collapsed",
            )  # fmt: skip
        rate = f", {nats(row['rate'], '.1f')} nats" if pd.notna(row["rate"]) else ""
        ink = COLLAPSE if share < USED else SOFT
        ax.text(1.03, y, f"{units:.3g} of {latent}{rate}", size=6.8, va="center", color=ink)
    ax.set_xlim(0, 2.15)
