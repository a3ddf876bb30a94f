"""Analysis of a grid: its validated trials and every table of statistics, each computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from bench.statistics import comparison, convergence, failures, frames

__all__ = ["Analysis"]


@dataclass(frozen=True, eq=False)
class Analysis:
    """Trials that can be compared, with the tables that findings, figures and pages are made of.

    The trials are validated when an analysis is created. Each table is computed when it is first
    asked for, and kept.

    Arguments:
        frame: One row per trial, as `bench.results.read` returns it or a `trials.csv` holds it.
        loglik: Per-image log-likelihoods of the test images, (N,) nats, by run.
        curves: `run_id, prior, latent, seed, epoch, metric, value`.
        samples: Images drawn from the prior, (n, H, W), by run; test images at `TEST_IMAGES`.
        maps: Latent maps of the runs with D = 2, by run.
        resolution: The half-width of an interval, nats, for which the needed seeds are counted.

    Raises:
        ValueError: The trials cannot be compared; see `frames.validate`.

    Example:
        >>> columns = {"run_id": ["a"], "status": ["complete"], "prior": ["maf"], "net": ["mlp"]}
        >>> frame = pd.DataFrame(columns).assign(latent=2, seed=0, **{"test/nll": 80.0})
        >>> Analysis(frame).summary[["prior", "latent", "nll"]].to_dict("records")
        [{'prior': 'maf', 'latent': 2, 'nll': 80.0}]
    """

    frame: pd.DataFrame
    loglik: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    samples: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    maps: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    resolution: float = comparison.RESOLUTION

    def __post_init__(self) -> None:
        _ = self.trials  # validates the frame now, not when a table is first asked for

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The frame, validated: a trial without a finite test NLL counts as diverged."""
        return frames.validate(self.frame)

    @cached_property
    def complete(self) -> pd.DataFrame:
        """The trials that are complete."""
        return self.trials[self.trials["status"] == "complete"]

    @cached_property
    def priors(self) -> list[str]:
        """The labels of the priors, in the order in which the user typed them."""
        return frames.priors(self.trials)

    @property
    def reference(self) -> str:
        """The prior that the others are compared to."""
        return frames.reference(self.trials)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per arm: see `comparison.summary`."""
        return comparison.summary(self.trials, self.loglik, resolution=self.resolution)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row per pair of priors at one setting: see `comparison.pairs`."""
        return comparison.pairs(self.trials, self.loglik, resolution=self.resolution)

    @cached_property
    def failures(self) -> pd.DataFrame:
        """One row per arm, with its failures: see `failures.find_failures`."""
        return failures.find_failures(self.trials, self.summary)

    @cached_property
    def convergence(self) -> pd.DataFrame:
        """One row per trial, with the best epoch of its validation ELBO and the fall after it."""
        return convergence.validation_course(self.trials, self.curves)

    def settings(self) -> Iterator[tuple[str, Analysis]]:
        """Yields an analysis of each setting besides the latent size, and its name.

        The name is a suffix for files, such as `-net=mlp`; it is empty where there is one setting.
        """
        trials = self.trials
        columns = [
            column
            for column in frames.axes(trials)
            if column != "latent" and trials[column].nunique(dropna=False) > 1
        ]
        if not columns:
            yield "", self
            return
        for values, rows in trials.groupby(columns, dropna=False):
            setting = zip(columns, values, strict=True)
            name = "".join(f"-{column}={frames.value_text(value)}" for column, value in setting)
            yield name, self._part(rows)

    def _part(self, trials: pd.DataFrame) -> Analysis:
        """Returns the analysis of some of the trials, which are valid as all of them are."""
        part = object.__new__(Analysis)
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        curves = self.curves
        if len(curves):
            curves = curves[curves["run_id"].isin(trials["run_id"])]
        part.__dict__.update(given | {"frame": trials, "trials": trials, "curves": curves})
        return part
