"""Puts a grid's report into its store, so that `mlflow ui` alone shows it.

The experiment's note tells question, answer and protocol and shows the first figure, and a run
called `report`, of no trial, holds the page, the tables and the figures. Both are of the last
command on the experiment, as its folder below `results/local` is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.report.page import Page
from bench.report.render import note
from bench.store.connection import NOTE
from bench.store.runs import Store
from bench.store.views import REPORT_TAG, views
from flowvae.trial import Trial

__all__ = ["attach"]


TAG = "report"
"""The tag by which the run is found; `trial`, by which trials are, it does not have."""


def attach(store: Store, trials: Iterable[Trial], page: Page, files: Sequence[Path]) -> None:
    """Writes a grid's report into its store: views and note of the experiment, and a run.

    Arguments:
        store: The store, and the experiment in it.
        trials: The grid's trials.
        page: The report's content.
        files: The report's files.
    """
    run_id = _run(store)
    for path in files:
        store.client.log_artifact(run_id, str(path))
    text = note(page, store.experiment, run_id)
    store.client.set_tag(run_id, NOTE, text)
    store.client.set_terminated(run_id)
    store.tag({NOTE: text, **views(trials)})


def _run(store: Store) -> str:
    """Returns the id of the experiment's run for the report; one that is not there yet is made."""
    if found := _first(store):
        return found
    tags = {TAG: "true", "mlflow.source.name": "bench.run"}
    made = str(
        store.client.create_run(store.experiment, run_name=REPORT_TAG, tags=tags).info.run_id
    )
    if (first := _first(store)) != made:  # another process made one at the same moment
        store.client.delete_run(made)
    return first


def _first(store: Store) -> str:
    """Returns the id of the oldest run for a report, or nothing."""
    order = ["attribute.start_time ASC", "attribute.run_id ASC"]
    wanted = f"tags.{TAG} = 'true'"
    found = store.client.search_runs([store.experiment], wanted, order_by=order, max_results=1)
    return found[0].info.run_id if found else ""
