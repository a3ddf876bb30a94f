"""What a command says before it begins."""

from __future__ import annotations

from support.jobs import planned_job

from bench.execution import plan_text
from flowvae.trial import Trial


def test_a_trial_that_is_scored_again_in_a_stack_that_resumes_is_counted_once() -> None:
    trials = [Trial(prior="gauss", latent=2, seed=seed) for seed in range(9)]
    jobs = [
        planned_job(0, *trials[:3], resumed=True),
        planned_job(1, trials[0], run_id="a"),
        planned_job(2, trials[3], run_id="b"),
        planned_job(3, trials[4]),
    ]
    assert plan_text._progress(trials, jobs) == (
        "9 trials: 4 already complete, 1 to score again, 3 to resume, 1 to train"
    )
