"""Draw what numbers are made of: an estimate's reliability, the ELBO's parts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bench.figures.axis_limits import BEYOND, beyond, span
from bench.figures.style import (
    LOST,
    SOFT,
    NoDataError,
    arms,
    footer,
    forest,
    key,
    key_height,
    losses,
    one_arm_each,
    panels,
    rows_beside,
    styles,
    theme,
)
from bench.statistics import frames
from bench.statistics.arms import add_intervals
from bench.statistics.captions import DOT
from bench.statistics.formatting import percent, thousands
from bench.statistics.outliers import is_far, limit
from flowvae.evaluation.pareto import RELIABLE

__all__ = ["elbo_surgery", "estimate_by_samples", "parted"]


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
    settled = frames.validate(frame)
    runs = settled[settled["status"] == "complete"]
    if "test/khat_high" not in runs or not runs["test/khat_high"].notna().any():
        raise NoDataError("Expected a complete trial with test/khat_high; got none.")
    columns = [str(c) for c in runs]
    rungs = sorted(int(c.removeprefix(RUNG)) for c in columns if c.startswith(RUNG))
    look = styles(frames.priors(frame))
    latents = sorted(settled["latent"].unique())
    drawn = runs[[f"{RUNG}{rung}" for rung in rungs]]
    far = limit(drawn)
    note = f"{footer(frame)}{DOT}means over complete seeds{DOT}every K from the same draws"
    note += f"{DOT}K = 1: minus the ELBO{DOT}dots: one seed"
    note += f"{DOT}{BEYOND}" if is_far(drawn, far).any() else ""
    width, across = rows_beside(list(look), len(latents), each=1.7, least=1.15)
    count = across * -(-len(latents) // across)  # with the last row filled
    figure, cells = panels(
        2 * count,
        note,
        size=(width / across, max(1.7, 0.7 + 0.14 * len(look))),
        across=across,
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
            above.plot(
                rungs, values, color=style.colour, ls=style.dash, marker=style.marker,
                ms=3.5, mew=0.7, mfc=style.face,
            )  # fmt: skip
            if is_far(values, far).any():
                first = int(is_far(values, far).argmax())
                beyond(above, rungs[first], values.iloc[first], style.colour)
            shown.append(values)
            hollow = style.face != style.colour
            below.barh(
                number, share.mean(), 0.62, fc="white" if hollow else style.colour,
                ec=style.colour, lw=1 if hollow else 0, alpha=0.45,
            )  # fmt: skip
            below.plot(
                share, [number] * len(share), ls="", marker=style.marker, color=style.colour, ms=3,
                mew=0.7, mfc=style.face, clip_on=False,
            )  # fmt: skip
        if shown and is_far(shown, far).any():
            above.set_ylim(*span(shown, most=far))
        above.set_xscale("log")
        above.xaxis.set_minor_locator(NullLocator())
        above.set_xticks(_apart(rungs))
        above.xaxis.set_major_formatter(FuncFormatter(lambda v, _: thousands(v)))
        above.set_title(f"D = {latent}")
        above.set_xlabel("importance samples K", size=7)
        above.grid(axis="y")
        forest(below, list(look) if column == 0 else [""] * len(look), "", look)
        below.set_xlim(0, most)
        below.xaxis.set_major_locator(MaxNLocator(3))
        below.xaxis.set_major_formatter(FuncFormatter(lambda v, _: percent(v)))
        below.set_xlabel(f"images with k\N{COMBINING CIRCUMFLEX ACCENT} > {RELIABLE:g}", size=7)
        sns.despine(ax=above)
        if column == 0:
            above.set_ylabel("test NLL, nats")
    return figure


def parted(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return arms with the interval of the sum of their parts, `whole_low` to `whole_high`."""
    return add_intervals(
        table, frames.validate(frame), {"whole": [f"test/{name}" for name in PARTS]}
    )


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
    table, look = parted(arms(frame, table=table), frame), styles(frames.priors(frame))
    known = table["marginal_kl"].notna()
    if not known.any():
        raise NoDataError("Expected a complete trial with its marginal KL; got none.")
    latents, ceiling = sorted(table["latent"].unique()), float(table["log_images"].max())
    parts = table[list(PARTS)]
    largest = parts.assign(whole=parts.sum(axis=1).where(known)).agg(_largest, axis=1)
    most = limit(largest)
    note = DOT.join([
        footer(frame),
        "means over complete seeds; bar: 95 % t interval of their sum",
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
    keys = [Patch(fc=colour, label=name) for name, colour in PARTS.values()]
    width, across = rows_beside(list(look), len(latents), each=2.2, least=1.6)
    rows = -(-len(latents) // across)
    top = (key_height([name for name, _ in PARTS.values()], width) + 0.35) / rows
    figure, cells = panels(
        len(latents), note, size=(width / across, 0.8 + top + 0.2 * max(len(look), 2)),
        across=across, sharey=True, sharex=True,
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
            ax.plot(
                [row["whole_low"], row["whole_high"]], [y, y], color=SOFT, lw=0.9, gid="interval"
            )
            active = f"{row['active_units_relative']:.3g} active"
            right = np.nanmax([left, row["whole_high"]])
            ax.annotate(
                active, (right, y), (3, 0), textcoords="offset points", size=6.8, va="center",
                color=SOFT,
            )  # fmt: skip
            end = max(end, right)
        forest(ax, list(look), f"D = {latent}", look)
    cells[0].set_xlim(floor, end + 0.35 * (end - floor))
    key(figure, keys)
    for ax in cells:
        ax.set_xlabel("minus ELBO,\nnats per image")
    return figure
