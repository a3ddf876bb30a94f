"""Draw what was measured: data in, a matplotlib Figure out, nothing kept and nothing global.

Intervals are those of `bench.stats`, never the plotting library's own; `bench.look` gives every
figure the same theme, styles and footer, `bench.comparisons` draws the differences between priors,
`bench.capacity` what their size brings, `bench.planes` one number against another, `bench.anatomy`
what numbers are made of, `bench.troubles` what went wrong, `bench.galleries` the models. A figure
that needs `stats.summary` computes it, unless it is passed as `table`: `draw_all` does so
once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from . import stats
from .anatomy import elbo_surgery, estimate_by_samples, parted
from .by_latent import gain_by_latent, nll_by_latent
from .capacity import nll_by_parameters
from .clipping import BEYOND, beyond, is_far, limit
from .comparisons import interval_widths, joint_post_hoc, pair_matrix, paired_difference
from .galleries import (
    latent_maps,
    manifold_table,
    map_table,
    prior_manifold,
    sample_sheet,
    sample_table,
)
from .levels import UNSCORED
from .look import (
    COLUMN,
    DOT,
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
    write,
)
from .planes import SPEED, rate_distortion, split, throughput_nll, timed
from .troubles import find, troubles

__all__ = [
    "FIGURES",
    "draw_all",
    "elbo_curves",
    "nll_by_latent",
    "rate_distortion",
    "throughput_nll",
]


@theme()
def elbo_curves(frame: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw training and validation ELBO by epoch: faint lines the seeds, and their mean."""
    one_arm_each(frame)
    known = set(curves["metric"]) if len(curves) else set()
    parts = [m for m in ("train/elbo", "valid/elbo") if m in known]
    if not parts:
        raise NoDataError("Expected curves of train/elbo or valid/elbo; got neither.")
    runs, look = stats.settle(frame), styles(stats.priors(frame))
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


LEVEL = ["net", "latent", "prior", "seeds", *UNSCORED]
PAIRED = [*LEVEL, "reference", "pairs", "images", "difference", "low", "high"]
COLUMNS = {
    "nll_by_latent": [*LEVEL, "nll", "nll_low", "nll_high", "rank"],
    "nll_by_parameters": [*LEVEL, "prior_parameters", "nll", "nll_low", "nll_high"],
    "paired_difference": [*PAIRED, "p", "p_holm", "df", "verdict", "seeds_needed", "note"],
    "interval_widths": [*PAIRED, "sd_seed", "sd_image", "sd_rest", "resolution"]
    + ["seeds_for_resolution", "half_width_limit"],
    "throughput_nll": [
        *LEVEL,
        SPEED,
        f"{SPEED}_low",
        f"{SPEED}_high",
        "timing",
        "timed",
        "timing_device",
    ]
    + ["nll", "nll_low", "nll_high", "device"],
    "rate_distortion": [*LEVEL, "rate", "rate_low", "rate_high"]
    + ["distortion", "distortion_low", "distortion_high", "elbo"],
    "elbo_surgery": [
        *LEVEL,
        "elbo",
        "whole_low",
        "whole_high",
        "distortion",
        "rate",
        "index_code",
        "index_code_out",
    ]
    + ["log_images", "saturated", "marginal_kl", "marginal_kl_out"]
    + ["active_units", "active_units_relative"],
}
COLUMNS["joint_post_hoc"] = COLUMNS["gain_by_latent"] = COLUMNS["paired_difference"]
SPANS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]] = {
    "throughput_nll": timed,
    "rate_distortion": split,
    "elbo_surgery": parted,
}
"""The figures with intervals that a summary does not hold, and what adds them to it."""
EACH = {"run_id", "prior", "latent", "seed", "status", "nll_samples", "test/ess", "test/khat_high"}
"""What names a trial and its estimate in the table behind a figure of trials."""

FIGURES: dict[Callable[..., Figure], tuple[tuple[str, ...], str]] = {
    nll_by_latent: ((), "summary"),
    gain_by_latent: (("loglik",), "summary"),
    nll_by_parameters: ((), "summary"),
    elbo_curves: (("curves",), ""),
    paired_difference: (("loglik",), "summary"),
    pair_matrix: (("loglik",), "pairs"),
    interval_widths: (("loglik",), "summary"),
    joint_post_hoc: (("loglik",), "summary"),
    throughput_nll: ((), "summary"),
    rate_distortion: ((), "summary"),
    elbo_surgery: ((), "summary"),
    estimate_by_samples: ((), ""),
    troubles: ((), "summary"),
    latent_maps: (("maps",), ""),
    prior_manifold: (("maps",), ""),
    sample_sheet: (("samples",), ""),
}
"""Every figure of a grid, in order, with what it takes after the frame, and as its table."""


def draw_all(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]],
    curves: pd.DataFrame,
    samples: Mapping[str, NDArray[Any]],
    maps: Mapping[str, Mapping[str, NDArray[Any]]],
    folder: Path,
    *,
    resolution: float = stats.RESOLUTION,
    dpi: int = 200,
) -> list[Path]:
    """Write every figure that has data as PNG and SVG, and the table behind it as CSV.

    Where more than the latent size was crossed (nets, say), each setting gets figures of its own,
    named `nll_by_latent-net=mlp.png`. A figure without data is left out, not drawn empty.

    Returns:
        The files written, in the order of the figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = [c for c in stats.axes(frame) if c != "latent" and frame[c].nunique(dropna=False) > 1]
    parts = frame.groupby(others, dropna=False) if others else [((), frame)]
    written: list[Path] = []
    for key, part in parts:
        tail = "".join(f"-{c}={stats.valued(v)}" for c, v in zip(others, key, strict=True))
        known: dict[str, Any] = {
            "loglik": loglik,
            "curves": curves[curves["run_id"].isin(part["run_id"])] if len(curves) else curves,
            "samples": samples,
            "maps": maps,
            "summary": stats.summary(part, loglik, resolution=resolution),
            "pairs": stats.pairs(part, loglik, resolution=resolution),
        }
        for draw, (data, table) in FIGURES.items():
            name = draw.__name__
            try:
                figure = draw(
                    part, *(known[d] for d in data), **({"table": known[table]} if table else {})
                )
            except NoDataError:
                continue
            written += write(figure, folder / f"{name}{tail}", _behind(name, part, known), dpi)
    return written


def _behind(name: str, frame: pd.DataFrame, known: Mapping[str, Any]) -> pd.DataFrame:
    """Return the numbers that a figure shows.

    Arguments:
        name: The figure's.
        frame: One row a trial.
        known: What figures take, by the names in `FIGURES`.
    """
    if name in COLUMNS:
        return SPANS.get(name, lambda table, _: table)(known["summary"], frame)[COLUMNS[name]]
    tables: dict[str, Callable[[], pd.DataFrame]] = {
        "elbo_curves": lambda: known["curves"],
        "pair_matrix": lambda: known["pairs"],
        "estimate_by_samples": lambda: _rungs(frame),
        "troubles": lambda: find(frame, known["summary"]),
        "latent_maps": lambda: map_table(frame, known["maps"]),
        "prior_manifold": lambda: manifold_table(frame, known["maps"]),
        "sample_sheet": lambda: sample_table(frame, known["samples"]),
    }
    return tables[name]()


def _rungs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each trial's estimates at every K."""
    return frame[[c for c in frame if c in EACH or str(c).startswith("test/nll_k")]]
