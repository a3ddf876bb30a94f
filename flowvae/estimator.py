"""The names of an estimator of log p(x), of its arrays and its metrics.

The computation is in `flowvae.evaluation`; code that reads, describes or draws an estimate takes
its names from here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["IMPORTANCE_WEIGHTING", "Estimator"]


@dataclass(frozen=True)
class Estimator:
    """An estimator of log p(x) from K samples an image.

    Arguments:
        name: Its name in plans, captions and reports; part of an evaluation's id.
        array_prefix: The start of its arrays' names, (N,) nats; the number of samples follows.
        metric_prefix: The start of its metrics' names; the number of samples follows.

    Example:
        >>> IMPORTANCE_WEIGHTING.array_name(1000), IMPORTANCE_WEIGHTING.describe(1000)
        ('loglik_k1000', 'importance weighting, K = 1000')
        >>> IMPORTANCE_WEIGHTING.ladder(5000)
        (1, 10, 100, 1000, 5000)
    """

    name: str
    array_prefix: str
    metric_prefix: str

    def ladder(self, samples: int) -> tuple[int, ...]:
        """Returns the numbers of samples that are reported: powers of ten up to `samples`."""
        rungs = [10**power for power in range(len(str(samples)))]
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


IMPORTANCE_WEIGHTING = Estimator("importance weighting", "loglik_k", "nll_k")
"""Importance weighting with the encoder as proposal (Burda et al., 2016)."""
