"""Reads the trials of a tuning: learning rates and validation ELBOs."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from mlflow.entities import Run

from bench.grid.grid import Grid
from bench.grid.tuning import SETTING_COLUMNS, mark_chosen, tuning_trials
from bench.store.run_info import trial_columns
from bench.store.runs import Store
from flowvae.trial import Trial

__all__ = ["read_tuning"]


COLUMNS = ("trial", *SETTING_COLUMNS, "lr", "seed", "dataset", "binarise", "epochs", "select")


def read_tuning(store: Store, grid: Grid) -> pd.DataFrame:
    """Reads a grid's tuning from the store: one row a trial, marked by `mark_chosen`.

    Columns: `trial`, those of `SETTING_COLUMNS`, `lr`, `seed`, the recipe, `epoch` of the kept
    weights, its `valid_elbo` (nats per image), `status`, `reason`, `run_id`, `device`, `chosen`.
    """
    trials = tuning_trials(grid)
    runs = store.runs(trials)
    return mark_chosen(pd.DataFrame([_row(store, trial, runs.get(trial.id)) for trial in trials]))


def _row(store: Store, trial: Trial, run: Run | None) -> dict[str, Any]:
    known = trial_columns(trial)
    row = {name: known.get(name, "") for name in COLUMNS}
    tags = run.data.tags if run else {}
    status = tags.get("status", "killed")
    row |= {"epoch": int(tags.get("selected_epoch", 0)), "valid_elbo": math.nan}
    row |= {"status": "missing" if status == "killed" else status}
    row |= {"reason": tags.get("reason", ""), "device": tags.get("device", "")}
    if run is None:
        return {**row, "run_id": ""}
    if status == "complete":
        curve = store.client.get_metric_history(run.info.run_id, "valid/elbo")
        row["valid_elbo"] = next(p.value for p in curve if p.step == row["epoch"])
    return {**row, "run_id": run.info.run_id}
