"""Figure of learning curves: training and validation ELBO by epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.figures.axis_limits import beyond_note, mark_beyond
from bench.figures.style import (
    COLUMN_INCHES,
    LOST_MARK,
    PAGE_INCHES,
    NoDataError,
    add_style_legend,
    check_one_arm_per_size,
    footer,
    join_facts,
    legend_inches,
    make_panels,
    styles,
    theme,
)
from bench.statistics.analysis import Analysis
from bench.statistics.outliers import is_far, limit

__all__ = ["elbo_curves"]


CURVES = {"train/elbo": "training", "valid/elbo": "validation"}


@theme()
def elbo_curves(analysis: Analysis) -> Figure:
    """Draws training and validation ELBO by epoch: faint lines the seeds, and their mean."""
    check_one_arm_per_size(analysis.trials)
    curves = analysis.curves
    known = set(curves["metric"]) if len(curves) else set()
    metrics = [metric for metric in CURVES if metric in known]
    if not metrics:
        raise NoDataError("Expected curves of train/elbo or valid/elbo; got neither.")
    look = styles(analysis.priors)
    data = curves.merge(analysis.trials[["run_id", "status"]], on="run_id")
    data["value"] = data["value"].where(data["value"].abs() < 1e300)
    ends = data[data["status"] == "complete"].groupby(["run_id", "metric"])["value"].last()
    bound = limit(ends)
    latents = sorted(data["latent"].unique())
    across = min(len(latents), 4)
    blocks = [latents[k : k + across] for k in range(0, len(latents), across)]
    order = [
        (d, m) for block in blocks for m in metrics for d in [*block, *[None] * across][:across]
    ]
    note = join_facts(
        footer(analysis.trials),
        "thin: one seed; thick: mean over complete seeds",
        beyond_note(ends, bound),
    )
    rows = len(order) // across
    width = COLUMN_INCHES if across == 1 else PAGE_INCHES
    dot: dict[str, Any] = {}
    if data["epoch"].nunique() == 1:  # one point makes no line
        dot = {"marker": "o", "ms": 3}
    figure, cells = make_panels(
        len(order),
        note,
        size=(width / across, 1.65 + legend_inches(look, width) / rows),
        across=across,
        sharex=True,
    )
    for ax, (latent, metric) in zip(cells, order, strict=True):
        if latent is None:
            ax.remove()
            continue
        panel = data[(data["latent"] == latent) & (data["metric"] == metric)]
        complete = panel[panel["status"] == "complete"]
        low, high = _late_limits(complete if len(complete) else panel, bound)
        ax.set_ylim(low, high)
        for label, style in look.items():
            for _, seed in panel[panel["prior"] == label].groupby("run_id"):
                ax.plot(
                    seed["epoch"], seed["value"], color=style.colour, alpha=0.28, lw=0.7, **dot
                )
            mean = complete[complete["prior"] == label].groupby("epoch")["value"].mean()
            ax.plot(mean.index, mean, color=style.colour, ls=style.dash, label=label, **dot)
            if len(mean) and is_far(mean.iloc[-1], bound):
                mark_beyond(ax, mean.index[-1], mean.iloc[-1], style.colour)
        for _, seed in panel[panel["status"] == "diverged"].groupby("run_id"):
            end = seed.sort_values("epoch").iloc[-1]
            value = end["value"] if np.isfinite(end["value"]) else low
            place = (end["epoch"], np.clip(value, low, high))
            ax.plot(*place, "x", color=look[end["prior"]].colour, **LOST_MARK)
        ax.set_title(f"D = {latent}, {CURVES[metric]}")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.grid(axis="y")
        sns.despine(ax=ax)
        if latent in [block[0] for block in blocks]:
            ax.set_ylabel("ELBO, nats per image\n(higher is better)")
        if metric == metrics[-1]:
            ax.set_xlabel("epoch")
            ax.tick_params(labelbottom=True)
    add_style_legend(figure, look)
    return figure


def _late_limits(curves: pd.DataFrame, bound: float) -> tuple[float, float]:
    """Returns y limits that fit the last seventy percent of training, not its first epochs.

    Values larger than `bound` in size are left out.
    """
    begin = curves["epoch"].min() + 0.3 * np.ptp(curves["epoch"])
    late = curves["value"][curves["epoch"] >= begin].dropna()
    late = late[~is_far(late, bound)]
    low, high = (late.quantile(0.02), late.max()) if len(late) else (-1.0, 0.0)
    pad = 0.08 * (high - low) or 1.0
    return float(low - pad), float(high + pad)
