"""Learning curves: validation ELBO by epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.figures.axis_limits import BEYOND, beyond
from bench.figures.by_latent import nll_by_latent
from bench.figures.scatter import rate_distortion, throughput_nll
from bench.figures.style import (
    COLUMN,
    LOST,
    PAGE,
    NoDataError,
    footer,
    key_height,
    legend,
    one_arm_each,
    panels,
    styles,
    theme,
)
from bench.statistics import frames
from bench.statistics.captions import DOT
from bench.statistics.outliers import is_far, limit

__all__ = ["elbo_curves", "nll_by_latent", "rate_distortion", "throughput_nll"]


@theme()
def elbo_curves(frame: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw training and validation ELBO by epoch: faint lines the seeds, and their mean."""
    one_arm_each(frame)
    known = set(curves["metric"]) if len(curves) else set()
    parts = [m for m in ("train/elbo", "valid/elbo") if m in known]
    if not parts:
        raise NoDataError("Expected curves of train/elbo or valid/elbo; got neither.")
    runs, look = frames.validate(frame), styles(frames.priors(frame))
    data = curves.merge(runs[["run_id", "status"]], on="run_id")
    data["value"] = data["value"].where(data["value"].abs() < 1e300)
    ends = data[data["status"] == "complete"].groupby(["run_id", "metric"])["value"].last()
    most = limit(ends)
    latents = sorted(data["latent"].unique())
    across = min(len(latents), 4)
    blocks = [latents[k : k + across] for k in range(0, len(latents), across)]
    order = [
        (d, m) for block in blocks for m in parts for d in [*block, *[None] * across][:across]
    ]
    note = f"{footer(frame)}{DOT}thin: one seed; thick: mean over complete seeds"
    note += f"{DOT}{BEYOND}" if is_far(ends, most).any() else ""
    rows = len(order) // across
    width = COLUMN if across == 1 else PAGE
    dot: dict[str, Any] = (
        {"marker": "o", "ms": 3} if data["epoch"].nunique() == 1 else {}
    )  # no line in one point
    figure, cells = panels(
        len(order),
        note,
        size=(width / across, 1.65 + key_height(look, width) / rows),
        across=across,
        sharex=True,
    )
    for ax, (latent, metric) in zip(cells, order, strict=True):
        if latent is None:
            ax.remove()
            continue
        part = data[(data["latent"] == latent) & (data["metric"] == metric)]
        sound = part[part["status"] == "complete"]
        for label, style in look.items():
            seen = part[part["prior"] == label]
            for _, one in seen.groupby("run_id"):
                ax.plot(one["epoch"], one["value"], color=style.colour, alpha=0.28, lw=0.7, **dot)
            mean = sound[sound["prior"] == label].groupby("epoch")["value"].mean()
            ax.plot(mean.index, mean, color=style.colour, ls=style.dash, label=label, **dot)
        low, high = _robust(sound if len(sound) else part, most)
        ax.set_ylim(low, high)
        for label, style in look.items():
            mean = sound[sound["prior"] == label].groupby("epoch")["value"].mean()
            if len(mean) and is_far(mean.iloc[-1], most):
                beyond(ax, mean.index[-1], mean.iloc[-1], style.colour)
        for _, one in part[part["status"] == "diverged"].groupby("run_id"):
            end = one.sort_values("epoch").iloc[-1]
            value = end["value"] if np.isfinite(end["value"]) else low
            where = (end["epoch"], np.clip(value, low, high))
            ax.plot(*where, "x", color=look[end["prior"]].colour, **LOST)
        name = {"train/elbo": "training", "valid/elbo": "validation"}[str(metric)]
        ax.set_title(f"D = {latent}, {name}")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.grid(axis="y")
        sns.despine(ax=ax)
        if latent == latents[0] or latent in [block[0] for block in blocks]:
            ax.set_ylabel("ELBO, nats per image\n(higher is better)")
        if metric == parts[-1]:
            ax.set_xlabel("epoch")
            ax.tick_params(labelbottom=True)
    legend(figure, look)
    return figure


def _robust(curves: pd.DataFrame, most: float) -> tuple[float, float]:
    """Return y limits that the last seventy percent of training fill, not its first epochs.

    Values beyond `most` in size are left out.
    """
    begin = curves["epoch"].min() + 0.3 * np.ptp(curves["epoch"])
    late = curves["value"][curves["epoch"] >= begin].dropna()
    late = late[~is_far(late, most)]
    low, high = (late.quantile(0.02), late.max()) if len(late) else (-1.0, 0.0)
    pad = 0.08 * (high - low) or 1.0
    return float(low - pad), float(high + pad)
