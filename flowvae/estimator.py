"""The names of the estimators of log p(x), of their arrays and their metrics.

The computation is in `flowvae.evaluation`; code that reads, describes or draws an estimate takes
its names from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ENCODER", "ESTIMATORS", "FITTED", "Estimator", "EstimatorName"]


EstimatorName = Literal["fitted", "encoder"]
"""What a person types."""


@dataclass(frozen=True)
class Estimator:
    """An estimator of log p(x) from K samples an image.

    Arguments:
        name: Its name in plans, captions and reports; part of an evaluation's id.
        version: Counts the changes of its numbers; part of an evaluation's id.
        array_prefix: The start of its arrays' names, (N,) nats; the number of samples follows.
        nested: Whether the first samples are an estimate of their own, so that one pass gives the
            estimates for smaller numbers, too.

    Example:
        >>> ENCODER.array_name(1000), ENCODER.describe(1000)
        ('loglik_k1000', 'importance weighting, K = 1000')
        >>> ENCODER.ladder(5000), FITTED.ladder(5000)
        ((1, 10, 100, 1000, 5000), (5000,))
    """

    name: str
    version: int
    array_prefix: str
    nested: bool

    def ladder(self, samples: int) -> tuple[int, ...]:
        """Returns the numbers of samples that are reported: powers of ten up to `samples`."""
        rungs = [10**power for power in range(len(str(samples)))] if self.nested else []
        return (*(rung for rung in rungs if rung < samples), samples)

    def array_name(self, samples: int) -> str:
        """Returns the name of the array of per-image log-likelihoods."""
        return f"{self.array_prefix}{samples}"

    def samples_of(self, array_name: str) -> int:
        """Returns the number of samples in an array's name."""
        return int(array_name.removeprefix(self.array_prefix))

    def describe(self, samples: int) -> str:
        """Returns name and number of samples in words."""
        return f"{self.name}, K = {samples}"


ENCODER = Estimator("importance weighting", 2, "loglik_k", nested=True)
"""Importance weighting with the encoder as proposal (Burda et al., 2016). Version 2: k-hat and
the ELBO's surgery."""
FITTED = Estimator("importance sampling, fitted proposal", 1, "loglik_fitted_k", nested=False)
"""Importance sampling from a proposal fitted to each image (`flowvae.evaluation`)."""
ESTIMATORS: dict[EstimatorName, Estimator] = {"fitted": FITTED, "encoder": ENCODER}
"""The estimators by name."""
