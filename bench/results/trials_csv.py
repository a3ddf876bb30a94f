"""Reads `trials.csv`, the table of trials that a grid wrote, with the types that the store gives.

A column that is missing from an older table had one possible value when the table was written,
which is filled in: the default of a later field of `Trial`, scores by the earlier estimator, in
float32, on all test images, and no known device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.store.names import EARLIER_ESTIMATOR
from flowvae.errors import InputError
from flowvae.specs.values import Count, read, write
from flowvae.trial import UNHASHED_DEFAULTS, Evaluation, Trial, field_types, registries

__all__ = ["read_table"]


REQUIRED_COLUMNS = (
    *("run_id", "status", "trial", "prior", "latent", "seed", "dataset", "binarise", "net"),
    *("data_hash", "nll_samples", "test/nll"),
)
EARLIER_VALUES = {
    "nll_estimator": EARLIER_ESTIMATOR,
    "nll_precision": "float32",
    "nll_images": "all",
    "device": "",
}
"""Values of columns that are missing from older tables."""
TEXT_COLUMNS = {
    *("run_id", "status", "reason", "trial", "binarise", "device", "timing", "timing_device"),
    *("versions", "commit", "data_hash", "test_hash", "nll_precision", "source"),
}
"""Columns of text that are not fields of a trial."""
STATUSES = ("complete", "diverged", "failed", "missing")


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table of trials, one row a trial, floats to the bit.

    Raises:
        InputError: The file cannot be read, or is not a table of trials.
    """
    try:
        frame = pd.read_csv(path, dtype=str, na_filter=False)
    except OSError as error:
        raise InputError(f"cannot read the trials {path}: {error.strerror}") from None
    except ValueError as error:  # not CSV, not UTF-8, or empty
        raise InputError(f"{path} is not a table of trials: {error}") from None
    missing = [column for column in REQUIRED_COLUMNS if column not in frame]
    if missing:
        raise InputError(
            f"{path} is not a table of trials: expected the columns of a grid's trials.csv; "
            f"{', '.join(missing)} is missing"
        )
    if frame.empty:
        raise InputError(f"{path} contains no trials")
    for name, value in (UNHASHED_DEFAULTS | EARLIER_VALUES).items():
        frame[name] = frame[name].replace("", write(value)) if name in frame else write(value)
    names = [str(name) for name in frame]
    trials = pd.DataFrame({name: _read_column(path, name, frame[name].tolist()) for name in names})
    _check(path, trials)
    infinite = (trials["status"] == "complete") & ~np.isfinite(trials["test/nll"])
    trials.loc[infinite, "status"] = "diverged"  # as when reading a store
    return trials


def _check(path: Path, frame: pd.DataFrame) -> None:
    """Raises an InputError for an unknown status, or a complete trial without score or ID."""
    if bad := sorted(set(frame["status"]) - set(STATUSES)):
        known = ", ".join(STATUSES)
        raise InputError(f"{path}: bad status '{bad[0]}': expected one of {known}")
    done = frame[frame["status"] == "complete"]
    for column in ("run_id", "trial", "data_hash"):
        if done[column].isin(["", float("nan")]).any():
            raise InputError(f"{path}: a complete trial has no {column}")
    if done["test/nll"].isna().any():
        raise InputError(f"{path}: a complete trial has no test/nll")


def _read_column(path: Path, column: str, texts: list[str]) -> list[Any]:
    """Returns the values of a column; the message of an error names column and line."""
    annotation = field_types(Trial).get(column)
    values = []
    for line, text in enumerate(texts, start=2):
        try:
            values.append(_read_value(column, text, annotation))
        except ValueError as expected:
            raise InputError(
                f"{path}, line {line}: bad {column} '{text}': expected {expected}"
            ) from None
    return values


def _read_value(column: str, text: str, annotation: object) -> Any:  # noqa: ANN401
    """Returns one value; an empty text is `none`, or NaN."""
    if column == "data_hash" and not text:  # the trial never ran
        return float("nan")
    if column in TEXT_COLUMNS or column in registries():  # labels, resolved elsewhere
        return text
    if annotation is not None:
        return read(text or "none", annotation)
    if column == "nll_estimator":
        return read(text, field_types(Evaluation)["estimator"])
    if column == "nll_samples" or (column == "nll_images" and text != "all"):
        return read(text, Count)
    if "/" in column or column == "load":
        try:
            return float(text or "nan")
        except ValueError:
            raise ValueError("a number") from None
    try:
        return int(text)  # options of data sets, and the stack
    except ValueError:
        return text if text else float("nan")
