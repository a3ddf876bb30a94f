"""Plans the jobs of a grid: from the trials' states in the store, and from checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.grid.grid import Grid
from bench.grid.stacking import even_stacks, stacks

if TYPE_CHECKING:
    from bench.execution.costs import Costs
    from bench.grid.job import Job
    from bench.store.runs import Store
    from flowvae.data import Dataset
    from flowvae.trial import Evaluation, Trial

__all__ = ["Placement", "Plan"]


MAX_STACK = {"cpu": 1, "cuda": 8}
"""The most seeds that are worth training together: `vmap` slows a CPU down and fills a GPU."""


class _Draft(NamedTuple):
    """A job before it is numbered.

    Arguments:
        trials: Its trials.
        run_id: The run that is only scored; none for a fit.
        resumed: Whether its fit has a checkpoint.
        seconds: How long it should take, s; none where that is not known.
    """

    trials: tuple[Trial, ...]
    run_id: str | None = None
    resumed: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Placement:
    """Where and how trials are run.

    Arguments:
        store: The store that they are recorded in.
        data: Their data set.
        data_dir: The folder of the data sets; none for each worker's own.
        device: The device that they are computed on.
        stack: The number of seeds that train together, or none for as many as suit the device.
        keep_weights: Whether models are kept.
        force: Whether complete trials are run again.
        every: The time between two checkpoints of a job, s.
        session: The command; see `Job`.
        slots: How many jobs run at once. Several start with the longest jobs; one runs them in
            the order of the grid.
        shared: How many jobs compute on one device at once.
    """

    store: Store
    data: Dataset
    data_dir: Path | None
    device: str
    stack: int | None
    keep_weights: bool
    force: bool
    every: float
    session: str = ""
    slots: int = 1
    shared: int = 1

    @property
    def max_stack(self) -> int:
        """The most seeds that train together."""
        return MAX_STACK[self.device.partition(":")[0]] if self.stack is None else self.stack

    def jobs(self, trials: Sequence[Trial], evaluation: Evaluation | None) -> list[Job]:
        """Returns the jobs of the trials that are not done; without scores for a tuning."""
        from bench.execution.checkpoints import remove_done

        states = self.store.states(trials)
        done = {key: state.run for key, state in states.items() if state.kind == "done"}
        remove_done(self.store, self.data.hash, done)
        fitted = {} if self.force else done
        remaining = [trial for trial in trials if trial.id not in fitted]
        scored_again = [
            _Draft((trial,), run.info.run_id)
            for trial in trials
            if (run := fitted.get(trial.id))
            and evaluation is not None
            and not self.store.scored(run, evaluation)
        ]
        resumed = [_Draft(tuple(s), resumed=True) for s in self._interrupted(trials, remaining)]
        begun = {trial for draft in resumed for trial in draft.trials}
        new = [trial for trial in remaining if trial not in begun]
        if self.slots > 1:
            drafts = self._longest_first(trials, [*scored_again, *resumed], new, evaluation)
        else:
            # An interrupted stack goes first, but not before the base that it starts from.
            first = [draft for draft in resumed if not draft.trials[0].base]
            last = [draft for draft in resumed if draft.trials[0].base]
            stacked = [_Draft(tuple(stack)) for stack in self._stacks(new)]
            drafts = [*scored_again, *first, *stacked, *last]
        replaced = {k: run.info.run_id for k, run in done.items() if run and self.force}
        return [self._job(n, draft, evaluation, replaced) for n, draft in enumerate(drafts)]

    def _job(
        self,
        number: int,
        draft: _Draft,
        evaluation: Evaluation | None,
        replaced: Mapping[str, str],
    ) -> Job:
        from bench.grid.job import Job

        return Job(
            number=number,
            trials=draft.trials,
            evaluation=evaluation,
            data_dir=self.data_dir,
            data_hash=self.data.hash,
            device=self.device,
            uri=self.store.uri,
            experiment=self.store.name,
            keep_weights=self.keep_weights,
            run_id=draft.run_id,
            resumed=draft.resumed,
            every=self.every,
            replaces=tuple(replaced[t.id] for t in draft.trials if t.id in replaced),
            session=self.session,
            seconds=draft.seconds,
            shared=self.shared,
        )

    def _longest_first(
        self,
        trials: Sequence[Trial],
        fixed: Sequence[_Draft],
        new: Sequence[Trial],
        evaluation: Evaluation | None,
    ) -> list[_Draft]:
        """Returns the jobs, the longest first; post-hoc fits come after all others, their bases.

        Arguments:
            trials: All trials of the grid.
            fixed: The jobs whose trials are put together already.
            new: The trials that are to be put together.
            evaluation: How the trials are scored.
        """
        from bench.execution.costs import Costs, measured_seconds

        estimator = evaluation.estimator if evaluation else None
        known = measured_seconds(self.store, self.device, estimator)
        costs = Costs(trials, self.data, self.device, known)
        ordered: list[_Draft] = []
        for post_hoc in (False, True):
            drafts = [draft for draft in fixed if bool(draft.trials[0].base) == post_hoc]
            wave = [trial for trial in new if bool(trial.base) == post_hoc]
            made = self._stacks(wave, self.slots - len(drafts), costs, evaluation)
            drafts += [_Draft(tuple(stack)) for stack in made]
            timed = [
                draft._replace(
                    seconds=costs.seconds(draft.trials, evaluation, fitted=bool(draft.run_id))
                )
                for draft in drafts
            ]
            ordered += sorted(timed, key=lambda draft: draft.seconds or 0.0, reverse=True)
        return [
            draft
            if costs.measured and math.isfinite(draft.seconds or 0.0)
            else draft._replace(seconds=None)
            for draft in ordered
        ]

    def _stacks(
        self,
        trials: Sequence[Trial],
        count: int = 1,
        costs: Costs | None = None,
        evaluation: Evaluation | None = None,
    ) -> list[list[Trial]]:
        """Groups trials into stacks; if their size is not set, into `count` of them or more."""
        if self.stack is not None or self.max_stack == 1:
            return stacks(trials, self.max_stack)
        if costs is None:
            return even_stacks(trials, self.max_stack)
        return even_stacks(trials, self.max_stack, count, lambda s: costs.seconds(s, evaluation))

    def _interrupted(
        self, trials: Sequence[Trial], remaining: Sequence[Trial]
    ) -> list[list[Trial]]:
        """Returns the stacks that have a checkpoint: each is resumed as it was put together."""
        from bench.execution.checkpoints import interrupted_stacks

        known, missing = {trial.id: trial for trial in trials}, {trial.id for trial in remaining}
        stacks = []
        for ids in interrupted_stacks(self.store.name, self.data.hash):
            if missing.isdisjoint(ids) or not known.keys() >= set(ids):
                continue
            stacks.append([known[key] for key in ids])
            missing -= set(ids)
        return stacks


@dataclass(frozen=True)
class Plan:
    """The jobs of a grid that remain.

    Arguments:
        grid: The grid, with the learning rates that its tuning chose, if that is done.
        tries: The trials of its tuning, if any.
        tuning: The jobs of its tuning that remain.
        jobs: The jobs of the grid that remain; none yet while `tuning` is not done.
    """

    grid: Grid
    tries: Sequence[Trial]
    tuning: Sequence[Job]
    jobs: Sequence[Job]

    @classmethod
    def of(cls, grid: Grid, place: Placement) -> Plan:
        """Plans a grid."""
        tries: list[Trial] = []
        if grid.rates:
            from bench.grid.tuning import tuned, tuning_trials
            from bench.results.tuning import read_tuning

            tries = tuning_trials(grid)
            tuning = place.jobs(tries, None)
            if tuning:
                return cls(grid, tries, tuning, [])
            grid = tuned(grid, read_tuning(place.store, grid))
        return cls(grid, tries, [], place.jobs(grid.trials, grid.evaluation))
