"""What is left to do of a grid: jobs, from what the store holds and from what was cut short."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


STACK = {"cpu": 1, "cuda": 8}
"""The most seeds that pay together: `vmap` slows a CPU down and fills a GPU."""


class _Work(NamedTuple):
    """A job in few words: its trials, the run that is only scored, and its seconds if known."""

    trials: tuple[Trial, ...]
    run_id: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Placement:
    """Where and how trials are run.

    Arguments:
        store: Where they are recorded.
        data: Their data set.
        data_dir: The folder of the data sets; none for each worker's own.
        device: Where they are computed.
        stack: The number of seeds that train together, or none for as many as suit the device.
        keep_weights: Whether models are kept.
        force: Whether what is complete is run again.
        every: How often a job saves how far it has come, s.
        session: The command; see `Job`.
        abroad: Whether workers may be on other machines, with files of their own.
        slots: How many jobs run at once. Several are given the longest jobs first; one takes them
            in the order of the grid.
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
    abroad: bool = False
    slots: int = 1
    shared: int = 1

    @property
    def most(self) -> int:
        """The most seeds that train together."""
        return STACK[self.device.partition(":")[0]] if self.stack is None else self.stack

    def jobs(self, trials: Sequence[Trial], evaluation: Evaluation | None) -> list[Job]:
        """Returns the jobs that the store does not hold complete; without scores for a tuning."""
        from bench.execution.checkpoints import forget_complete

        complete = self.store.fitted(trials)
        forget_complete(self.store, self.data.hash, complete)
        fitted = {} if self.force else complete
        left = [t for t in trials if t.id not in fitted and not self.store.letter(t.id)]
        again = [
            _Work((trial,), run.info.run_id)
            for trial in trials
            if (run := fitted.get(trial.id))
            and evaluation is not None
            and not self.store.scored(run, evaluation)
        ]
        cut_short = self._cut_short(trials, left)
        begun = {trial for stack in cut_short for trial in stack}
        fresh = [trial for trial in left if trial not in begun]
        if self.slots > 1:
            again += [_Work(tuple(stack)) for stack in cut_short]
            work = self._longest_first(trials, again, fresh, evaluation)
        else:
            # A stack that was cut short goes first, but not before the base that it starts from.
            begin = [stack for stack in cut_short if not stack[0].base]
            end = [stack for stack in cut_short if stack[0].base]
            ordered = (*begin, *self._stacks(fresh), *end)
            work = [*again, *(_Work(tuple(stack)) for stack in ordered)]
        jobs = [self._job(number, each, evaluation) for number, each in enumerate(work)]
        if not self.force:
            return jobs
        known = {key: run.info.run_id for key, run in complete.items()}
        return [
            replace(job, replaces=tuple(known[t.id] for t in job.trials if t.id in known))
            for job in jobs
        ]

    def _job(self, number: int, work: _Work, evaluation: Evaluation | None) -> Job:
        from bench.grid.job import Job
        from flowvae.checkpoint import code

        return Job(
            number=number,
            trials=work.trials,
            evaluation=evaluation,
            data_dir=self.data_dir,
            data_hash=self.data.hash,
            device=self.device,
            uri=self.store.uri,
            experiment=self.store.name,
            keep_weights=self.keep_weights,
            run_id=work.run_id,
            every=self.every,
            session=self.session,
            code=code() if self.abroad else "",
            host=platform.node() if self.abroad else "",
            seconds=work.seconds,
            shared=self.shared,
        )

    def _longest_first(
        self,
        trials: Sequence[Trial],
        fixed: Sequence[_Work],
        fresh: Sequence[Trial],
        evaluation: Evaluation | None,
    ) -> list[_Work]:
        """Puts all that is left in order: what is fitted post hoc last, its base being before.

        Arguments:
            trials: All trials of the grid.
            fixed: The jobs that are put together already.
            fresh: The trials that are not.
            evaluation: How the trials are scored.
        """
        from bench.execution.costs import Costs, measured_seconds

        known = measured_seconds(self.store, self.device)
        costs = Costs(trials, self.data, self.device, known)
        ordered: list[tuple[float, _Work]] = []
        for later in (False, True):
            work = [each for each in fixed if bool(each.trials[0].base) == later]
            wave = [trial for trial in fresh if bool(trial.base) == later]
            made = self._stacks(wave, self.slots - len(work), costs, evaluation)
            work += [_Work(tuple(stack)) for stack in made]
            pairs = [
                (costs.seconds(each.trials, evaluation, fitted=bool(each.run_id)), each)
                for each in work
            ]
            ordered += sorted(pairs, key=lambda pair: pair[0], reverse=True)
        return [
            each._replace(seconds=seconds) if costs.measured and math.isfinite(seconds) else each
            for seconds, each in ordered
        ]

    def _stacks(
        self,
        trials: Sequence[Trial],
        count: int = 1,
        costs: Costs | None = None,
        evaluation: Evaluation | None = None,
    ) -> list[list[Trial]]:
        """Groups trials into stacks; where none sets their size, into `count` of them or more."""
        if self.stack is not None or self.most == 1:
            return stacks(trials, self.most)
        if costs is None:
            return even_stacks(trials, self.most)
        return even_stacks(trials, self.most, count, lambda s: costs.seconds(s, evaluation))

    def _cut_short(self, trials: Sequence[Trial], left: Sequence[Trial]) -> list[list[Trial]]:
        """Returns the stacks that a checkpoint tells of: each goes on as it was put together."""
        from bench.execution.checkpoints import stacks_begun

        known, missing = {trial.id: trial for trial in trials}, {trial.id for trial in left}
        found = []
        for ids in stacks_begun(self.store.name, self.data.hash):
            if missing.isdisjoint(ids) or not known.keys() >= set(ids):
                continue
            found.append([known[key] for key in ids])
            missing -= set(ids)
        return found


@dataclass(frozen=True)
class Plan:
    """What is left to do.

    Arguments:
        grid: The grid, with the learning rates that its tuning chose, if that is done.
        tries: The trials of its tuning, if any.
        tuning: What is left of it.
        jobs: What is left of the grid; nothing yet while `tuning` is not done.
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
