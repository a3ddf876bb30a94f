"""Figures of the ELBO: the NLL estimate by number of samples, and the parts of the ELBO."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.figures.axis_limits import beyond_note, cut_y_axis, mark_beyond
from bench.figures.style import (
    GREY,
    LOST_MARK,
    NoDataError,
    Style,
    add_legend,
    check_one_arm_per_size,
    fit_forest,
    footer,
    format_forest,
    join_facts,
    legend_inches,
    make_panels,
    mark_lost_seeds,
    set_log_ticks,
    styles,
    summarise_arms,
    theme,
)
from bench.statistics.analysis import Analysis
from bench.statistics.arms import add_intervals
from bench.statistics.formatting import percent, thousands
from bench.statistics.outliers import is_far, limit
from flowvae.evaluation.pareto import RELIABLE

__all__ = ["elbo_surgery", "elbo_table", "estimate_by_samples", "estimate_table"]


NLL_COLUMN = "test/nll_k"
TRIAL_COLUMNS = (
    *("run_id", "prior", "latent", "seed", "status", "nll_samples", "test/ess", "test/khat_high"),
)
"""The columns that name a trial and its estimate in `estimate_table`."""
ELBO_PARTS = {
    "distortion": ("distortion", "#c9ced6"),
    "index_code": ("index code I(n; z)", "#6f87b0"),
    "marginal_kl": ("marginal KL(q(z) || p(z))", "#d1495b"),
}


@theme()
def estimate_by_samples(analysis: Analysis) -> Figure:
    """Draws the test NLL by number K of importance samples, over the share of unreliable images.

    Above, a line that still falls at its end has not converged; there is none where the estimator
    gives one number K alone. Below, the share of images whose weights have a k-hat above 0.7:
    their estimates are unreliable at this K.
    """
    check_one_arm_per_size(analysis.trials)
    trials, runs = analysis.trials, analysis.complete
    if "test/khat_high" not in runs or not runs["test/khat_high"].notna().any():
        raise NoDataError("Expected a complete trial with test/khat_high; got none.")
    columns = [str(c) for c in runs if str(c).startswith(NLL_COLUMN)]
    ladder = sorted(int(column.removeprefix(NLL_COLUMN)) for column in columns)
    ladder = ladder if len(ladder) > 1 else []
    look = styles(analysis.priors)
    latents = sorted(trials["latent"].unique())
    estimates = runs[[f"{NLL_COLUMN}{samples}" for samples in ladder]]
    bound = limit(estimates) if ladder else math.inf
    note = join_facts(
        footer(analysis.trials),
        "means over complete seeds",
        *(["every K from the same draws", "K = 1: minus the ELBO"] if ladder else []),
        "dots: one seed",
        beyond_note(estimates, bound) if ladder else "",
    )
    width, across = fit_forest(list(look), len(latents), width=1.7, least=1.15)
    count = across * -(-len(latents) // across)  # with the last row filled
    rows = 2 if ladder else 1
    figure, cells = make_panels(
        rows * count,
        note,
        size=(width / across, max(1.7, 0.7 + 0.14 * len(look))),
        across=across,
    )
    largest_share = min(1.0, 1.15 * float(runs["test/khat_high"].max()) + 0.02)
    for k, latent in enumerate([*latents, *[None] * (count - len(latents))]):
        block, column = divmod(k, across)
        first, *_ = panels = [cells[(rows * block + row) * across + column] for row in range(rows)]
        if latent is None:
            for panel in panels:
                panel.remove()
            continue
        complete, tried = (some[some["latent"] == latent] for some in (runs, trials))
        if ladder:
            _draw_ladder(first, complete[["prior", *estimates]], look, bound)
            if column == 0:
                first.set_ylabel("test NLL, nats")
        _draw_shares(panels[-1], complete, tried, look, named=column == 0)
        panels[-1].set_xlim(0, largest_share)
        first.set_title(f"D = {latent}")
    return figure


def _draw_ladder(ax: Axes, runs: pd.DataFrame, look: Mapping[str, Style], bound: float) -> None:
    """Draws the mean estimate of each prior by number of samples."""
    columns = [str(c) for c in runs if c != "prior"]
    ladder = [int(column.removeprefix(NLL_COLUMN)) for column in columns]
    drawn = []
    for label, style in look.items():
        arm = runs[runs["prior"] == label]
        if not len(arm):  # an empty line that is not clipped would ruin the layout
            continue
        means = arm[columns].mean()
        ax.plot(
            ladder, means, color=style.colour, ls=style.dash, marker=style.marker,
            ms=3.5, mew=0.7, mfc=style.face,
        )  # fmt: skip
        if is_far(means, bound).any():
            first = int(is_far(means, bound).argmax())
            mark_beyond(ax, ladder[first], means.iloc[first], style.colour)
        drawn.append(means)
    if drawn:
        cut_y_axis(ax, drawn, bound=bound)
    set_log_ticks(ax.xaxis, _spaced_ticks(ladder), thousands)
    ax.set_xlabel("importance samples K", size=7)
    ax.grid(axis="y")
    sns.despine(ax=ax)


def _draw_shares(
    ax: Axes, runs: pd.DataFrame, tried: pd.DataFrame, look: Mapping[str, Style], *, named: bool
) -> None:
    """Draws the share of unreliable images of each prior, which is named: the mean, and seeds."""
    edge = ax.get_yaxis_transform()
    for y, (label, style) in enumerate(look.items()):
        if (tried["status"][tried["prior"] == label] == "diverged").any():
            ax.plot(0.97, y, "x", color=style.colour, transform=edge, **LOST_MARK)
        shares = runs["test/khat_high"][runs["prior"] == label]
        if not len(shares):
            continue
        hollow = style.face != style.colour
        ax.barh(
            y, shares.mean(), 0.62, fc="white" if hollow else style.colour,
            ec=style.colour, lw=1 if hollow else 0, alpha=0.45,
        )  # fmt: skip
        ax.plot(
            shares, [y] * len(shares), ls="", marker=style.marker, color=style.colour, ms=3,
            mew=0.7, mfc=style.face, clip_on=False,
        )  # fmt: skip
    format_forest(ax, list(look) if named else [""] * len(look), "", look)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: percent(v)))
    ax.set_xlabel(f"images with k\N{COMBINING CIRCUMFLEX ACCENT} > {RELIABLE:g}", size=7)


def estimate_table(analysis: Analysis) -> pd.DataFrame:
    """Returns each trial's estimates at every K, and its k-hat."""
    known = [*TRIAL_COLUMNS, *(c for c in analysis.trials if str(c).startswith(NLL_COLUMN))]
    return analysis.trials[[c for c in analysis.trials if c in known]]


