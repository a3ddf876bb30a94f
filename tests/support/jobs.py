"""Trials and jobs for the tests of execution and store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.grid.job import Job
from bench.store.runs import Store
from flowvae.data import data_dir
from flowvae.trial import Evaluation, Trial

TAGS = {"device": "cpu", "threads": "1", "stack": "1"}


def small_trial(**changes: Any) -> Trial:  # noqa: ANN401
    """Return a trial that is trained in an instant."""
    small = {"latent": 2, "net": "mlp[hidden=4]", "epochs": 3, "batch": 400}
    return Trial(prior="gauss", **{**small, **changes})


def planned_job(number: int, *trials: Trial, run_id: str | None = None, **changes: bool) -> Job:
    """Return a job that is planned and not run."""
    return Job(
        number=number, trials=trials, evaluation=Evaluation(), data_dir=Path(), data_hash="",
        device="cpu", uri="", experiment="", keep_weights=True, run_id=run_id, **changes,
    )  # fmt: skip


def job_of(store: Store, *trials: Trial, **changes: Any) -> Job:  # noqa: ANN401
    """Return a job on a store, with other fields where given."""
    given: dict[str, Any] = {
        "number": 0,
        "evaluation": Evaluation(samples=5),
        "data_dir": data_dir(None),
        "data_hash": store.data_hash,
        "device": "cpu",
        "uri": store.uri,
        "experiment": store.name,
    }
    return Job(trials=trials, **{**given, **changes})
