"""What is left to do of a grid: jobs, from what the store holds and from what was cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .grid import Grid, stacks

if TYPE_CHECKING:
    from flowvae.data import Dataset
    from flowvae.trial import Evaluation, Trial

    from .job import Job
    from .tracking import Store

__all__ = ["Place", "Plan"]


@dataclass(frozen=True)
class Place:
    """Where and how trials are run.

    Arguments:
        store: Where they are recorded.
        data: Their data set.
        data_dir: The folder of the data sets.
        device: Where they are computed.
        stack: The number of seeds that train together.
        keep_weights: Whether models are kept.
        force: Whether what is complete is run again.
        every: How often a job saves how far it has come, s.
        shared: How many jobs compute on the device at once.
    """

    store: Store
    data: Dataset
    data_dir: Path
    device: str
    stack: int
    keep_weights: bool
    force: bool
    every: float
    shared: int = 1

    def jobs(self, trials: Sequence[Trial], evaluation: Evaluation | None) -> list[Job]:
        """Returns the jobs that the store does not hold complete; without scores for a tuning."""
        from .begun import checkpoint_path, forget_complete

        complete = self.store.fitted(trials)
        forget_complete(self.store, self.data.hash, complete)
        fitted = {} if self.force else complete
        left = [t for t in trials if t.id not in fitted and not self.store.letter(t.id)]
        work: list[tuple[tuple[Trial, ...], str | None]] = [
            ((trial,), run.info.run_id)
            for trial in trials
            if (run := fitted.get(trial.id))
            and evaluation is not None
            and not self.store.scored(run, evaluation)
        ]
        cut_short = self._cut_short(trials, left)
        begun = {trial for stack in cut_short for trial in stack}
        fresh = stacks([trial for trial in left if trial not in begun], self.stack)
        # A stack that was cut short goes first, but not before the base that it starts from.
        begin = [stack for stack in cut_short if not stack[0].base]
        end = [stack for stack in cut_short if stack[0].base]
        work += [(tuple(stack), None) for stack in (*begin, *fresh, *end)]
        jobs = [
            replace(self._job(number, trials, evaluation), run_id=run_id)
            for number, (trials, run_id) in enumerate(work)
        ]
        return [
            replace(job, begun=checkpoint_path(job, job.trials).exists())
            if not job.run_id
            else job
            for job in jobs
        ]

    def timings(self, trials: Sequence[Trial], evaluation: Evaluation) -> list[Job]:
        """Returns jobs for `retime`: the complete trials whose device was shared, by stacks."""
        from .tracking import timed_alone

        runs = self.store.fitted(trials)
        sizes: dict[int, list[Trial]] = {}
        for trial in trials:
            run = runs.get(trial.id)
            if run and run.data.tags.get("status") == "complete" and not timed_alone(run):
                sizes.setdefault(int(run.data.tags["stack"]), []).append(trial)
        work = [stack for size, some in sizes.items() for stack in stacks(some, size)]
        return [
            replace(self._job(number, stack, evaluation), shared=1)
            for number, stack in enumerate(work)
        ]

    def _job(self, number: int, trials: Sequence[Trial], evaluation: Evaluation | None) -> Job:
        from .job import Job

        return Job(
            number=number,
            trials=tuple(trials),
            evaluation=evaluation,
            data_dir=self.data_dir,
            data_hash=self.data.hash,
            device=self.device,
            uri=self.store.uri,
            experiment=self.store.name,
            keep_weights=self.keep_weights,
            every=self.every,
            again=self.force,
            shared=self.shared,
        )

    def _cut_short(self, trials: Sequence[Trial], left: Sequence[Trial]) -> list[list[Trial]]:
        """Returns the stacks that a checkpoint tells of: each goes on as it was put together."""
        from .begun import stacks_begun

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
    def of(cls, grid: Grid, place: Place) -> Plan:
        """Plans a grid."""
        tries: list[Trial] = []
        if grid.rates:
            from .tuning import read_tuning, tuned, tuning_trials

            tries = tuning_trials(grid)
            tuning = place.jobs(tries, None)
            if tuning:
                return cls(grid, tries, tuning, [])
            grid = tuned(grid, read_tuning(place.store, grid))
        return cls(grid, tries, [], place.jobs(grid.trials, grid.evaluation))
