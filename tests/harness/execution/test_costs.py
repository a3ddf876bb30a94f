"""What jobs take, and the order and the stacks that follow from it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.claimed_runs import start
from support.small_priors import narrow
from torch.utils.flop_counter import FlopCounterMode

from bench.execution import checkpoints, costs
from bench.execution.costs import Costs, measured_seconds, step_operations
from bench.execution.plan import Placement, Plan
from bench.execution.plan_text import print_plan
from bench.grid.grid import make_grid
from bench.grid.job import Job
from bench.store.runs import Store
from flowvae.checkpoint import Checkpoint
from flowvae.data import Dataset, data_dir
from flowvae.models.vae import build
from flowvae.training.trainer import fit
from flowvae.trial import Evaluation, Trial

TAGS = {"device": "cpu: some", "threads": "1", "stack": "1"}
SCORE = Evaluation(samples=10)


def make(prior: str = "gauss", **changes: Any) -> Trial:  # noqa: ANN401
    small = {"latent": 2, "net": "mlp[hidden=8]", "epochs": 3, "batch": 400}
    return Trial(prior=prior, **{**small, **changes})


def of(trials: list[Trial], data: Dataset, **changes: Any) -> Costs:  # noqa: ANN401
    return Costs(trials, data, **{"device": "cpu", "known": {}, **changes})


@pytest.fixture
def store(
    make_store: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: Dataset,
) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(f"sqlite:///{make_store(tmp_path)}", "digits", digits.hash)


@pytest.fixture
def record(store: Store, digits: Dataset) -> Callable[..., None]:
    """A function that records a complete run of a trial with the seconds that it took."""

    def write(trial: Trial, seconds: float, status: str = "complete", **tags: str) -> None:
        run = start(
            store, trial, digits, TAGS | {"nll_samples": "10", "nll_estimator": "fitted"} | tags
        )
        run.metrics({"time/train_seconds": seconds, "time/evaluation_images_per_second": 36.0})
        run.finish(status)

    return write


def place(store: Store, digits: Dataset, **changes: Any) -> Placement:  # noqa: ANN401
    held = Placement(store, digits, data_dir(None), "cuda", None, True, False, 60.0, slots=2)
    return replace(held, **changes)


def shapes(jobs: list[Job]) -> list[tuple[str, list[int]]]:
    return [(job.trials[0].arm, [trial.seed for trial in job.trials]) for job in jobs]


def seeds(count: int, *priors: str, **changes: Any) -> list[Trial]:  # noqa: ANN401
    return [make(prior, seed=seed, **changes) for seed in range(count) for prior in priors]


def test_every_prior_is_counted(prior: str, digits: Dataset) -> None:
    trial = make(prior, batch=64)
    known = of([trial], digits)
    assert 0 < known.seconds([trial], None) < known.seconds([trial], SCORE) < math.inf
    assert known.seconds([trial], SCORE, fitted=True) < known.seconds([trial], SCORE)
    assert not known.measured


def test_flops_are_those_of_torch(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "NUMBER_FLOPS", 0)
    trial = make(narrow("nsf"), batch=8)
    vae = build(trial, digits.shape)
    with FlopCounterMode(display=False) as counter:
        vae.elbo(digits.train[:8], torch.randn(8, 2)).elbo.sum().backward()
    assert step_operations(trial, digits).flops == counter.get_total_flops()


def test_two_batches_tell_of_a_third(digits: Dataset) -> None:
    trial = make("vamp[components=6]")  # its pseudo-inputs are encoded once a step
    step = step_operations(trial, digits)
    assert step.calls == step_operations(trial.but(batch=8), digits).calls
    counted = costs._count(build(trial, digits.shape, digits.train), trial.batch)
    assert step.flops == pytest.approx(counted.flops)
    assert step.flops < 50 * step_operations(trial.but(batch=8), digits).flops


def test_the_estimate_grows_with_the_work(digits: Dataset) -> None:
    trial = make("maf[hidden=8]")
    known = of([trial], digits)

    def seconds(**changes: Any) -> float:  # noqa: ANN401
        return known.seconds([trial.but(**changes)], None)

    assert seconds(epochs=6) == pytest.approx(2 * seconds())
    assert seconds() < seconds(net="mlp[hidden=64]") < seconds(net="mlp[hidden=256]")
    assert seconds(prior="gauss") < seconds() < seconds(prior="maf[hidden=64x64]")
    assert seconds(training="post-hoc") < seconds()
    assert seconds(seed=7) == seconds()
    score = [known.seconds([trial], Evaluation(samples=k), fitted=True) for k in (10, 20)]
    assert score[1] == pytest.approx(2 * score[0])


def test_on_a_gpu_a_stack_takes_less_than_its_members(digits: Dataset) -> None:
    trial = make("maf[hidden=8]")
    known = of([trial], digits, device="cuda")
    one, eight = (known.seconds([trial] * size, None) for size in (1, 8))
    assert one < eight < 8 * one


def test_earlier_runs_tell_what_an_arm_takes(
    store: Store, digits: Dataset, record: Callable[..., None]
) -> None:
    trial, faster = make(seed=5), make(seed=5, lr=1e-2)
    record(make(seed=0), 6.0)
    record(make(seed=1), 8.0)
    record(make(seed=2), 99.0)
    record(make(seed=3), 1.0, "diverged")
    record(make(seed=4), 2.0, device="cuda: other")
    record(make(seed=4, epochs=9), 500.0)
    known = of([trial], digits, known=measured_seconds(store, "cpu", "fitted"))
    assert known.measured
    assert known.seconds([trial], None) == known.seconds([faster], None) == pytest.approx(8.0)
    assert known.seconds([trial], SCORE) == pytest.approx(8.0 + 10.0)  # 360 images at 36 a second
    once = Evaluation(samples=1)
    assert known.seconds([trial], once, fitted=True) == pytest.approx(1.0)
    elsewhere = of(
        [trial], digits, device="cuda", known=measured_seconds(store, "cuda:0", "fitted")
    )
    assert elsewhere.seconds([trial], None) == pytest.approx(2.0)


def test_the_seconds_of_one_estimator_do_not_tell_those_of_another(
    store: Store, digits: Dataset, record: Callable[..., None]
) -> None:
    trial = make()
    record(trial, 8.0, nll_estimator="encoder")
    encoder, fitted = (
        of([trial], digits, known=measured_seconds(store, "cpu", estimator))
        for estimator in ("encoder", "fitted")
    )
    assert encoder.seconds([trial], SCORE, fitted=True) == pytest.approx(10.0)
    assert fitted.seconds([trial], SCORE, fitted=True) != pytest.approx(10.0)
    assert fitted.seconds([trial], None) == pytest.approx(8.0)  # trained as long


def test_a_run_of_a_stack_tells_of_another_size(
    store: Store, digits: Dataset, record: Callable[..., None]
) -> None:
    trials = seeds(4, "gauss")
    record(trials[0], 8.0, device="cuda", stack="2")
    known = of(trials, digits, device="cuda", known=measured_seconds(store, "cuda", "fitted"))
    assert known.seconds(trials[:2], None) == pytest.approx(8.0)
    assert 4.0 < known.seconds(trials[:1], None) < 8.0 < known.seconds(trials, None) < 16.0


def test_estimates_are_put_on_the_scale_of_what_was_measured(
    store: Store, digits: Dataset, record: Callable[..., None]
) -> None:
    small, large, other = make(), make("maf[hidden=8]"), make("nsf[hidden=8]")
    plain = of([small, large, other], digits)
    for trial in (small, large):
        record(trial, 1000 * plain.seconds([trial], None))
    known = of([small, large, other], digits, known=measured_seconds(store, "cpu", "fitted"))
    assert known.seconds([other], None) == pytest.approx(1000 * plain.seconds([other], None))


def broken(space: object) -> object:
    raise RuntimeError("no such thing")


def test_a_prior_that_fails_to_build_comes_first_and_breaks_nothing(
    store: Store, digits: Dataset
) -> None:
    trials = seeds(1, "gauss", f"{__name__}:broken", "maf[hidden=8]")
    jobs = place(store, digits, device="cpu").jobs(trials, SCORE)
    assert [job.trials[0].prior.partition("[")[0] for job in jobs] == [
        f"{__name__}:broken",
        "maf",
        "gauss",
    ]


def test_several_slots_begin_with_the_longest_and_one_keeps_the_order(
    store: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    priors = ("gauss", "cnf[hidden=8]", "maf[hidden=8]")
    trials = [*seeds(2, *priors), *seeds(2, "maf[hidden=8]", training="post-hoc")]
    jobs = place(store, digits, device="cpu").jobs(trials, SCORE)
    arms = ["cnf[hidden=8]", "maf[hidden=8]", "gauss", "maf[hidden=8] post-hoc"]
    assert shapes(jobs) == [(arm, [seed]) for arm in arms for seed in (0, 1)]
    assert [job.number for job in jobs] == list(range(8))
    assert {job.seconds for job in jobs} == {None}  # a rank is no time
    monkeypatch.delattr(costs, "Costs")  # one slot asks for none
    one = place(store, digits, device="cpu", slots=1).jobs(trials, SCORE)
    assert [job.trials[0] for job in one] == trials


def test_what_is_scored_anew_stands_by_its_scoring(
    store: Store, digits: Dataset, record: Callable[..., None]
) -> None:
    done, left = make("maf[hidden=8]"), make(epochs=1)
    record(done, 1e6)
    record(left.but(seed=1), 11.0)
    jobs = place(store, digits, device="cpu").jobs([done, left], SCORE)
    assert [(job.run_id is None, job.seconds) for job in jobs] == [
        (True, pytest.approx(21.0)),
        (False, pytest.approx(10.0)),
    ]


def test_stacks_leave_no_slot_without_work(store: Store, digits: Dataset) -> None:
    arms = ("gauss", "maf[hidden=8]", "nsf[hidden=8]")
    trials = seeds(5, *arms)
    three = place(store, digits).jobs(trials, None)
    assert sorted(len(job.trials) for job in three) == [5, 5, 5]
    eight = place(store, digits, slots=8).jobs(trials, None)
    assert len(eight) == 8
    sizes = {arm: [len(found) for name, found in shapes(eight) if name == arm] for arm in arms}
    assert len(sizes["nsf[hidden=8]"]) > len(sizes["gauss"])  # the longest is cut first
    many = place(store, digits, slots=99).jobs(trials, None)
    assert {len(job.trials) for job in many} == {1}
    assert len(place(store, digits, slots=8, stack=4).jobs(trials, None)) == 6
    assert len(place(store, digits, slots=1).jobs(trials, None)) == 3


def test_a_stack_that_was_cut_short_stays_as_it_was(store: Store, digits: Dataset) -> None:
    trials = seeds(5, "gauss")
    job = place(store, digits, stack=3, slots=1).jobs(trials, None)[0]
    state = Checkpoint(checkpoints.checkpoint_path(job, trials[:3]), 0.0)
    fit(trials[:3], digits, checkpoint=state)
    state.save()
    jobs = place(store, digits, slots=8).jobs(trials, None)
    assert [(found, job.resumed) for (_, found), job in zip(shapes(jobs), jobs, strict=True)] == [
        ([0, 1, 2], True),
        ([3], False),
        ([4], False),
    ]


def test_a_plan_for_several_slots_tells_its_order_and_its_seconds(
    store: Store, digits: Dataset, record: Callable[..., None]
) -> None:
    grid = make_grid(
        {
            "priors": "gauss,maf[hidden=8]",
            "latents": "2",
            "seeds": "0:2",
            "nets": "mlp[hidden=8]",
            "nll-samples": "10",
        },
        name="digits",
    )

    def told() -> str:
        console = Console(file=io.StringIO(), width=200)
        plan = Plan.of(grid, place(store, digits, device="cpu"))
        print_plan(console, plan, slots=2)
        return console.file.getvalue()

    first = told()
    assert "4 jobs, 2 at a time, longest first\n  maf[hidden=8]-z2-s0" in first
    assert "about" not in first
    record(grid.trials[0].but(seed=8), 50.0)
    record(grid.trials[1].but(seed=8), 110.0)
    assert "about 6 min in all, 2 min the longest, estimated from earlier runs" in told()
