"""Uploads the report of a grid to its store, where `mlflow ui` shows it.

The note of the experiment shows question, answer, protocol and the first figure; a run called
`report`, which belongs to no trial, holds the page, the tables and the figures. Both are replaced
by the next command on the experiment, like its folder below `results/local`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.report.page import Page
from bench.report.render import make_note
from bench.store.names import NOTE
from bench.store.runs import Store
from bench.store.views import REPORT_TAG, views
from flowvae.trial import Trial

__all__ = ["upload_report"]


REPORT_RUN_TAG = "report"
"""The tag of the run that holds the report; it has no tag `trial`, which marks trials."""


def upload_report(
    store: Store, trials: Iterable[Trial], page: Page, files: Sequence[Path]
) -> None:
    """Uploads a grid's report to its store: views and note of the experiment, and a run.

    Arguments:
        store: The store, and the experiment in it.
        trials: The grid's trials.
        page: The report's content.
        files: The report's files.
    """
    run_id = _run(store)
    for path in files:
        store.client.log_artifact(run_id, str(path))
    text = make_note(page, store.experiment, run_id)
    store.client.set_tag(run_id, NOTE, text)
    store.client.set_terminated(run_id)
    store.tag({NOTE: text, **views(trials)})


def _run(store: Store) -> str:
    """Returns the id of the experiment's run for the report, which is created if missing."""
    if run_id := _oldest_run(store):
        return run_id
    tags = {REPORT_RUN_TAG: "true", "mlflow.source.name": "bench.run"}
    created = str(
        store.client.create_run(store.experiment, run_name=REPORT_TAG, tags=tags).info.run_id
    )
    if (oldest := _oldest_run(store)) != created:  # another process created one at the same time
        store.client.delete_run(created)
    return oldest


def _oldest_run(store: Store) -> str:
    """Returns the id of the oldest run for a report, or nothing."""
    order = ["attribute.start_time ASC", "attribute.run_id ASC"]
    condition = f"tags.{REPORT_RUN_TAG} = 'true'"
    runs = store.client.search_runs([store.experiment], condition, order_by=order, max_results=1)
    return runs[0].info.run_id if runs else ""
