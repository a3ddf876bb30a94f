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

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from flowvae.errors import InputError
from flowvae.trial import registries

from . import stats
from .clipping import is_far, limit
from .levels import share_bad, share_outside, spec
from .look import (
    DOT,
    SOFT,
    NoDataError,
    Style,
    arms,
    footer,
    forest,
    panels,
    percent,
    rows_beside,
    styles,
    theme,
)
from .wording import nats

__all__ = ["find", "sentences", "troubles"]

OUTSIDE = 0.05
"""The share of posterior samples outside a spline's box above which it is said."""
USED = 0.5
"""The share of active dimensions below which it is said."""
EMPTY = 0.1
"""The rate, nats, below which z tells next to nothing of its image."""
BAD = 0.001
"""The share of bad prior samples above which it is said."""
DOUBT = 0.05
"""The standard error of log Z, nats, above which it is said."""
BASE = ", which it starts from, diverged"
"""Ends the reason of a prior that was fitted to a model that diverged."""
CAUSES = 3
"""The most causes of an arm's losses that are said."""
LONG = 90
"""Characters of a reason that are kept."""
TRIED = ("diverged", "failed")  # a lost seed; a missing one has not been tried
APART = " | "
COLLAPSE = "#d1495b"
TITLES = {
    "lost": "seeds lost",
    "outside": "samples\noutside the box",
    "active": "active dimensions,\nrate",
    "bad": "bad prior\nsamples",
}
RATIOS = {"lost": 1.0, "outside": 0.8, "active": 1.6, "bad": 0.8}
"""How wide each panel is to the first."""
KEPT = [
    *("prior", "seeds", "tried", "diverged", "failed", "missing"),
    *("lost_share", "lost_low", "lost_high", "reasons", "outside_posterior", "outside_prior"),
    *("active_units", "active_units_relative", "active_share", "rate", "bad_share"),
    *("collapsed", "far", "log_z_error", "caveat"),
]


