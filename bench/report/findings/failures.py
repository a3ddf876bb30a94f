"""Sentences on failures and their causes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.statistics.arms import prior_spec
from bench.statistics.failures import APART, CAUSES, MIN_ACTIVE_SHARE, TRIED
from bench.statistics.formatting import percent
from flowvae.errors import InputError
from flowvae.trial import registries

__all__ = ["failure_sentences"]


OUTSIDE = 0.05
"""The share of posterior samples outside a spline's box above which it is said."""
BAD = 0.001
"""The share of bad prior samples above which it is said."""
DOUBT = 0.05
"""The standard error of log Z, nats, above which it is said."""


def failure_sentences(analysis: Analysis) -> list[str]:
    """Returns sentences on the failures that a reader should know."""
    by, shown = frames.setting_columns(analysis.summary)
    sentences = []
    for _, rows in analysis.failures.groupby(by, dropna=False):
        place = frames.where(rows.iloc[0], shown)
        parts = (*_lost(rows), *_absurd(rows), *_outside(rows), *_unused(rows), *_drawn(rows))
        sentences += [f"At {place}, {text}." for text in parts]
    return sentences


def _lost(rows: pd.DataFrame) -> Iterator[str]:
    for _, row in rows.iterrows():
        counts = [f"{row[s]} of {row['tried']} seeds {s}" for s in TRIED if row[s]]
        if counts:
            causes = row["reasons"].split(APART)
            more = len(causes) - CAUSES
            others = [f"{more} more in failures.csv"] if more > 0 else []
            yield f"{row['prior']}: {', '.join(counts)} ({'; '.join(causes[:CAUSES] + others)})"


def _absurd(rows: pd.DataFrame) -> Iterator[str]:
    far = rows[rows["far"] != ""]
    if len(far):
        yield (
            "test NLLs are finite, yet so far off all others that means and intervals with them "
            f"say nothing: {_each(far, 'far', str)}"
        )


def _outside(rows: pd.DataFrame) -> Iterator[str]:
    far = rows[rows["outside_posterior"] > OUTSIDE]
    for cure, some in far.groupby(far["prior"].map(_cure), sort=False):
        yield (
            "posterior samples lie outside the box of a spline, where it is the identity and "
            f"models nothing: {_each(some, 'outside_posterior', percent)} of the coordinates, at "
            f"the worst spline{cure}"
        )


def _each(rows: pd.DataFrame, column: str, write: Callable[[Any], str]) -> str:
    """Return each arm with what its column holds."""
    return ", ".join(f"{row['prior']} {write(row[column])}" for _, row in rows.iterrows())


def _cure(label: str) -> str:
    """Return which of the prior's options would bring samples back into its box."""
    known = prior_spec(label)
    try:
        options = registries()["prior"][known.name].options
    except InputError:
        return ""
    ways = ["a wider bound"] if "bound" in options else []
    if options.get("affine") is False and ("affine", "true") not in known.options:
        ways.append("affine=true")
    return f"; {' or '.join(ways)} may bring them back" if ways else ""


def _unused(rows: pd.DataFrame) -> Iterator[str]:
    few = rows[rows["active_share"] < MIN_ACTIVE_SHARE]
    if len(few):
        yield (
            f"fewer than half of the {rows['latent'].iloc[0]} latent dimensions are active, "
            f"Var(E[z|x]) above 0.01 Var(z): "
            f"{_each(few, 'active_units_relative', '{:.3g}'.format)} (means over seeds)"
        )
    empty = rows[rows["collapsed"] != ""]
    if len(empty):
        yield (
            "the posterior has collapsed onto the prior, a rate near zero (nats, in brackets): "
            f"{_each(empty, 'collapsed', str)}"
        )


def _drawn(rows: pd.DataFrame) -> Iterator[str]:
    bad = rows[rows["bad_share"] > BAD]
    if len(bad):
        yield f"prior samples are not finite: {_each(bad, 'bad_share', percent)} of them"
    rough = rows[rows["log_z_error"] > DOUBT]
    if len(rough):
        yield (
            "the normalising constant is an estimate with a standard error of its log that no "
            f"interval holds: {_each(rough, 'log_z_error', '{:.2g}'.format)} nats"
        )
