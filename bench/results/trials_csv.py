"""Read a table of trials that a grid wrote, `trials.csv`, with the types that the store gives.

What an older one does not tell is filled in where there was one possibility alone when it was
written: fields of a trial that came later have their defaults, scores were taken in float32 on all
test images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flowvae.errors import InputError
from flowvae.specs.values import Count, read, write
from flowvae.trial import UNHASHED_DEFAULTS, Trial, field_types, registries

__all__ = ["read_table"]


NEEDED = (
    *("run_id", "status", "trial", "prior", "latent", "seed", "dataset", "binarise", "net"),
    *("data_hash", "nll_samples", "test/nll"),
)
FORMERLY = {"nll_precision": "float32", "nll_images": "all"}
"""What held when there was no choice, and so no column."""
WORDS = {"run_id", "status", "reason", "trial", "binarise", "device", "timing", "timing_device"}


WORDS |= {"versions", "commit", "data_hash", "test_hash", "nll_precision", "source"}


"""Columns of text that are no fields of a trial."""


STATUSES = ("complete", "diverged", "failed", "missing")


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table of trials, one row a trial, floats to the bit.

    Raises:
        InputError: It cannot be read, or is no such table.
    """
    try:
        frame = pd.read_csv(path, dtype=str, na_filter=False)
    except OSError as error:
        raise InputError(f"cannot read the trials {path}: {error.strerror}") from None
    except ValueError as error:  # no CSV, no UTF-8, or nothing in it
        raise InputError(f"{path} is no table of trials: {error}") from None
    missing = [column for column in NEEDED if column not in frame]
    if missing:
        raise InputError(
            f"{path} is no table of trials: expected the columns of a grid's trials.csv, and "
            f"{', '.join(missing)} is not there"
        )
    if frame.empty:
        raise InputError(f"{path} holds no trial")
    for name, value in (UNHASHED_DEFAULTS | FORMERLY).items():
        frame[name] = frame[name].replace("", write(value)) if name in frame else write(value)
    names = [str(name) for name in frame]
    found = pd.DataFrame({name: _typed(path, name, frame[name].tolist()) for name in names})
    _check(path, found)
    absurd = (found["status"] == "complete") & ~np.isfinite(found["test/nll"])
    found.loc[absurd, "status"] = "diverged"  # as of a store
    return found


def _check(path: Path, frame: pd.DataFrame) -> None:
    """Refuses rows that say nothing which the rest could be held against."""
    if bad := sorted(set(frame["status"]) - set(STATUSES)):
        known = ", ".join(STATUSES)
        raise InputError(f"{path}: bad status '{bad[0]}': expected one of {known}")
    done = frame[frame["status"] == "complete"]
    for column in ("run_id", "trial", "data_hash"):
        if done[column].isin(["", float("nan")]).any():
            raise InputError(f"{path}: a complete trial has no {column}")
    if done["test/nll"].isna().any():
        raise InputError(f"{path}: a complete trial has no test/nll")


def _typed(path: Path, column: str, texts: list[str]) -> list[Any]:
    """Reads a column; the message of an error names it and the line."""
    annotation = field_types(Trial).get(column)
    values = []
    for line, text in enumerate(texts, start=2):
        try:
            values.append(_value(column, text, annotation))
        except ValueError as expected:
            raise InputError(
                f"{path}, line {line}: bad {column} '{text}': expected {expected}"
            ) from None
    return values


def _value(column: str, text: str, annotation: object) -> Any:  # noqa: ANN401
    """Reads one value; nothing is `none`, or no number."""
    if column == "data_hash" and not text:  # of a trial that never ran
        return float("nan")
    if column in WORDS or column in registries():  # labels, resolved elsewhere
        return text
    if annotation is not None:
        return read(text or "none", annotation)
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