def find(frame: pd.DataFrame, summary: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row an arm: what went wrong, in numbers, and why seeds were lost.

    Arguments:
        frame: One row a trial.
        summary: `stats.summary` of it, where it is at hand.
    """
    summary = stats.summary(frame, {}) if summary is None else summary
    lost, tried = summary["diverged"] + summary["failed"], summary["seeds"]
    tried = tried + lost  # a missing one has not been tried yet
    ends = [_wilson(k, n) for k, n in zip(lost, tried, strict=True)]
    low, high = np.array(ends).T
    by, _ = stats.settings(summary)
    each = list(_arms(frame))
    most = limit(*(arm["test/nll"][arm["status"] == "complete"] for arm in each))
    return summary.assign(
        tried=tried,
        lost_share=lost / tried.where(tried > 0),
        lost_low=low,
        lost_high=high,
        reasons=[_reasons(arm) for arm in each],
        collapsed=[_seeds(arm, "test/rate", lambda rate: rate < EMPTY) for arm in each],
        far=[_seeds(arm, "test/nll", lambda nll: is_far(nll, most)) for arm in each],
        active_share=summary["active_units_relative"] / summary["latent"],
    )[[*by, *KEPT]]


def _arms(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the trials of each arm, in the order of `stats.summary`."""
    for _, rows in stats.contexts(stats.settle(frame)):
        for label in stats.priors(frame):
            if len(arm := rows[rows["prior"] == label]):
                yield arm


def _wilson(lost: int, tried: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share: it is sound for few seeds and for none lost.

    References:
        Probable Inference, the Law of Succession, and Statistical Inference (Wilson, 1927),
        https://doi.org/10.1080/01621459.1927.10502953
    """
    if not tried:
        return float("nan"), float("nan")
    found = scipy.stats.binomtest(int(lost), int(tried)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _reasons(arm: pd.DataFrame) -> str:
    """Return why an arm's seeds were lost, each cause once, with its epochs and their seeds."""
    each: dict[str, dict[str, list[str]]] = {}
    for _, row in arm[arm["status"].isin(TRIED)].iterrows():
        said = str(row.get("reason") or "").strip()
        known = said.splitlines()[0] if said and said != "nan" else f"{row['status']}"
        epoch, colon, cause = known.partition(": ")
        if not (colon and epoch.startswith("epoch ")):
            epoch, cause = "", known
        if cause.endswith(BASE):  # the name before it has the seed in it
            cause = f"the model{BASE}"
        each.setdefault(cause[:LONG], {}).setdefault(epoch, []).append(str(row["seed"]))
    found = []
    for cause, when in each.items():
        places = [_when(epoch, seeds) for epoch, seeds in sorted(when.items(), key=_at)]
        found.append(", ".join([cause, *places]))
    return APART.join(found)


def _at(when: tuple[str, list[str]]) -> int:
    """Return the number of an epoch in words, 0 without one."""
    return int(when[0].removeprefix("epoch ") or 0)


def _when(epoch: str, seeds: list[str]) -> str:
    """Return an epoch with its seeds in words."""
    some = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    return f"in {epoch} at {some}" if epoch else f"at {some}"


def _seeds(arm: pd.DataFrame, column: str, chosen: Callable[[pd.Series], Any]) -> str:
    """Return the complete seeds of an arm whose number is chosen, each with it."""
    if column not in arm:
        return ""
    done = arm[arm["status"] == "complete"]
    some = done[chosen(done[column])]
    each = [f"{n} ({v:.2g})" for n, v in zip(some["seed"], some[column], strict=True)]
    return f"seed{'s' if len(each) > 1 else ''} {', '.join(each)}" if each else ""


def sentences(frame: pd.DataFrame, summary: pd.DataFrame | None = None) -> list[str]:
    """Return what went wrong in words, where it is worth some.

    Arguments:
        frame: One row a trial.
        summary: `stats.summary` of it, where it is at hand.
    """
    summary = stats.summary(frame, {}) if summary is None else summary
    found = find(frame, summary)
    by, told = stats.settings(summary)
    said = []
    for _, rows in found.groupby(by, dropna=False):
        place = stats.where(rows.iloc[0], told)
        words = (*_lost(rows), *_absurd(rows), *_outside(rows), *_unused(rows), *_drawn(rows))
        said += [f"At {place}, {text}." for text in words]
    return said


def _lost(rows: pd.DataFrame) -> Iterator[str]:
    for _, row in rows.iterrows():
        counts = [f"{row[s]} of {row['tried']} seeds {s}" for s in TRIED if row[s]]
        if counts:
            causes = row["reasons"].split(APART)
            more = len(causes) - CAUSES
            others = [f"{more} more in troubles.csv"] if more > 0 else []
            yield f"{row['prior']}: {', '.join(counts)} ({'; '.join(causes[:CAUSES] + others)})"


def _absurd(rows: pd.DataFrame) -> Iterator[str]:
    far = rows[rows["far"] != ""]
    if len(far):
        yield (
            "test NLLs are finite, yet so far off all others that means and intervals with them "
            f"say nothing: {_each(far, 'far', str)}"
        )


def _outside(rows: pd.DataFrame) -> Iterator[str]:
    far = rows[rows["outside_posterior"] > OUTSIDE]
    for cure, some in far.groupby(far["prior"].map(_cure), sort=False):
        yield (
            "posterior samples lie outside the box of a spline, where it is the identity and "
            f"models nothing: {_each(some, 'outside_posterior', percent)} of the coordinates, at "
            f"the worst spline{cure}"
        )


def _each(rows: pd.DataFrame, column: str, write: Callable[[Any], str]) -> str:
    """Return each arm with what its column holds."""
    return ", ".join(f"{row['prior']} {write(row[column])}" for _, row in rows.iterrows())


def _cure(label: str) -> str:
    """Return which of the prior's options would bring samples back into its box."""
    known = spec(label)
    try:
        options = registries()["prior"][known.name].options
    except InputError:
        return ""
    ways = ["a wider bound"] if "bound" in options else []
    if options.get("affine") is False and ("affine", "true") not in known.options:
        ways.append("affine=true")
    return f"; {' or '.join(ways)} may bring them back" if ways else ""


def _unused(rows: pd.DataFrame) -> Iterator[str]:
    few = rows[rows["active_share"] < USED]
    if len(few):
        yield (
            f"fewer than half of the {rows['latent'].iloc[0]} latent dimensions are active, "
            f"Var(E[z|x]) above 0.01 Var(z): "
            f"{_each(few, 'active_units_relative', '{:.3g}'.format)} (means over seeds)"
        )
    empty = rows[rows["collapsed"] != ""]
    if len(empty):
        yield (
            "the posterior has collapsed onto the prior, a rate near zero (nats, in brackets): "
            f"{_each(empty, 'collapsed', str)}"
        )


def _drawn(rows: pd.DataFrame) -> Iterator[str]:
    bad = rows[rows["bad_share"] > BAD]
    if len(bad):
        yield f"prior samples are not finite: {_each(bad, 'bad_share', percent)} of them"
    rough = rows[rows["log_z_error"] > DOUBT]
    if len(rough):
        yield (
            "the normalising constant is an estimate with a standard error of its log that no "
            f"interval holds: {_each(rough, 'log_z_error', '{:.2g}'.format)} nats"
        )


@theme()
def troubles(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw what went wrong, a row an arm and a band of panels a latent size.

    Arguments:
        frame: One row a trial.
        table: `stats.summary` of it, where it is at hand.
    """
    found = find(frame, arms(frame, table=table))
    shown = _shown(found)
    labels, latents = _side_by_side(stats.priors(frame)), sorted(found["latent"].unique())
    look = styles(stats.priors(frame))
    width, _ = rows_beside(labels, len(shown), each=1.7, least=1.0, more=0.2)
    figure, cells = panels(
        len(latents) * len(shown),
        _note(frame, found, shown),
        size=(width / len(shown), 0.35 + 0.65 / len(latents) + 0.15 * max(len(labels), 2)),
        across=len(shown),
        ratios=[RATIOS[name] for name in shown],
    )
    runs = stats.settle(frame)
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
    names = list(dict.fromkeys(spec(label).name for label in labels))
    return sorted(labels, key=lambda label: names.index(spec(label).name))


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
        "bad": ("bad_share", share_bad),
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
