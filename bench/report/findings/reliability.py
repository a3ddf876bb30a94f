"""Sentences on the reliability of the estimator."""

from __future__ import annotations

import pandas as pd

from bench.statistics.analysis import Analysis
from bench.statistics.captions import estimator_settings
from bench.statistics.formatting import nats
from bench.statistics.frames import setting_columns, setting_text
from flowvae.evaluation.pareto import RELIABLE
from flowvae.evaluation.quadrature import MAX_FEATURES

__all__ = ["reliability_sentences"]

MAX_HEAVY_TAILED_SHARE = 0.1
"""The share of images with heavy-tailed weights above which the report warns."""


def reliability_sentences(analysis: Analysis) -> list[str]:
    """Returns what is known of the error of the scores.

    These are the largest distance to an exact value, the estimator's part of the differences, and
    a warning where weights are too heavy-tailed to be reliable and no exact value is known.
    """
    sentences = _exact_sentence(analysis), _estimator_sentence(analysis), _warning(analysis)
    return [sentence for sentence in sentences if sentence]


def _exact(runs: pd.DataFrame) -> pd.Series:
    """Returns the exact NLL of each run; NaN where it is not known."""
    return runs.get("test/nll_exact", pd.Series(float("nan"), runs.index))


def _exact_sentence(analysis: Analysis) -> str:
    """Returns the largest distance of a score to its exact value, or nothing."""
    runs = analysis.complete
    runs = runs.assign(off=runs["test/nll"] - _exact(runs)).dropna(subset="off")
    if runs.empty:
        return ""
    worst = runs.sort_values("off", key=abs).iloc[-1]
    error = runs["test/nll_exact_error"].max()
    return (
        f"The largest distance of a test NLL from its exact value (quadrature, D <= "
        f"{MAX_FEATURES}) is {nats(worst['off'], '+.4f')} nats, of {worst['prior']} at "
        f"D = {worst['latent']} with seed {worst['seed']}; of {len(runs)} in all. The "
        f"quadrature's estimated error is at most {error:.1g} nats per image."
    )


def _estimator_sentence(analysis: Analysis) -> str:
    """Returns what the estimator adds to the differences between priors, or nothing."""
    pairs = analysis.pairs
    if pairs.empty or (known := pairs[pairs["bias_difference"].notna()]).empty:
        return ""
    _, shown = setting_columns(pairs)
    worst = known.sort_values("bias_difference", key=abs).iloc[-1]
    return (
        f"The estimator adds a Monte Carlo standard error of at most "
        f"{known['monte_carlo_se'].max():.2g} nats to the differences, which their intervals hold "
        f"already, and a bias of about {nats(worst['bias_difference'], '+.2g')} nats at most "
        f"({worst['prior']} minus {worst['against']}, {setting_text(worst, shown)}), which they "
        f"do not hold; where k-hat is above {RELIABLE:g} it is larger."
    )


def _warning(analysis: Analysis) -> str:
    """Returns a warning of heavy-tailed weights, or nothing."""
    runs = analysis.complete
    runs = runs[_exact(runs).isna()]
    estimated = set(zip(runs["prior"], runs["latent"], strict=True))
    arms = zip(analysis.summary["prior"], analysis.summary["latent"], strict=True)
    summary = analysis.summary[[arm in estimated for arm in arms]]
    if not (summary["khat_high"] > MAX_HEAVY_TAILED_SHARE).any():
        return ""
    worst = summary.sort_values("khat_high", na_position="first").iloc[-1]
    same = (runs["prior"] == worst["prior"]) & (runs["latent"] == worst["latent"])
    run = runs["run_id"][same].iloc[0]
    small = (summary["latent"] <= MAX_FEATURES).any()
    integral = f" and, at D <= {MAX_FEATURES}, its numerical integral" if small else ""
    return (
        f"Of {estimator_settings(worst)}, up to {worst['khat_high']:.0%} of the test images "
        f"({worst['prior']}, D = {worst['latent']}) have a k-hat above {RELIABLE:g}: their NLL is "
        f"an upper bound that may lie far above the true value; `python -m bench.audit {run}` "
        f"computes bounds on both sides of it{integral} (other models: `run_id` in trials.csv)."
    )
