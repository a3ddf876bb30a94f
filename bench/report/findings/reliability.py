"""Sentences on the reliability of the estimator."""

from __future__ import annotations

from bench.statistics.analysis import Analysis
from flowvae.evaluation.pareto import RELIABLE
from flowvae.evaluation.quadrature import MAX_FEATURES

__all__ = ["reliability_sentences"]

MAX_HEAVY_TAILED_SHARE = 0.1
"""The share of images with heavy-tailed weights above which the report warns."""


def reliability_sentences(analysis: Analysis) -> list[str]:
    """Returns a warning where importance weights are too heavy-tailed to be reliable."""
    summary, runs = analysis.summary, analysis.complete
    worst = summary.sort_values("khat_high", na_position="first").iloc[-1]
    if not worst["khat_high"] > MAX_HEAVY_TAILED_SHARE:
        return []
    same = (runs["prior"] == worst["prior"]) & (runs["latent"] == worst["latent"])
    run = runs["run_id"][same].iloc[0]
    small = (summary["latent"] <= MAX_FEATURES).any()
    integral = f" and, at D <= {MAX_FEATURES}, its numerical integral" if small else ""
    return [
        f"At K = {worst['nll_samples']} up to {worst['khat_high']:.0%} of the test images "
        f"({worst['prior']}, D = {worst['latent']}) have a k-hat above {RELIABLE:g}: their NLL is "
        f"an upper bound that may lie far above the true value; `python -m bench.audit {run}` "
        f"computes bounds on both sides of it{integral} (other models: `run_id` in trials.csv)."
    ]
