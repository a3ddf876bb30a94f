"""Draw what was measured: data in, a matplotlib Figure out, nothing kept and nothing global.

Intervals are those of `bench.statistics.comparison`, never the plotting library's own;
`bench.figures.style` gives every figure the same theme, styles and footer,
`bench.figures.differences` draws the differences between priors, `bench.figures.by_parameters`
what their size brings, `bench.figures.scatter` one number against another,
`bench.figures.elbo_parts` what numbers are made of, `bench.figures.failures` what went wrong,
`bench.figures.samples` the models. A figure that needs `stats.summary` computes it, unless it is
passed as `table`: `draw_all` does so once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.figures.by_latent import gain_by_latent, nll_by_latent
from bench.figures.by_parameters import nll_by_parameters
from bench.figures.differences import (
    interval_widths,
    joint_post_hoc,
    pair_matrix,
    paired_difference,
)
from bench.figures.elbo_parts import add_elbo_intervals, elbo_surgery, estimate_by_samples
from bench.figures.failures import failures
from bench.figures.latent_maps import latent_maps, map_table
from bench.figures.learning_curves import elbo_curves
from bench.figures.samples import manifold_table, prior_manifold, sample_sheet, sample_table
from bench.figures.scatter import (
    SPEED,
    add_rate_intervals,
    add_speed_intervals,
    rate_distortion,
    throughput_nll,
)
from bench.figures.style import (
    NoDataError,
    write_figure,
)
from bench.statistics import comparison, frames
from bench.statistics.arms import UNSCORED_STATUSES
from bench.statistics.failures import find_failures

__all__ = ["FIGURES", "draw_all", "nll_by_latent", "rate_distortion", "throughput_nll"]


LEVEL = ["net", "latent", "prior", "seeds", *UNSCORED_STATUSES]
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
    "throughput_nll": add_speed_intervals,
    "rate_distortion": add_rate_intervals,
    "elbo_surgery": add_elbo_intervals,
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
    failures: ((), "summary"),
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
    resolution: float = comparison.RESOLUTION,
    dpi: int = 200,
) -> list[Path]:
    """Write every figure that has data as PNG and SVG, and the table behind it as CSV.

    Where more than the latent size was crossed (nets, say), each setting gets figures of its own,
    named `nll_by_latent-net=mlp.png`. A figure without data is left out, not drawn empty.

    Returns:
        The files written, in the order of the figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = [
        c for c in frames.axes(frame) if c != "latent" and frame[c].nunique(dropna=False) > 1
    ]
    parts = frame.groupby(others, dropna=False) if others else [((), frame)]
    written: list[Path] = []
    for key, part in parts:
        tail = "".join(f"-{c}={frames.valued(v)}" for c, v in zip(others, key, strict=True))
        known: dict[str, Any] = {
            "loglik": loglik,
            "curves": curves[curves["run_id"].isin(part["run_id"])] if len(curves) else curves,
            "samples": samples,
            "maps": maps,
            "summary": comparison.summary(part, loglik, resolution=resolution),
            "pairs": comparison.pairs(part, loglik, resolution=resolution),
        }
        for draw, (data, table) in FIGURES.items():
            name = draw.__name__
            try:
                figure = draw(
                    part, *(known[d] for d in data), **({"table": known[table]} if table else {})
                )
            except NoDataError:
                continue
            written += write_figure(
                figure, folder / f"{name}{tail}", _behind(name, part, known), dpi
            )
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
        "failures": lambda: find_failures(frame, known["summary"]),
        "latent_maps": lambda: map_table(frame, known["maps"]),
        "prior_manifold": lambda: manifold_table(frame, known["maps"]),
        "sample_sheet": lambda: sample_table(frame, known["samples"]),
    }
    return tables[name]()


def _rungs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each trial's estimates at every K."""
    return frame[[c for c in frame if c in EACH or str(c).startswith("test/nll_k")]]
