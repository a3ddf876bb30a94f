"""Draw what numbers are made of: an estimate's reliability, the ELBO's parts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from flowvae.pareto import RELIABLE

from . import stats
from .clipping import BEYOND, beyond, is_far, limit, span
from .look import (
    DOT,
    LOST,
    SOFT,
    NoDataError,
    arms,
    footer,
    forest,
    key_size,
    legend,
    losses,
    one_arm_each,
    panels,
    percent,
    styles,
    theme,
    thousands,
)

__all__ = ["elbo_surgery", "estimate_by_samples"]

RUNG = "test/nll_k"
PARTS = {
    "distortion": ("distortion", "#c9ced6"),
    "index_code": ("index code I(n; z)", "#6f87b0"),
    "marginal_kl": ("marginal KL(q(z) || p(z))", "#d1495b"),
}


@theme()
def estimate_by_samples(frame: pd.DataFrame) -> Figure:
    """Draw the test NLL by number K of importance samples, over the share of unreliable images.

    Above, a line that still falls at its end has not arrived. Below, the share of images whose
    weights have a k-hat above 0.7: their estimates are not to be relied on at this K.
    """
    one_arm_each(frame)
    settled = stats.settle(frame)
    runs = settled[settled["status"] == "complete"]
    if "test/khat_high" not in runs or not runs["test/khat_high"].notna().any():
        raise NoDataError("Expected a complete trial with test/khat_high; got none.")
    columns = [str(c) for c in runs]
    rungs = sorted(int(c.removeprefix(RUNG)) for c in columns if c.startswith(RUNG))
    look = styles(stats.priors(frame))
    latents = sorted(settled["latent"].unique())
    drawn = runs[[f"{RUNG}{rung}" for rung in rungs]]
    far = limit(drawn)
    note = f"{footer(frame)}{DOT}means over complete seeds{DOT}every K from the same draws"
    note += f"{DOT}K = 1: minus the ELBO{DOT}dots: one seed"
    note += f"{DOT}{BEYOND}" if is_far(drawn, far).any() else ""
    key, high = key_size(look)
    across = min(len(latents), 4)
    count = across * -(-len(latents) // across)  # with the last row filled
    figure, cells = panels(
        2 * count,
        note,
        size=(1.9, max(1.9, 0.75 + 0.14 * len(look), high / (2 * count / across))),
        across=across,
        extra=key + (across == 1),
    )
    most = min(1.0, 1.15 * float(runs["test/khat_high"].max()) + 0.02)
    for k, latent in enumerate([*latents, *[None] * (count - len(latents))]):
        block, column = divmod(k, across)
        above, below = (cells[(2 * block + row) * across + column] for row in (0, 1))
        if latent is None:
            above.remove()
            below.remove()
            continue
        here, every = (rows[rows["latent"] == latent] for rows in (runs, settled))
        edge, shown = below.get_yaxis_transform(), []
        for number, (label, style) in enumerate(look.items()):
            if (every["status"][every["prior"] == label] == "diverged").any():
                below.plot(0.97, number, "x", color=style.colour, transform=edge, **LOST)
            mine = here[here["prior"] == label]
            if not len(mine):  # a line without points that is not clipped ruins the layout
                continue
            values, share = mine[drawn.columns].mean(), mine["test/khat_high"]
            above.plot(rungs, values, color=style.colour, ls=style.dash, marker=".", ms=4)
            if is_far(values, far).any():
                first = int(is_far(values, far).argmax())
                beyond(above, rungs[first], values.iloc[first], style.colour)
            shown.append(values)
            hollow = style.face != style.colour
            below.barh(
                number, share.mean(), 0.62, fc="white" if hollow else style.colour,
                ec=style.colour, lw=1 if hollow else 0, alpha=0.45,
            )  # fmt: skip
            below.plot(share, [number] * len(share), ".", color=style.colour, ms=4, clip_on=False)
        if shown and is_far(shown, far).any():
            above.set_ylim(*span(shown, most=far))
        above.set_xscale("log")
        above.xaxis.set_minor_locator(NullLocator())
        above.set_xticks(_apart(rungs))
        above.xaxis.set_major_formatter(FuncFormatter(lambda v, _: thousands(v)))
        above.set(title=f"D = {latent}", xlabel="importance samples K")
        above.grid(axis="y")
        below.set(xlim=(0, most), ylim=(len(look) - 0.45, -0.55))
        below.set_yticks(range(len(look)), list(look) if column == 0 else [""] * len(look), size=7)
        below.tick_params(axis="y", length=0)
        below.xaxis.set_major_locator(MaxNLocator(3))
        below.xaxis.set_major_formatter(FuncFormatter(lambda v, _: percent(v)))
        below.set_xlabel(f"images with k\N{COMBINING CIRCUMFLEX ACCENT} > {RELIABLE:g}")
        below.grid(axis="x")
        sns.despine(ax=above)
        sns.despine(ax=below, left=True)
        if column == 0:
            above.set_ylabel("test NLL, nats")
    legend(figure, look)
    return figure


def _apart(rungs: list[int]) -> list[int]:
    """Return the rungs whose ticks have room on a logarithmic axis, the last one always."""
    near = (np.log10(rungs[-1]) - np.log10(rungs[0])) / 6
    kept: list[int] = []
    for rung in reversed(rungs):
        if not kept or np.log10(kept[-1] / rung) >= near:
            kept.append(rung)
    return kept[::-1]


def _largest(row: pd.Series) -> float:
    """Return the number of a row that is largest in size; NaN where one is missing."""
    numbers = row.to_numpy(np.float64)
    return float("nan") if np.isnan(numbers).any() else float(numbers[np.abs(numbers).argmax()])


@theme()
def elbo_surgery(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw what minus the ELBO is made of: distortion, index code and marginal KL.

    References:
        ELBO surgery (Hoffman and Johnson, 2016)
        http://approximateinference.org/2016/accepted/HoffmanJohnson2016.pdf

    Arguments:
        frame: One row a trial.
        table: `stats.summary` of it, where it is at hand.
    """
    table, look = arms(frame, table=table), styles(stats.priors(frame))
    known = table["marginal_kl"].notna()
    if not known.any():
        raise NoDataError("Expected a complete trial with its marginal KL; got none.")
    latents, ceiling = sorted(table["latent"].unique()), float(table["log_images"].max())
    parts = table[list(PARTS)]
    largest = parts.assign(whole=parts.sum(axis=1).where(known)).agg(_largest, axis=1)
    most = limit(largest)
    note = DOT.join([
        footer(frame),
        "means over complete seeds",
        f"the index code is at most log N = {ceiling:.1f} nats"
        + (
            ": near it (hatched) it tells N and not the information, and the marginal KL is an "
            "upper bound"
            if (table["saturated"] > 0).any()
            else ""
        ),
        "index code and marginal KL by draws of their own; the axis does not start at zero",
        "active: dimensions with Var(mu) / Var(z) > 0.01",
        *([BEYOND] if is_far(largest, most).any() else ()),
    ])  # fmt: skip
    figure, cells = panels(
        len(latents), note, size=(2.3, 1.15 + 0.25 * max(len(look), 2)),
        extra=1.6 + 1.6 * (len(latents) == 1), across=3, sharey=True, sharex=True,
    )  # fmt: skip
    floor, end = 0.92 * float(table["distortion"].min()), 0.0
    for ax, latent in zip(cells, latents, strict=True):
        for _, row in table[table["latent"] == latent].iterrows():
            y, left = list(look).index(row["prior"]), floor
            losses(ax, row, y, look[row["prior"]].colour, 0)
            value = largest[row.name]
            if is_far(value, most):
                beyond(ax, y, value, look[row["prior"]].colour, upright=False, inside=0.1)
            if pd.isna(value) or is_far(value, most):
                continue
            for name, (_, colour) in PARTS.items():
                width = row[name] - (floor if name == "distortion" else 0)
                hatch = "////" if row["saturated"] > 0 and name == "index_code" else None
                ax.barh(y, width, 0.66, left, fc=colour, ec="white", lw=0, hatch=hatch, gid=name)
                left += width
            active = f"{row['active_units_relative']:.3g} active"
            ax.annotate(
                active, (left, y), (3, 0), textcoords="offset points", size=6.8, va="center",
                color=SOFT,
            )  # fmt: skip
            end = max(end, left)
        forest(ax, list(look), f"D = {latent}")
    cells[0].set_xlim(floor, end + 0.25 * (end - floor))
    keys = [Patch(fc=colour, label=name) for name, colour in PARTS.values()]
    figure.legend(handles=keys, loc="outside upper left", ncols=3, handlelength=1.2)
    for ax in cells:
        ax.set_xlabel("minus ELBO, nats per image")
    return figure
