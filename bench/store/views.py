"""Saved views of an experiment's runs, which MLflow offers in its menu `Views`.

MLflow keeps a view as a tag of the experiment, whose JSON its own pages write and read; nobody
documents it. This is that of MLflow 3.17; pages that do not know it list runs as they always do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence

from bench.store.names import GROUP, TRIAL
from bench.store.run_info import trial_columns
from flowvae.specs.values import write
from flowvae.trial import Trial

__all__ = ["MEANS_VIEW", "REPORT_TAG", "views"]


TAG = "mlflow.sharedViewState."
"""How the tags begin; the rest is what an address names a view by."""
MEANS_VIEW, TRIALS_VIEW = "flowvae-means", "flowvae-trials"
REPORT_TAG = "report"
"""The name of the run that holds the report, which is none of the trials."""
VIEW_METRICS = ("test/nll", "test/elbo", "test/rate", "test/khat_high", "time/train_seconds")


def views(trials: Iterable[Trial]) -> dict[str, str]:
    """Returns the tags of an experiment that make its views: the means over seeds, and the trials.

    Arguments:
        trials: Its trials. What varies among those of a prior becomes a column.
    """
    told = [{k: write(v) for k, v in trial_columns(trial).items()} for trial in trials]
    priors = {each["prior"] for each in told}
    fixed = (TRIAL, "prior", "latent", "seed")
    varied = [
        name
        for name in told[0]
        if name not in fixed and len({(e["prior"], e.get(name)) for e in told}) > len(priors)
    ]
    params = ["prior", "latent", *varied]
    keys = [("tag", GROUP), *(("param", name) for name in varied)]
    groups = [{"mode": mode, "groupByData": name} for mode, name in keys]
    return {
        f"{TAG}{MEANS_VIEW}": _view("Priors: means over seeds", params, groups),
        f"{TAG}{TRIALS_VIEW}": _view("Trials", [*params, "seed"], None),
    }


def _view(name: str, params: Sequence[str], groups: Sequence[Mapping[str, str]] | None) -> str:
    """Returns the JSON of a view: the params that it shows, and what its groups agree in."""
    state = {
        "searchFilter": f"attributes.run_name != '{REPORT_TAG}'",
        "orderByKey": "metrics.`test/nll`",
        "orderByAsc": True,
        "selectedColumns": [
            *(f"metrics.`{metric}`" for metric in VIEW_METRICS),
            *(f"params.`{param}`" for param in params),
            "tags.`status`",
        ],
        "groupBy": groups and {"aggregateFunction": "average", "groupByKeys": groups},
    }
    now = int(1000 * time.time())
    made = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return json.dumps(made)
