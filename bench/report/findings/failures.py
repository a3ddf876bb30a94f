"""Sentences on failures and their causes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.statistics.arms import prior_spec
from bench.statistics.failures import CAUSE_SEPARATOR, LOST_STATUSES, MAX_CAUSES, MIN_ACTIVE_SHARE
from bench.statistics.formatting import percent
from flowvae.errors import InputError
from flowvae.trial import registries

__all__ = ["failure_sentences"]


MAX_OUTSIDE_SHARE = 0.05
"""The share of posterior samples outside a spline's box above which a sentence mentions it."""
MAX_BAD_SHARE = 0.001
"""The share of prior samples that are not finite above which a sentence mentions it."""
MAX_LOG_Z_ERROR = 0.05
"""The standard error of log Z, nats, above which a sentence mentions it."""


def failure_sentences(analysis: Analysis) -> list[str]:
    """Returns sentences on the failures that a reader should know."""
    by, shown = frames.setting_columns(analysis.summary)
    sentences = []
    for _, rows in analysis.failures.groupby(by, dropna=False):
        place = frames.setting_text(rows.iloc[0], shown)
        for find in (_lost_seeds, _far_scores, _outside_samples, _collapse, _prior_problems):
            sentences += [f"At {place}, {text}." for text in find(rows)]
    return sentences


def _lost_seeds(rows: pd.DataFrame) -> Iterator[str]:
    for _, row in rows.iterrows():
        counts = [f"{row[s]} of {row['tried']} seeds {s}" for s in LOST_STATUSES if row[s]]
        if counts:
            causes = row["reasons"].split(CAUSE_SEPARATOR)
            named, more = causes[:MAX_CAUSES], len(causes) - MAX_CAUSES
            named += [f"{more} more in failures.csv"] if more > 0 else []
            yield f"{row['prior']}: {', '.join(counts)} ({'; '.join(named)})"


def _far_scores(rows: pd.DataFrame) -> Iterator[str]:
    far = rows[rows["far"] != ""]
    if len(far):
        yield (
            "some test NLLs are so far from all others that means and intervals which include "
            f"them are meaningless: {_arms_text(far, 'far', str)}"
        )


def _outside_samples(rows: pd.DataFrame) -> Iterator[str]:
    outside = rows[rows["outside_posterior"] > MAX_OUTSIDE_SHARE]
    for remedy, arms in outside.groupby(outside["prior"].map(_remedy), sort=False):
        yield (
            "posterior samples lie outside the box of a spline, where the spline is the identity "
            f"and models nothing: {_arms_text(arms, 'outside_posterior', percent)} of the "
            f"coordinates, at the worst spline{remedy}"
        )


def _arms_text(rows: pd.DataFrame, column: str, to_text: Callable[[Any], str]) -> str:
    """Returns the priors with their values of a column, as text."""
    return ", ".join(f"{row['prior']} {to_text(row[column])}" for _, row in rows.iterrows())


def _remedy(label: str) -> str:
    """Returns the options of a prior that could bring samples back into its box, as text."""
    spec = prior_spec(label)
    try:
        options = registries()["prior"][spec.name].options
    except InputError:
        return ""
    remedies = ["a wider bound"] if "bound" in options else []
    if options.get("affine") is False and ("affine", "true") not in spec.options:
        remedies.append("affine=true")
    return f"; {' or '.join(remedies)} may bring them back" if remedies else ""


def _collapse(rows: pd.DataFrame) -> Iterator[str]:
    inactive = rows[rows["active_share"] < MIN_ACTIVE_SHARE]
    if len(inactive):
        yield (
            f"fewer than half of the {rows['latent'].iloc[0]} latent dimensions are active, "
            f"Var(E[z|x]) above 0.01 Var(z): "
            f"{_arms_text(inactive, 'active_units_relative', '{:.3g}'.format)} (means over seeds)"
        )
    collapsed = rows[rows["collapsed"] != ""]
    if len(collapsed):
        yield (
            "the posterior has collapsed onto the prior, with a rate near zero (nats, in "
            f"parentheses): {_arms_text(collapsed, 'collapsed', str)}"
        )


def _prior_problems(rows: pd.DataFrame) -> Iterator[str]:
    bad = rows[rows["bad_share"] > MAX_BAD_SHARE]
    if len(bad):
        yield f"some prior samples are not finite: {_arms_text(bad, 'bad_share', percent)} of them"
    rough = rows[rows["log_z_error"] > MAX_LOG_Z_ERROR]
    if len(rough):
        yield (
            "the log of the normalising constant is an estimate, and no interval includes its "
            f"standard error: {_arms_text(rough, 'log_z_error', '{:.2g}'.format)} nats"
        )
