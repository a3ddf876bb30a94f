"""Every figure of a report: how it is drawn, the table behind it, and its title.

To add a figure, write a function from an `Analysis` to a matplotlib `Figure`, and declare it in
`FIGURES`: reports, their pages and the tests of all figures take it from there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bench.figures.by_latent import gain_by_latent, nll_by_latent
from bench.figures.by_parameters import nll_by_parameters
from bench.figures.differences import (
    interval_widths,
    joint_post_hoc,
    pair_matrix,
    paired_difference,
)
from bench.figures.elbo_parts import elbo_surgery, elbo_table, estimate_by_samples, estimate_table
from bench.figures.failures import failures
from bench.figures.latent_maps import latent_maps, map_table
from bench.figures.learning_curves import elbo_curves
from bench.figures.samples import manifold_table, prior_manifold, sample_sheet, sample_table
from bench.figures.scatter import SPEED, rate_distortion, rate_table, speed_table, throughput_nll
from bench.figures.style import NoDataError, write_figure
from bench.statistics.analysis import Analysis
from bench.statistics.arms import UNSCORED_STATUSES

__all__ = ["FIGURES", "ReportFigure", "draw_all"]


Table = Callable[[Analysis], pd.DataFrame]


class ReportFigure(NamedTuple):
    """A figure of a report.

    Arguments:
        draw: Draws it; raises `NoDataError` where an analysis lacks its numbers.
        table: Returns the numbers that it shows, which are written beside it.
        title: Its title in a report.
    """

    draw: Callable[[Analysis], Figure]
    table: Table
    title: str


def _summary(analysis: Analysis) -> pd.DataFrame:
    return analysis.summary


def _columns(names: str, table: Table = _summary) -> Table:
    """Returns a table's columns that describe an arm, and these."""
    arm = ["net", "latent", "prior", "seeds", *UNSCORED_STATUSES]
    return lambda analysis: table(analysis)[[*arm, *names.split()]]


PAIRED = "reference pairs images difference low high"
DIFFERENCES = _columns(f"{PAIRED} p p_holm df verdict seeds_needed note")
FIGURES = {
    "nll_by_latent": ReportFigure(
        nll_by_latent,
        _columns("nll nll_low nll_high rank"),
        "The test NLL by latent size and prior, with t intervals over seeds and every seed",
    ),
    "gain_by_latent": ReportFigure(
        gain_by_latent,
        DIFFERENCES,
        "The paired difference in NLL to the reference by latent size, with its interval",
    ),
    "nll_by_parameters": ReportFigure(
        nll_by_parameters,
        _columns("prior_parameters nll nll_low nll_high"),
        "The test NLL by the number of the prior's parameters, a panel a latent size",
    ),
    "elbo_curves": ReportFigure(
        elbo_curves,
        lambda analysis: analysis.curves,
        "Training and validation ELBO by epoch: faint lines are seeds, strong lines their mean",
    ),
    "paired_difference": ReportFigure(
        paired_difference,
        DIFFERENCES,
        "The paired difference in NLL to the reference with its crossed-effects interval",
    ),
    "pair_matrix": ReportFigure(
        pair_matrix,
        lambda analysis: analysis.pairs,
        "All pairs of priors: rows minus columns, one triangle a latent size",
    ),
    "interval_widths": ReportFigure(
        interval_widths,
        _columns(
            f"{PAIRED} sd_seed sd_image sd_rest resolution seeds_for_resolution half_width_limit"
        ),
        "How wide each interval is, what makes it wide, and how many seeds would narrow it",
    ),
    "joint_post_hoc": ReportFigure(
        joint_post_hoc,
        DIFFERENCES,
        "What a prior gains alone, fitted post hoc, and what it gains trained jointly",
    ),
    "throughput_nll": ReportFigure(
        throughput_nll,
        _columns(
            f"{SPEED} {SPEED}_low {SPEED}_high timing timed timing_device nll nll_low nll_high "
            "device",
            speed_table,
        ),
        "Training throughput against test NLL: what a prior costs beside what it brings",
    ),
    "rate_distortion": ReportFigure(
        rate_distortion,
        _columns(
            "rate rate_low rate_high distortion distortion_low distortion_high elbo", rate_table
        ),
        "The rate-distortion plane of the test set, with lines of equal ELBO",
    ),
    "elbo_surgery": ReportFigure(
        elbo_surgery,
        _columns(
            "elbo whole_low whole_high distortion rate index_code index_code_out log_images "
            "saturated marginal_kl marginal_kl_out active_units active_units_relative",
            elbo_table,
        ),
        "The parts of minus the ELBO: distortion, index code and marginal KL",
    ),
    "estimate_by_samples": ReportFigure(
        estimate_by_samples,
        estimate_table,
        "The test NLL by number K of importance samples, over the share of unreliable images",
    ),
    "failures": ReportFigure(
        failures,
        lambda analysis: analysis.failures,
        "What went wrong, a row an arm and a band of panels a latent size",
    ),
    "latent_maps": ReportFigure(
        latent_maps,
        map_table,
        "For D = 2, posterior samples by class over the regions where each prior has its mass",
    ),
    "prior_manifold": ReportFigure(
        prior_manifold,
        manifold_table,
        "For D = 2, the decoder's images at points that divide each prior into equal masses",
    ),
    "sample_sheet": ReportFigure(
        sample_sheet,
        sample_table,
        "Samples of each prior side by side, after test images where they are stored",
    ),
}
"""The figures of a report, in order, by the names of their files."""


def draw_all(analysis: Analysis, folder: Path, *, dpi: int = 200) -> list[Path]:
    """Writes every figure that has data as PNG and SVG, and the table behind it as CSV.

    Where more than the latent size was crossed (nets, say), each setting gets figures of its own,
    named `nll_by_latent-net=mlp.png`. A figure without data is left out, not drawn empty.

    Arguments:
        analysis: The trials and their statistics.
        folder: Where to write.
        dpi: Pixels of an inch in the PNG.

    Returns:
        The files written, in the order of the figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for suffix, part in analysis.settings():
        for name, entry in FIGURES.items():
            try:
                figure = entry.draw(part)
            except NoDataError:
                continue
            files += write_figure(figure, folder / f"{name}{suffix}", entry.table(part), dpi)
    return files
