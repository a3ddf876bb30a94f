"""Frames of trials: validation, settings, priors, the reference prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from flowvae.trial import Trial

__all__ = [
    "ONE_OF",
    "axes",
    "clashes",
    "contexts",
    "priors",
    "reference",
    "setting_columns",
    "validate",
    "valued",
    "where",
]


# numbers across these never share a table
ONE_OF = ("dataset", "binarise", "data_hash", "nll_samples", "nll_precision", "nll_images")
# how a prior was trained tells two arms apart already by their label
PARAMETERS = ({field.name for field in fields(Trial)} | {"binarise", "valid"}) - {"training"}


def priors(frame: pd.DataFrame) -> list[str]:
    """Return the priors in the order in which the user typed them."""
    return [str(label) for label in dict.fromkeys(frame["prior"])]


def reference(frame: pd.DataFrame) -> str:
    """Return the prior that the others are compared to: "gauss" where present, else the first."""
    labels = priors(frame)
    if not labels:
        raise ValueError("Expected at least one trial; got an empty frame. Run some trials first.")
    return "gauss" if "gauss" in labels else labels[0]


def axes(frame: pd.DataFrame) -> list[str]:
    """Return the columns besides seed and prior that were crossed: what a pair has in common.

    Always net and latent, and the precision where there are several; another parameter where one
    prior ran with several of its values at one of these. A parameter that only differs from prior
    to prior (a learning rate tuned for each) belongs to the prior and is no axis, or no pair would
    be left.
    """
    always = ["net", "latent"]
    if "precision" in frame and frame["precision"].nunique(dropna=False) > 1:
        always.append("precision")
    others = [c for c in frame.columns if c in PARAMETERS - {*always, "prior", "seed"}]
    others = [c for c in others if frame[c].nunique(dropna=False) > 1]
    if not others:
        return always  # without counting in every group, which is slow and asked for often
    counts = frame.groupby([*always, "prior"])[others].nunique(dropna=False)
    return [*always, *(c for c in others if counts[c].max() > 1)]


def clashes(frame: pd.DataFrame) -> list[str]:
    """Return the columns of which one table may hold one value alone, and the frame holds more.

    Data of other hashes are the same where they are known to differ in nothing but the number of
    images held out for validation: their test images have one hash.
    """
    found = [c for c in ONE_OF if c in frame and frame[c].nunique() > 1]
    if "data_hash" in found and {"test_hash", "valid"} <= set(frame):
        known = frame.dropna(subset="data_hash")
        tests = set(known["test_hash"].fillna(""))
        one_each = (known.groupby("valid")["data_hash"].nunique() == 1).all()
        if len(tests) == 1 and "" not in tests and one_each:
            found.remove("data_hash")
    return found


def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """Check the frame; count a complete trial whose test NLL is no finite number as diverged.

    Raises:
        ValueError: If datasets, binarisations or numbers of importance samples differ, or if two
            rows are one trial.
    """
    reference(frame)  # raises where there is no trial
    for column in clashes(frame):
        values = ", ".join(map(str, frame[column].dropna().unique()))
        raise ValueError(
            f"Expected one {column}; got {values}. These numbers cannot be compared: "
            f"pass the rows of one {column} at a time."
        )
    same = [*axes(frame), "prior", "seed"]
    if (twice := frame.duplicated(same)).any():
        row = frame.loc[twice, same].iloc[0].to_dict()
        raise ValueError(f"Expected one row a trial; got two with {row}. Keep one of them.")
    # MLflow returns infinity as 1.8e308
    nll = frame["test/nll"] if "test/nll" in frame else pd.Series(np.nan, frame.index)
    broken = (frame["status"] == "complete") & ~(nll.abs() < 1e300)
    return frame.assign(status=frame["status"].mask(broken, "diverged"), **{"test/nll": nll})


def contexts(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each setting of the axes, sorted, with its rows: one family of priors."""
    by = axes(frame)
    for key, rows in frame.groupby(by, dropna=False):
        yield dict(zip(by, key, strict=True)), rows


def setting_columns(summary: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the columns that set arms apart, and those of them worth telling a reader."""
    columns = list(summary.columns)
    by = columns[: columns.index("prior")]
    return by, [c for c in by if c == "latent" or summary[c].nunique(dropna=False) > 1]


def valued(value: Any) -> str:  # noqa: ANN401
    """Return a setting's value in words: `none` where there is none."""
    return "none" if pd.isna(value) else str(value)


def where(row: pd.Series, told: Sequence[str]) -> str:
    """Return an arm's setting in words."""
    return ", ".join(f"{'D' if c == 'latent' else c} = {valued(row[c])}" for c in told)
