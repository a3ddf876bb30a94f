"""Reads the audits that a store holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow.entities import Run
from numpy.typing import NDArray

from bench.store.runs import Store
from flowvae.errors import InputError
from flowvae.estimator import ESTIMATORS, Estimator, EstimatorName
from flowvae.trial import Audit, Trial

__all__ = ["BOUND_NAMES", "AuditResult", "read_audit"]


BOUND_NAMES = {"simulated": ("lower", "iw"), "test": ("real_lower", "real_iw")}
"""Names of the forward bound and of the estimate, by kind of images."""


@dataclass(frozen=True)
class AuditResult:
    """An audit of one run.

    Arguments:
        run_id: The run.
        trial: Its trial.
        audit: The description.
        arrays: The arrays of `flowvae.evaluation.annealing.Bounds`, estimates as `iw_k1000`, and
            with quadrature those of `bench.audit.quadrature.QUADRATURE_NAMES`.
        means: The means by metric.
        device: The hardware.
        scored_samples: The K of the run's own score; None without a score.
        scored_estimator: The estimator of that score.
    """

    run_id: str
    trial: Trial
    audit: Audit
    arrays: dict[str, NDArray[Any]]
    means: dict[str, float]
    device: str
    scored_samples: int | None = None
    scored_estimator: EstimatorName = "encoder"

    def shortfall(self, kind: str, samples: int) -> NDArray[np.float64]:
        """Returns the forward bound minus the K-sample estimate, image by image, (N,), nats."""
        lower, ladder = BOUND_NAMES[kind]
        return self.arrays[lower] - self.arrays[f"{ladder}_k{samples}"]

    @property
    def scored_by(self) -> Estimator:
        """The estimator of the run's own score."""
        return ESTIMATORS[self.scored_estimator]

    def describe(self) -> str:
        """Returns the audited estimator and its number of samples in words."""
        return ESTIMATORS[self.audit.estimator].describe(self.audit.samples)

    def disagreement(self, name: str) -> NDArray[np.float64] | None:
        """Returns a bound by the fitted start minus that by the encoder, (N,), nats."""
        if self.audit.start == "encoder":
            return None
        return self.arrays[name] - self.arrays[f"encoder_{name}"]

    @property
    def width(self) -> NDArray[np.float64]:
        """The upper minus the lower bound on simulated images, (N,), nats."""
        return self.arrays["upper"] - self.arrays["lower"]

    @property
    def ladder(self) -> list[int]:
        """The numbers of samples of the estimates."""
        return sorted(int(k.removeprefix("iw_k")) for k in self.arrays if k.startswith("iw_k"))


def read_audit(store: Store, run: Run, trial: Trial, audit: Audit) -> AuditResult:
    """Returns the audit of a run.

    Raises:
        InputError: The run does not hold it.
    """
    folder = store.artifact(run, f"audits/{audit.id}")
    if folder is None:
        raise InputError(
            f"run '{run.info.run_id}' has no audit {audit.id}: pass --force to make it"
        )
    means: dict[str, float] = {}
    for path in folder.glob("*means.json"):
        means |= json.loads(path.read_text())
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    samples = means.get("audit/scored_samples")
    if samples is None:  # the scores belong to an audit that this one replaced
        arrays.pop("scored", None)
    return AuditResult(
        run.info.run_id,
        trial,
        audit,
        arrays,
        means,
        json.loads((folder / "audit.json").read_text())["device"],
        None if samples is None else int(samples),
        "fitted" if means.get("audit/scored_fitted") else "encoder",
    )
