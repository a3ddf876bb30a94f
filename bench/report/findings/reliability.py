"""Sentences on the reliability of the estimator."""

from __future__ import annotations

from bench.statistics.analysis import Analysis
from flowvae.evaluation.pareto import RELIABLE
from flowvae.evaluation.quadrature import MOST_FEATURES

__all__ = ["reliability_sentences"]

DOUBTFUL = 0.1
"""The share of images with heavy-tailed weights above which a person is warned."""


def reliability_sentences(analysis: Analysis) -> list[str]:
    """Returns a warning where importance weights are too heavy-tailed to be reliable."""
    summary, runs = analysis.summary, analysis.complete
    worst = summary.sort_values("khat_high", na_position="first").iloc[-1]
    if not worst["khat_high"] > DOUBTFUL:
        return []
    same = (runs["prior"] == worst["prior"]) & (runs["latent"] == worst["latent"])
    run = runs["run_id"][same].iloc[0]
    few = (summary["latent"] <= MOST_FEATURES).any()
    exactly = f" and, at D <= {MOST_FEATURES}, integrates" if few else ""
    return [
        f"At K = {worst['nll_samples']} up to {worst['khat_high']:.0%} of the test images "
        f"({worst['prior']}, D = {worst['latent']}) have a k-hat above {RELIABLE:g}: their NLL is "
        f"an upper bound that may lie far above the truth; `python -m bench.audit {run}` brackets"
        f"{exactly} it (other models: `run_id` in trials.csv)."
    ]