def elbo_table(analysis: Analysis) -> pd.DataFrame:
    """Returns arms with the interval of the sum of their parts, `whole_low` to `whole_high`."""
    columns = {"whole": [f"test/{name}" for name in ELBO_PARTS]}
    return add_intervals(summarise_arms(analysis), analysis.trials, columns)


def _spaced_ticks(ladder: list[int]) -> list[int]:
    """Returns those numbers of samples whose ticks have room on a log axis, always the last."""
    gap = (np.log10(ladder[-1]) - np.log10(ladder[0])) / 6
    ticks: list[int] = []
    for samples in reversed(ladder):
        if not ticks or np.log10(ticks[-1] / samples) >= gap:
            ticks.append(samples)
    return ticks[::-1]


def _largest(row: pd.Series) -> float:
    """Returns the number of a row that is largest in size; NaN if one is missing."""
    numbers = row.to_numpy(np.float64)
    return float("nan") if np.isnan(numbers).any() else float(numbers[np.abs(numbers).argmax()])


@theme()
def elbo_surgery(analysis: Analysis) -> Figure:
    """Draws the parts of minus the ELBO: distortion, index code and marginal KL.

    References:
        ELBO surgery (Hoffman and Johnson, 2016)
        http://approximateinference.org/2016/accepted/HoffmanJohnson2016.pdf
    """
    table = elbo_table(analysis)
    look = styles(analysis.priors)
    known = table["marginal_kl"].notna()
    if not known.any():
        raise NoDataError("Expected a complete trial with its marginal KL; got none.")
    latents, ceiling = sorted(table["latent"].unique()), float(table["log_images"].max())
    parts = table[list(ELBO_PARTS)]
    largest = parts.assign(whole=parts.sum(axis=1).where(known)).agg(_largest, axis=1)
    bound = limit(largest)
    saturated = (
        ": near it (hatched) it measures N and not the information, and the marginal KL is an "
        "upper bound"
    )
    note = join_facts(
        footer(analysis.trials),
        "means over complete seeds; bar: 95 % t interval of their sum",
        f"the index code is at most log N = {ceiling:.1f} nats"
        + saturated * bool((table["saturated"] > 0).any()),
        "index code and marginal KL from separate draws; the axis does not start at zero",
        "active: dimensions with Var(mu) / Var(z) > 0.01",
        beyond_note(largest, bound),
    )
    handles = [Patch(fc=colour, label=name) for name, colour in ELBO_PARTS.values()]
    width, across = fit_forest(list(look), len(latents), width=2.2, least=1.6)
    rows = -(-len(latents) // across)
    top = (legend_inches([name for name, _ in ELBO_PARTS.values()], width) + 0.35) / rows
    figure, cells = make_panels(
        len(latents), note, size=(width / across, 0.8 + top + 0.2 * max(len(look), 2)),
        across=across, sharey=True, sharex=True,
    )  # fmt: skip
    start, end = 0.92 * float(table["distortion"].min()), 0.0
    for ax, latent in zip(cells, latents, strict=True):
        for _, row in table[table["latent"] == latent].iterrows():
            y, left = list(look).index(row["prior"]), start
            mark_lost_seeds(ax, row, y, look[row["prior"]].colour)
            value = largest[row.name]
            if is_far(value, bound):
                colour = look[row["prior"]].colour
                mark_beyond(ax, y, value, colour, upright=False, inside=0.1)
            if pd.isna(value) or is_far(value, bound):
                continue
            for name, (_, colour) in ELBO_PARTS.items():
                width = row[name] - (start if name == "distortion" else 0)
                hatch = "////" if row["saturated"] > 0 and name == "index_code" else None
                ax.barh(y, width, 0.66, left, fc=colour, ec="white", lw=0, hatch=hatch, gid=name)
                left += width
            ax.plot(
                [row["whole_low"], row["whole_high"]], [y, y], color=GREY, lw=0.9, gid="interval"
            )
            active = f"{row['active_units_relative']:.3g} active"
            right = np.nanmax([left, row["whole_high"]])
            ax.annotate(
                active, (right, y), (3, 0), textcoords="offset points", size=6.8, va="center",
                color=GREY,
            )  # fmt: skip
            end = max(end, right)
        format_forest(ax, list(look), f"D = {latent}", look)
        ax.set_xlabel("minus ELBO,\nnats per image")
    cells[0].set_xlim(start, end + 0.35 * (end - start))
    add_legend(figure, handles)
    return figure
