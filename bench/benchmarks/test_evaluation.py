"""Timings of the test NLL; see `bench/benchmarks/test_elbo_step.py` for the command.

For each prior and precision, at the tutorial's setting, these are timed in turns: our
importance-weighted NLL, Pythae's get_nll, rewritten, with a Gaussian prior (`pythae_nll.py`), and
the floor (`floor.py`). Speeds are in image-samples a second, images times K. All models have
their initial weights.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.benchmarks import floor, pythae_nll, tutorial_loop
from bench.benchmarks.interleave import BASELINES, FLOOR, OURS, Runner, race
from bench.benchmarks.step_runner import SHAPE, TrainingImages
from bench.system.allocator import keep_freed_memory
from bench.system.devices import device_name
from flowvae.evaluation.importance_weighting import evaluate
from flowvae.models.vae import build
from flowvae.numerics.streams import global_stream
from flowvae.trial import Evaluation, Precision, Trial

PRECISIONS = ("float32", "bf16", "tf32")
CALL_SIZES = {"cpu": (100, 250), "cuda": (1000, 1000)}
"""Images and samples K of a call."""
PYTHAE_IMAGES = 10
"""Images of a call of Pythae's, whose time is linear in them. Its batch is K, as in its authors'
scripts, which is faster here than its default of 100."""
ROUNDS = 10


@pytest.fixture(scope="module", autouse=True)
def process() -> None:
    """Keeps freed memory, as a command does, while this module is timed.

    This applies to baseline and floor as well; it does not change Pythae's time. Training is timed
    without it, since pytest runs `test_elbo_step.py` first: our step takes the same time without
    it, and the tutorial's loop should run as its readers run it.
    """
    keep_freed_memory()


@pytest.mark.parametrize(
    ("prior", "precision"), list(itertools.product(tutorial_loop.PRIORS, PRECISIONS))
)
def test_nll_race(
    benchmark: BenchmarkFixture,
    images: TrainingImages,
    device: torch.device,
    prior: str,
    precision: Precision,
) -> None:
    """Times our NLL in turns with Pythae's and the floor."""
    if precision == "tf32" and device.type != "cuda":
        pytest.skip("tf32 needs a CUDA device")
    count, samples = (5, 20) if benchmark.disabled else CALL_SIZES[device.type]
    benchmark.group = f"NLL, D = {tutorial_loop.LATENT}, {precision}"
    benchmark.extra_info |= {
        "race": "NLL",
        "prior": prior,
        "latent": tutorial_loop.LATENT,
        "stack": 1,
        "samples": samples,
        "data": images.name,
        "device": device_name(str(device)),
    }
    vae = build(
        Trial(prior=prior, latent=tutorial_loop.LATENT, dataset="mnist"), SHAPE, images.binary
    )
    tested, evaluation = images.binary[:count], Evaluation(samples=samples, precision=precision)
    few = tested[:PYTHAE_IMAGES].to(device, torch.float32)
    with global_stream(0, "benchmark"):  # the baseline draws from the global generator
        baseline = tutorial_loop.model("gauss", tutorial_loop.LATENT).to(device).eval()
        scores = race(
            benchmark,
            Runner(
                OURS, lambda: evaluate(vae, tested, evaluation, seed=0, device=device),
                count * samples, precision,
            ),
            [
                Runner(
                    BASELINES["NLL"],
                    lambda: pythae_nll.nll(baseline, few, samples, samples),
                    len(few) * samples,
                ),
                Runner(
                    FLOOR,
                    floor.make_scoring_products(
                        vae, count * samples, precision=precision, device=device
                    ),
                    count * samples, precision,
                ),
            ],
            device,
            rounds=ROUNDS,
        )  # fmt: skip
    assert np.isfinite(scores.loglik[samples]).all()
