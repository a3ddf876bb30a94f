"""Measures a trial without a store: the costs of its fit, the files of its model, its scores."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.audit.quadrature import TOLERANCE
from bench.execution import artifacts
from bench.statistics.metrics import Evaluated, Trained, numbers_of
from bench.store.measurements import Measurements, of_model
from bench.store.names import ESTIMATOR_TAG
from bench.store.runs import THREADS_TAG
from bench.system.memory import Peak, peak_memory
from bench.system.signals import defer_signals
from flowvae.checkpoint import Checkpoint
from flowvae.data import Dataset
from flowvae.evaluation.elbo_surgery import dissect
from flowvae.evaluation.importance_weighting import evaluate
from flowvae.evaluation.quadrature import MAX_FEATURES, Evidence, evidence
from flowvae.models.saved_model import save
from flowvae.models.vae import VAE
from flowvae.numerics.streams import global_stream
from flowvae.training.trainer import Fitted, synchronise
from flowvae.trial import Evaluation, Trial

__all__ = ["files_of_model", "measure", "measure_fit", "sampling_speed"]


LATENTS_AT_ONCE, MAX_LATENTS, MAX_SECONDS = 500, 10_000, 0.2
"""The latents of one draw, the most in all, and the time after which no more are drawn, s."""


def measure_fit(fitted: Fitted, peak: Peak) -> Measurements:
    """Returns the costs of a fit, which may have diverged."""
    tags = {
        "selected_epoch": str(fitted.epoch),
        THREADS_TAG: ", ".join(map(str, fitted.timing.threads)),
    }
    numbers = numbers_of(Trained(fitted, peak.size, peak.since_start))
    return Measurements(numbers, tags=tags)


def files_of_model(
    vae: VAE, trial: Trial, data: Dataset, *, keep_weights: bool, draw_images: bool
) -> Measurements:
    """Returns the files that a run keeps of its model.

    Arguments:
        vae: The model.
        trial: Its trial.
        data: The data set.
        keep_weights: Whether the model is kept.
        draw_images: Whether samples, reconstructions and a latent map are: they show test images.
    """
    arrays: dict[str, NDArray] = {}
    files: dict[str, Callable[[Path], object]] = {}
    if keep_weights:
        files["model"] = partial(save, vae, trial)
    if draw_images:
        arrays["pictures/samples"] = samples = artifacts.samples(vae)
        arrays["pictures/test_images"] = artifacts.real_images(data)
        files["pictures/samples.png"] = artifacts.sheet(samples).save
        reconstructions = artifacts.reconstructions(vae, data)
        files["pictures/reconstructions.png"] = artifacts.sheet(reconstructions).save
        if trial.latent == 2:
            maps = artifacts.latent_map(vae, data, seed=trial.seed)
            files["pictures/latent_map.npz"] = partial(_save_arrays, maps)
    return Measurements(arrays=arrays, files=files)


def measure(
    vae: VAE,
    trial: Trial,
    data: Dataset,
    evaluation: Evaluation,
    *,
    device: str,
    on_chunk: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Measurements:
    """Returns the scores of a fitted model, image by image and in the mean, and their costs.

    With one or two latent features log p(x) is integrated as well. An interruption meanwhile loses
    the integral alone: the checkpoint holds the scores by then.

    Arguments:
        vae: The model.
        trial: Its trial, whose seed is that of the draws.
        data: The data set.
        evaluation: How it is scored.
        device: Where.
        on_chunk: Called with the number of images scored, and of all.
        checkpoint: Where the scoring saves its progress.
    """
    data = evaluation.scored(data)
    images = data.test if evaluation.split == "test" else data.valid
    start = time.perf_counter()  # the scores come back to the host: no need to synchronise
    with peak_memory(device) as peak, defer_signals():
        scores = evaluate(
            vae,
            images,
            evaluation,
            seed=trial.seed,
            device=device,
            on_chunk=on_chunk,
            checkpoint=checkpoint,
        )
    seconds = time.perf_counter() - start
    if outside := int(scores.outside.sum()):
        text = f"{trial.name}: {outside} draws are outside the prior's support and weigh nothing"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    speed = sampling_speed(vae, device)
    surgery = dissect(vae, data, seed=trial.seed, split=evaluation.split, device=device)
    exact = _integrate(vae, images, trial, device)
    measured = Evaluated(
        vae, evaluation, scores, surgery, seconds, speed, peak.size, peak.since_start, exact
    )
    name_of = evaluation.method.array_name
    arrays = {name_of(k): loglik for k, loglik in scores.loglik.items()}
    arrays |= {name: values for name, values in vars(scores).items() if name != "loglik"}
    arrays |= {f"surgery/{name}": np.asarray(value) for name, value in vars(surgery).items()}
    if exact is not None:
        arrays |= {"exact": exact.log_p, "exact_error": exact.error}
    tags = {ESTIMATOR_TAG: evaluation.estimator, "nll_samples": str(evaluation.samples)}
    if surgery.caveat:
        tags["caveat"] = surgery.caveat
    numbers = numbers_of(measured)
    means = {k: v for k, v in numbers.items() if k.startswith(f"{evaluation.split}/")}
    costs = {k: v for k, v in numbers.items() if k not in means}
    return of_model("evaluation", evaluation.id, arrays, means, tags, costs=costs)


def _integrate(vae: VAE, images: Tensor, trial: Trial, device: str) -> Evidence | None:
    """Returns log p(x) by quadrature, D = 1 or 2; None with a warning where that fails."""
    if trial.latent > MAX_FEATURES:
        return None
    try:
        return evidence(vae, images, device=device, tolerance=TOLERANCE)
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:  # the prior's, too
        warnings.warn(f"{trial.name} has no exact NLL: {error}", RuntimeWarning, stacklevel=2)
        return None


@torch.no_grad()
def sampling_speed(vae: VAE, device: str) -> float:
    """Returns the latents drawn from the prior per second, after a small draw to warm up."""
    density, place = vae.prior(), torch.device(device)
    with global_stream(0, "sampling speed"):
        density.sample((8,))
        synchronise(place)
        start, count, seconds = time.perf_counter(), 0, 0.0
        while count < MAX_LATENTS and seconds < MAX_SECONDS:
            density.sample((LATENTS_AT_ONCE,))
            synchronise(place)
            count, seconds = count + LATENTS_AT_ONCE, time.perf_counter() - start
    return count / seconds


def _save_arrays(arrays: Mapping[str, NDArray], path: Path) -> None:
    np.savez(path, allow_pickle=False, **arrays)
