"""Frames of trials: validation, settings, priors, the reference prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from flowvae.trial import Trial

__all__ = [
    "COMPARABLE_COLUMNS",
    "axes",
    "conflicting_columns",
    "group_by_setting",
    "priors",
    "reference",
    "setting_columns",
    "setting_text",
    "validate",
    "value_text",
]


COMPARABLE_COLUMNS = {
    "dataset": "data set",
    "binarise": "binarisation",
    "data_hash": "content of the data set (data_hash)",
    "nll_estimator": "estimator of the NLL (nll_estimator)",
    "nll_samples": "number K of importance samples (nll_samples)",
    "nll_precision": "precision of the scoring (nll_precision)",
    "nll_images": "test images that are scored (nll_images)",
}
"""Columns in which the trials of a table must agree, with their meaning."""
PARAMETER_COLUMNS = {field.name for field in fields(Trial) if field.name != "training"} | {
    *("binarise", "valid")
}
"""Columns that can be axes; `training` is not one, as the label of an arm holds it."""


def priors(frame: pd.DataFrame) -> list[str]:
    """Returns the priors in the order in which the user typed them."""
    return [str(label) for label in dict.fromkeys(frame["prior"])]


def reference(frame: pd.DataFrame) -> str:
    """Returns the prior that the others are compared to: "gauss" where present, else the first."""
    labels = priors(frame)
    if not labels:
        raise ValueError("Expected at least one trial; got an empty frame. Run some trials first.")
    return "gauss" if "gauss" in labels else labels[0]


def axes(frame: pd.DataFrame) -> list[str]:
    """Returns the columns besides seed and prior that were crossed: those that a pair shares.

    Net and latent are always axes, and the precision where there are several; another parameter
    is one where a prior ran with several of its values at one net, latent and precision. A
    parameter that only differs between priors (a tuned learning rate) is no axis: with it no two
    priors could be paired.
    """
    always = ["net", "latent"]
    if "precision" in frame and frame["precision"].nunique(dropna=False) > 1:
        always.append("precision")
    others = [c for c in frame.columns if c in PARAMETER_COLUMNS - {*always, "prior", "seed"}]
    others = [c for c in others if frame[c].nunique(dropna=False) > 1]
    if not others:
        return always  # skips the slow counts below
    counts = frame.groupby([*always, "prior"])[others].nunique(dropna=False)
    return [*always, *(c for c in others if counts[c].max() > 1)]


def conflicting_columns(frame: pd.DataFrame) -> list[str]:
    """Returns the columns of `COMPARABLE_COLUMNS` with several values: trials that conflict.

    Several data hashes do not conflict where they are known to differ only by the number of images
    that were held out for validation: all have one hash of the test images.
    """
    conflicts = [c for c in COMPARABLE_COLUMNS if c in frame and frame[c].nunique() > 1]
    if "data_hash" in conflicts and {"test_hash", "valid"} <= set(frame):
        hashed = frame.dropna(subset="data_hash")
        test_hashes = set(hashed["test_hash"].fillna(""))
        one_per_split = (hashed.groupby("valid")["data_hash"].nunique() == 1).all()
        if len(test_hashes) == 1 and "" not in test_hashes and one_per_split:
            conflicts.remove("data_hash")
    return conflicts


def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the checked frame, in which complete trials without a finite test NLL are diverged.

    Raises:
        ValueError: If datasets, binarisations or numbers of importance samples differ, or if two
            rows are one trial.
    """
    reference(frame)  # raises where there is no trial
    for column in conflicting_columns(frame):
        values = ", ".join(map(str, frame[column].dropna().unique()))
        raise ValueError(
            f"Expected one {column}; got {values}. These numbers cannot be compared: "
            f"pass the rows of one {column} at a time."
        )
    identity = [*axes(frame), "prior", "seed"]
    if (duplicates := frame.duplicated(identity)).any():
        row = frame.loc[duplicates, identity].iloc[0].to_dict()
        raise ValueError(f"Expected one row per trial; got two with {row}. Keep one of them.")
    # MLflow returns infinity as 1.8e308
    nll = frame["test/nll"] if "test/nll" in frame else pd.Series(np.nan, frame.index)
    broken = (frame["status"] == "complete") & ~(nll.abs() < 1e300)
    return frame.assign(status=frame["status"].mask(broken, "diverged"), **{"test/nll": nll})


def group_by_setting(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yields each setting of the axes, sorted, with its trials of all priors."""
    by = axes(frame)
    for key, rows in frame.groupby(by, dropna=False):
        yield dict(zip(by, key, strict=True)), rows


def setting_columns(summary: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Returns the columns of a setting, and the shown ones of them: latent and those that vary."""
    columns = list(summary.columns)
    by = columns[: columns.index("prior")]
    return by, [c for c in by if c == "latent" or summary[c].nunique(dropna=False) > 1]


def value_text(value: Any) -> str:  # noqa: ANN401
    """Returns the value of a setting as text; `none` for a missing one."""
    return "none" if pd.isna(value) else str(value)


def setting_text(row: pd.Series, shown: Sequence[str]) -> str:
    """Returns the setting of an arm as text, such as `D = 16, net = mlp`."""
    return ", ".join(f"{'D' if c == 'latent' else c} = {value_text(row[c])}" for c in shown)
