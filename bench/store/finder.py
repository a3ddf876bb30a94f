"""Finds the MLflow runs of an experiment, and chooses the one to read of each trial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from mlflow.entities import Run

from bench.store.connection import Connection
from bench.store.names import COMPLETE_TAG, ENDED_AS, SUPERSEDED, TRIAL
from flowvae.trial import Trial

__all__ = ["RunFinder", "is_open", "is_result"]


Key = TypeVar("Key")
MAX_SEARCHES = 8
"""Trials that are searched for one by one; of more, all runs of the experiment are read."""


class RunFinder(Connection):
    """The runs of one experiment."""

    def of_trials(self, keys: Iterable[str]) -> dict[str, list[Run]]:
        """Returns all runs of trials by trial id, the newest first.

        Arguments:
            keys: The ids of the trials.
        """
        runs: dict[str, list[Run]] = {key: [] for key in keys}
        one_by_one = [f"tags.{TRIAL} = '{key}'" for key in runs]
        for query in one_by_one if len(runs) <= MAX_SEARCHES else [""]:
            for run in self._search(query):
                if run.data.tags.get(TRIAL) in runs and self._is_of_data(run):
                    runs[run.data.tags[TRIAL]].append(run)
        return {key: sorted(some, key=_attempt, reverse=True) for key, some in runs.items()}

    def runs(self, trials: Iterable[Trial]) -> dict[str, Run]:
        """Returns the run to read for each trial that has one, by trial id.

        Of several runs of a trial it is the newest complete one, else the newest that ended.
        """
        runs = self.of_trials(trial.id for trial in trials)
        return _chosen((key, run) for key, some in runs.items() for run in some)

    def every(self) -> list[Run]:
        """Returns the run to read for each trial on each data set, in the order of their start."""
        runs = [run for run in self._search() if TRIAL in run.data.tags]
        keys = [(run.data.tags[TRIAL], run.data.tags.get("data.hash")) for run in runs]
        chosen = _chosen(zip(keys, runs, strict=True))
        return [chosen[key] for key in dict.fromkeys(keys)]

    def complete(self) -> list[Run]:
        """Returns the complete runs of any trial, the oldest first, without the diverged ones."""
        runs = self._search(f"tags.{COMPLETE_TAG} = 'true' and tags.status = 'complete'")
        return [run for run in runs if TRIAL in run.data.tags and self._is_of_data(run)]

    def _is_of_data(self, run: Run) -> bool:
        return self.data_hash in (None, run.data.tags.get("data.hash"))

    def _search(self, query: str = "") -> Iterator[Run]:
        """Yields the experiment's runs that match a query, the oldest first; makes no store."""
        experiment, token = self._find(), None
        while experiment is not None:
            page = self.client.search_runs(
                [experiment.experiment_id],
                query,
                order_by=["attribute.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return


def is_result(run: Run) -> bool:
    """Tells whether a run is a result, complete or diverged.

    Its process may have died between the param that says so and the tag.
    """
    ended_as = run.data.params.get(ENDED_AS, SUPERSEDED)
    return run.data.tags.get(COMPLETE_TAG) == "true" or ended_as != SUPERSEDED


def is_open(run: Run) -> bool:
    """Tells whether a run may still become a result."""
    return run.info.status == "RUNNING" and ENDED_AS not in run.data.params


def _attempt(run: Run) -> tuple[int, int]:
    """Orders the runs of a trial in time: by a counter first, as clocks may be set back."""
    return int(run.data.tags.get("attempt", 0)), run.info.start_time


def _chosen(runs: Iterable[tuple[Key, Run]]) -> dict[Key, Run]:
    """Returns the run to read for each key."""
    chosen: dict[Key, Run] = {}
    for key, run in runs:
        if key not in chosen or _rank(run) >= _rank(chosen[key]):
            chosen[key] = run
    return chosen


def _rank(run: Run) -> tuple[bool, bool, tuple[int, int]]:
    """Ranks the runs of a trial: a result, then one that ended, then any; then the newest."""
    closed = run.data.tags.get("status", "killed") != "killed"
    return is_result(run), closed, _attempt(run)
