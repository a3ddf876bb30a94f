"""Reads the results of a grid from the store: one frame of trials, and arrays by run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run
from numpy.typing import NDArray

from bench.statistics.analysis import Analysis
from bench.statistics.arms import THROUGHPUT
from bench.statistics.captions import TEST_IMAGES
from bench.store.names import COMPLETE_TAG, TRIAL
from bench.store.run_info import trial_columns
from bench.store.runs import Store, run_timings
from flowvae.trial import Evaluation, Trial

__all__ = ["Results", "collect", "read_results", "scored"]


@dataclass(frozen=True)
class Results:
    """Results of a grid; see `read_results`.

    Arguments:
        frame: One row a trial: params, metrics, tags.
        curves: `run_id, prior, latent, seed, epoch, metric, value`.
        loglik: Per-image log-likelihoods of the test images, (N,), nats, by run.
        samples: Images drawn from the prior, (n, H, W), by run, and test images at `TEST_IMAGES`.
        maps: Latent maps of the runs with D = 2; see `bench.execution.artifacts.latent_map`.
    """

    frame: pd.DataFrame
    curves: pd.DataFrame
    loglik: dict[str, NDArray]
    samples: dict[str, NDArray]
    maps: dict[str, dict[str, NDArray]]

    def analyse(self, resolution: float) -> Analysis:
        """Returns the analysis; seeds are counted for a half-width of `resolution` nats."""
        return Analysis(self.frame, self.loglik, self.curves, self.samples, self.maps, resolution)

    @property
    def complete(self) -> bool:
        """Whether all trials are complete."""
        return bool((self.frame["status"] == "complete").all())


def read_results(store: Store, trials: Iterable[Trial], evaluation: Evaluation) -> Results:
    """Reads the results of the trials from the store, in their order."""
    trials = list(trials)
    runs = store.runs(trials)
    rows = [(trial_columns(trial), runs.get(trial.id)) for trial in trials]
    return collect(store, rows, evaluation)


def collect(
    store: Store, trials: Iterable[tuple[Mapping[str, Any], Run | None]], evaluation: Evaluation
) -> Results:
    """Reads the results of trials from given runs, in their order.

    Arguments:
        store: The store of the runs.
        trials: Each trial, as `trial_columns` returns it, with the run to read, or None.
        evaluation: The evaluation whose scores are read.
    """
    rows: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    loglik, samples, maps = {}, {}, {}
    for trial, run in trials:
        if run is None or run.data.tags.get("status", "killed") == "killed":
            # no run ended; the trial keeps its row
            missing = {"run_id": "", "status": "missing"}
            rows.append({**missing, **trial, **scored(evaluation)})
            continue
        run_id = run.info.run_id
        row = _row(trial, run, evaluation)
        rows.append(row)
        curves.append(_curves(store, run, row))
        if path := store.artifact(run, f"evaluations/{evaluation.id}"):
            row |= json.loads((path / "means.json").read_text())
            loglik[run_id] = np.load(
                path / f"{evaluation.method.array_name(evaluation.samples)}.npy"
            )
            if not math.isfinite(row["test/nll"]):
                row |= {"status": "diverged", "reason": f"test/nll is {row['test/nll']}"}
        elif row["status"] == COMPLETE_TAG:
            estimate = evaluation.method.describe(evaluation.samples)
            row |= {"status": "missing", "reason": f"not scored by {estimate}"}
        if path := store.artifact(run, "pictures"):
            samples[run_id] = np.load(path / "samples.npy")
            if (path / "test_images.npy").exists():
                samples[TEST_IMAGES] = np.load(path / "test_images.npy")
            if (path / "latent_map.npz").exists():
                maps[run_id] = dict(np.load(path / "latent_map.npz"))
    return Results(
        pd.DataFrame(rows),
        pd.concat(curves) if curves else pd.DataFrame(),
        loglik,
        samples,
        maps,
    )


def _row(trial: Mapping[str, Any], run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """Returns one row: the fields of the trial, and the metrics and tags of its run."""
    tags = run.data.tags
    metrics = {
        name: value
        for name, value in run.data.metrics.items()
        # these belong to an evaluation, or to an audit
        if not name.startswith((f"{evaluation.split}/", "audit/"))
    }
    versions = (f"{k} {tags[f'version.{k}']}" for k in ("python", "torch", "zuko", "mlflow"))
    return {
        "run_id": run.info.run_id,
        "status": tags["status"],
        "reason": tags.get("reason", ""),
        **trial,
        TRIAL: tags[TRIAL],  # the ID by the code that ran it
        **scored(evaluation),
        **metrics,
        "stack": int(tags["stack"]),
        "load": float(tags.get("load", "nan")),
        "device": tags.get("device", ""),
        "timing": run_timings(run) if THROUGHPUT in metrics else "",
        "timing_device": tags.get("timing.device", tags.get("device", "")),
        "versions": ", ".join(versions),
        "commit": tags.get("git.commit", ""),
        "data_hash": tags.get("data.hash", ""),
        "test_hash": tags.get("data.test", ""),
    }


def scored(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the columns of an evaluation; rows that differ in them never share a table."""
    return {
        "nll_estimator": evaluation.estimator,
        "nll_samples": evaluation.samples,
        "nll_precision": evaluation.precision,
        "nll_images": evaluation.images or "all",
    }


def _curves(store: Store, run: Run, row: Mapping[str, Any]) -> pd.DataFrame:
    names = [n for n in run.data.metrics if n in ("train/elbo", "valid/elbo")]
    points = [
        (point.step, name, point.value)
        for name in names
        for point in store.client.get_metric_history(run.info.run_id, name)
    ]
    curve = pd.DataFrame(points, columns=["epoch", "metric", "value"])
    return curve.assign(**{k: row[k] for k in ("run_id", "prior", "latent", "seed")})
