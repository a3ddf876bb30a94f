"""Measurements of a trial: what is written to its run at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.store.names import COMPLETE_TAG
from flowvae.estimator import ESTIMATORS, EstimatorName

__all__ = ["Estimates", "Measurements", "estimates_in", "of_model"]


@dataclass(frozen=True)
class Measurements:
    """Numbers, arrays and files of a trial.

    Arguments:
        metrics: The numbers, by their names in the store.
        arrays: The arrays by path, without `.npy`.
        files: What writes a file or a folder, by its path.
        tags: The tags, which are written after the metrics.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, NDArray] = field(default_factory=dict)
    files: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def save_files(self, folder: Path) -> bool:
        """Writes arrays and files into a folder; returns whether there are any."""
        for name, values in self.arrays.items():
            path = folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values, allow_pickle=False)
        for name, write in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder / name)
        return bool(self.arrays or self.files)


def of_model(
    kind: str,
    key: str,
    arrays: Mapping[str, NDArray],
    means: Mapping[str, float],
    tags: Mapping[str, str] | None = None,
    *,
    costs: Mapping[str, float] | None = None,
    prefix: str = "",
) -> Measurements:
    """Returns the measurements of an evaluation or an audit, and the tag that makes it complete.

    Arguments:
        kind: `evaluation` or `audit`: its files lie under `evaluations/KEY`, `audits/KEY`.
        key: The content id of its description.
        arrays: The arrays by name, mostly one value an image; a name may hold a folder.
        means: The means by metric, also written to the file `means.json`.
        tags: Other tags.
        costs: Other metrics.
        prefix: What the file of means begins with, where an earlier one is to be kept.
    """
    folder = f"{kind}s/{key}"
    text = json.dumps(dict(means), indent=2)
    return Measurements(
        {**(costs or {}), **means},
        {f"{folder}/{name}": values for name, values in arrays.items()},
        {f"{folder}/{prefix}means.json": lambda path: path.write_text(text)},
        {f"{kind}.{key}": COMPLETE_TAG, **(tags or {})},
    )


class Estimates(NamedTuple):
    """The estimates of log p(x) that an evaluation keeps.

    Arguments:
        estimator: The name of the estimator.
        samples: The number K of samples an image, the largest one that is kept.
        loglik: The estimates, (N,), nats.
    """

    estimator: EstimatorName
    samples: int
    loglik: NDArray[np.float64]


def estimates_in(folder: Path) -> Estimates | None:
    """Returns the estimates in the folder of an evaluation, None where it holds none."""
    for name, estimator in ESTIMATORS.items():
        paths = folder.glob(f"{estimator.array_prefix}*.npy")
        if ladder := {estimator.samples_of(path.stem): path for path in paths}:
            return Estimates(name, max(ladder), np.load(ladder[max(ladder)]))
    return None
