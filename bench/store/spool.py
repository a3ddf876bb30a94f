"""Runs that could not be sent to their store, each in a folder until the store is back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric

from bench.store.names import ARTIFACTS, LETTER, STORE_ERRORS, OvertakenError
from bench.store.run_writer import RunWriter
from bench.store.sqlite import explain
from flowvae.checkpoint import write_whole

if TYPE_CHECKING:
    from bench.store.runs import Store

__all__ = ["letters", "send"]


def letters(store: Store) -> list[Path]:
    """Returns the folders that wait to be sent to a store, in order."""
    return sorted(path.parent for path in store.unsent.glob(f"*/{LETTER}"))


def send(store: Store) -> tuple[int, list[str]]:
    """Sends what waits, if no other process is at it.

    Returns:
        How many runs were sent, and for each that was not, why.
    """
    sent, kept = 0, []
    for folder in letters(store):
        with store.claims.held([folder.name]) as held:
            if not held or not (folder / LETTER).exists():
                continue
            try:
                _send(store, folder)
            except OvertakenError:
                if store.done(folder.name, _replaces(folder)):  # by another process, since
                    shutil.rmtree(folder)
                else:
                    kept.append(f"{folder}: another process is at this trial")
            except (*STORE_ERRORS, KeyError, TypeError, ValueError) as error:
                kept.append(f"{folder}: {explain(error)}")
            else:
                sent += 1
    return sent, kept


def _replaces(folder: Path) -> list[str]:
    """Returns the complete runs that a letter's run is to replace."""
    return list(json.loads((folder / LETTER).read_text())["opening"].get("replaces", []))


def _send(store: Store, folder: Path) -> None:
    """Sends one run; cut short, it is sent again, and its curves are not doubled."""
    letter: dict[str, Any] = json.loads((folder / LETTER).read_text())
    if not letter["run_id"]:
        letter["run_id"] = store.open({"replaces": [], **letter["opening"]})
        write_whole(folder / LETTER, lambda path: path.write_text(json.dumps(letter)))
    run_id = letter["run_id"]
    if not store.is_complete(run_id):
        held = store.client.get_run(run_id).data.metrics
        record = RunWriter(
            store.client, run_id, logged=store.logged(run_id), held=held, shared=store.shared
        )
        if (folder / ARTIFACTS).exists():
            record.folder(folder / ARTIFACTS)
        record.take([Metric(*metric) for metric in letter["metrics"]])
        record.tag(**letter["tags"])
        try:
            record.finish(letter["status"], letter["reason"])
        except OvertakenError as error:
            record.finish("killed", str(error))
            raise
    shutil.rmtree(folder)
