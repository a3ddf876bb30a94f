"""Timings of a training step: `pytest bench --benchmark-enable --benchmark-json speed.json`.

Pieces: for each prior and latent size the ELBO, the ELBO with its gradients, and the trainer's
whole step. Every call ends with a synchronise, on every device; the number of calls is fixed, and
the first few are warm-up.

Races: at the tutorial's setting, for each prior and precision, one model and a stack of seeds: our
step, the plain loop of zuko's tutorial with its own loader (`bench/benchmarks/tutorial_loop.py`)
and the floor (`bench/benchmarks/floor.py`), in turns (`bench/benchmarks/interleave.py`).

`python -m bench.benchmarks speed.json` draws both. No test asserts a time.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.benchmarks import floor, tutorial_loop
from bench.benchmarks.interleave import BASELINES, FLOOR, OURS, Runner, race
from bench.benchmarks.step_runner import SHAPE, StepRunner, TrainingImages
from bench.system.devices import device_name
from flowvae.models.vae import build
from flowvae.numerics.precision import matrix_products
from flowvae.numerics.streams import global_stream
from flowvae.training.trainer import synchronise
from flowvae.trial import Trial

LATENTS = (2, 16, 64)
WARMUP, ROUNDS = 3, 20
PIECE_NAMES = {
    "forward": "ELBO forward",
    "backward": "forward + backward",
    "step": "optimiser step",
}
PRECISIONS = ("float32", "bf16", "tf32")
STACK = 8
UNTIMED_BATCH = 16
"""The batch if benchmarks are disabled."""
PIECES = [
    pytest.param(prior, latent, what, id=f"{prior}-z{latent}-{what}")
    for prior, latent, what in itertools.product(tutorial_loop.PRIORS, LATENTS, PIECE_NAMES)
]
RACES = [
    pytest.param(prior, precision, size, id=f"{prior}-{precision}-x{size}")
    for prior, size, precision in itertools.product(tutorial_loop.PRIORS, (1, STACK), PRECISIONS)
]


def make_trial(prior: str, latent: int = tutorial_loop.LATENT, **changes: Any) -> Trial:  # noqa: ANN401
    """Returns a trial at the tutorial's setting, except for its batch."""
    return Trial(prior=prior, latent=latent, dataset="mnist", **changes)


@pytest.mark.parametrize(("prior", "latent", "what"), PIECES)
def test_elbo_step(
    benchmark: BenchmarkFixture,
    images: TrainingImages,
    device: torch.device,
    prior: str,
    latent: int,
    what: str,
) -> None:
    """Times one piece of our step."""
    batch = UNTIMED_BATCH if benchmark.disabled else tutorial_loop.BATCH
    benchmark.group = f"{PIECE_NAMES[what]}, D = {latent}"
    benchmark.extra_info |= {
        "prior": prior,
        "latent": latent,
        "what": PIECE_NAMES[what],
        "batch": batch,
        "data": images.name,
        "device": device_name(str(device)),
    }
    trial = make_trial(prior, latent, batch=batch)
    trainer = StepRunner([trial], images.binary.to(device))
    piece = {"forward": trainer.forward, "backward": trainer.backward, "step": trainer.step}[what]

    def synchronised() -> Tensor:
        value = piece()
        synchronise(device)
        return value

    with matrix_products(trial.precision, device):
        value = benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=WARMUP)
    assert value.isfinite().all()
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["images_per_second"] = batch / benchmark.stats.stats.median


@pytest.mark.parametrize(("prior", "precision", "size"), RACES)
def test_training_race(
    benchmark: BenchmarkFixture,
    images: TrainingImages,
    device: torch.device,
    prior: str,
    precision: str,
    size: int,
) -> None:
    """Times our step, of one model or of a stack, in turns with the tutorial's and the floor."""
    if precision == "tf32" and device.type != "cuda":
        pytest.skip("tf32 needs a CUDA device")
    batch = tutorial_loop.BATCH
    if benchmark.disabled:  # a small case is enough
        size, batch = min(size, 2), UNTIMED_BATCH
    benchmark.group = f"our step, D = {tutorial_loop.LATENT}, {precision}, stack {size}"
    benchmark.extra_info |= {
        "race": "training",
        "prior": prior,
        "latent": tutorial_loop.LATENT,
        "stack": size,
        "batch": batch,
        "data": images.name,
        "device": device_name(str(device)),
    }
    trials = [
        make_trial(prior, batch=batch, precision=precision, seed=seed) for seed in range(size)
    ]
    ours = StepRunner(trials, images.binary.to(device))
    least = floor.make_training_step(
        build(trials[0], SHAPE, images.binary), batch,
        members=size, precision=precision, device=device,
    )  # fmt: skip
    count = batch * size
    with global_stream(0, "benchmark"):  # the tutorial draws from the global generator
        loss = tutorial_loop.model(prior, tutorial_loop.LATENT).to(device)
        steps = tutorial_loop.steps(loss, tutorial_loop.loader(images.one_by_one), device)
        sums = race(
            benchmark,
            Runner(OURS, ours.step, count, precision),
            [
                Runner(BASELINES["training"], lambda: next(steps), tutorial_loop.BATCH),
                Runner(FLOOR, least, count, precision),
            ],
            device,
            rounds=ROUNDS if size == 1 else ROUNDS // 2,
        )
    assert sums.isfinite().all()
