"""What a command says before it begins."""

from __future__ import annotations

from pathlib import Path

from bench.execution import plan_text
from bench.grid.job import Job
from flowvae.trial import Evaluation, Trial


def job(number: int, *trials: Trial, run_id: str | None = None, **changes: bool) -> Job:
    return Job(
        number=number, trials=trials, evaluation=Evaluation(), data_dir=Path(), data_hash="",
        device="cpu", uri="", experiment="", keep_weights=True, run_id=run_id, **changes,
    )  # fmt: skip


def test_a_trial_that_is_scored_again_in_a_stack_that_resumes_is_counted_once() -> None:
    trials = [Trial(prior="gauss", latent=2, seed=seed) for seed in range(9)]
    jobs = [
        job(0, *trials[:3], resumed=True),
        job(1, trials[0], run_id="a"),
        job(2, trials[3], run_id="b"),
        job(3, trials[4]),
    ]
    assert plan_text._progress(trials, jobs) == (
        "9 trials: 4 already complete, 1 to score again, 3 to resume, 1 to train"
    )
