"""Synthetic grids of trials, of the kind that `bench.results.read` reads back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.statistics.analysis import Analysis


class Made(NamedTuple):
    """What `bench.results.read.Results` holds."""

    frame: pd.DataFrame
    loglik: dict[str, NDArray[Any]]
    curves: pd.DataFrame
    samples: dict[str, NDArray[Any]]
    maps: dict[str, dict[str, NDArray[Any]]]

    def analysis(self, **changes: Any) -> Analysis:  # noqa: ANN401
        """Return the analysis of the grid as it is now, with other arguments where given."""
        return Analysis(**(self._asdict() | changes))


def latent_map(rng: np.random.Generator, k: int) -> dict[str, NDArray[Any]]:
    """Return ten clusters on a ring, and a prior that follows it the better the larger `k`."""
    labels = rng.integers(0, 10, 1500)
    angle, radius = labels * np.pi / 5, 1.2 + 0.9 * (labels % 2)
    centre = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    codes = centre + (0.25 + 0.1 / (k + 1)) * rng.normal(size=(1500, 2))
    axis = np.linspace(-4, 4, 81)
    x, y = np.meshgrid(axis, axis)
    wide = -(x**2 + y**2) / 2
    ring = -((np.hypot(x, y) - 1.65) ** 2) / 0.5 + 0.6 * k * np.cos(5 * np.arctan2(y, x) + 0.3 * k)
    log_density = (wide if k == 0 else ring).astype(np.float32)
    return {
        "codes": codes,
        "labels": labels,
        "axis_x": axis,
        "axis_y": axis,
        "log_density": log_density,
        "places": rng.normal(size=(4, 4, 2)).astype(np.float32),
        "manifold": rng.integers(0, 256, (4, 4, 8, 8), np.uint8),
    }


def _digits(rng: np.random.Generator, n: int = 36, side: int = 16) -> NDArray[Any]:
    """Return n soft strokes: noise smoothed and squashed, (n, side, side) in [0, 1]."""
    waves = np.fft.fft2(rng.normal(size=(n, side, side)))
    low = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))) < 0.2
    smooth = np.fft.ifft2(waves * low).real
    return 1 / (1 + np.exp(-12 * (np.abs(smooth) - 0.45)))


def make(
    priors: tuple[str, ...] = ("gauss", "maf"),
    latents: tuple[int, ...] = (2, 16),
    seeds: int = 3,
    diverged: tuple[tuple[str, int, int], ...] = (),
    images: int = 60,
    epochs: int = 12,
) -> Made:
    """Return a grid of trials whose later priors are better by about 2 nats each."""
    rng = np.random.default_rng(0)
    base = 15 * rng.normal(size=images)
    rows, curves = [], []
    loglik, samples, maps = {}, {}, {}
    for k, prior in enumerate(priors):
        for latent in latents:
            for seed in range(seeds):
                run, lost = f"{prior}-z{latent}-s{seed}", (prior, latent, seed) in diverged
                level = 85 + 70 / latent**0.7 - 1.6 * k / (1 + 2 / latent) + 0.9 * rng.normal()
                row = {
                    "run_id": run,
                    "trial": run,
                    "status": "diverged" if lost else "complete",
                    "reason": "loss is nan" if lost else "",
                    "prior": prior,
                    "latent": latent,
                    "seed": seed,
                    "dataset": "digits",
                    "binarise": "threshold",
                    "net": "mlp",
                    "epochs": epochs,
                    "batch": 256,
                    "lr": 1e-3,
                    "precision": "float32",
                    "data_hash": "d",
                    "nll_estimator": "fitted",
                    "nll_samples": 1000,
                    "nll_precision": "float32",
                    "time/images_per_second": (90_000 / (1 + 1.7 * k) / (1 + latent / 60))
                    * np.exp(0.03 * rng.normal()),
                    "time/samples_per_second": 1e6 / (1 + k),
                    "time/train_seconds": 100.0 * (1 + k),
                    "model/prior_parameters": float(1000 * 4**k if k else 0),
                    "device": "cpu: Intel Xeon, 2 threads",
                }
                length = epochs // 2 if lost else epochs
                for metric, gap in (("train/elbo", 0.0), ("valid/elbo", -2.0)):
                    for epoch in range(1, length + 1):
                        value = -level - 3 + gap - 380 / epoch**2 + 0.3 * rng.normal()
                        value -= 500.0 if lost and epoch == length else 0
                        keys = {"run_id": run, "prior": prior, "latent": latent, "seed": seed}
                        curves.append(keys | {"epoch": epoch, "metric": metric, "value": value})
                if not lost:
                    ll = -level + base + 0.5 * rng.normal(size=images)
                    loglik[run] = ll.astype(np.float32)
                    rate = 4.0 + 4.5 * np.log2(latent) + 0.6 * k + 0.3 * rng.normal()
                    elbo = float(ll.mean()) - 2.5
                    row |= {
                        "test/nll": float(-ll.mean()),
                        "test/elbo": elbo,
                        "train/elbo": elbo + 2,
                        "test/rate": rate,
                        "test/distortion": -elbo - rate,
                        "test/active_units_relative": float(latent),
                        "test/bad_samples": 0.0,
                    }
                    samples[run] = _digits(rng)
                    if latent == 2:
                        maps[run] = latent_map(rng, k)
                rows.append(row)
    return Made(pd.DataFrame(rows), loglik, pd.DataFrame(curves), samples, maps)
