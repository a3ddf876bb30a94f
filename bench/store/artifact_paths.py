"""The absolute artifact paths in MLflow's tables, and whether their folder was moved."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bench.store.sqlite import opened, tables

__all__ = ["ARTIFACTS", "StoredPath", "local_path", "moved", "moved_folder", "stored_paths"]


ARTIFACTS = "mlruns"
"""MLflow's folder of artifacts, created beside the store."""
COLUMNS = (
    ("experiments", "artifact_location", "1"),
    ("runs", "artifact_uri", "1"),
    ("logged_models", "artifact_location", "1"),
    ("model_versions", "source", "1"),
    ("model_versions", "storage_location", "1"),
    ("trace_tags", "value", "key IN ('mlflow.artifactLocation', 'mlflow.trace.archiveLocation')"),
    ("workspaces", "default_artifact_root", "1"),
    ("workspaces", "trace_archival_location", "1"),
)
"""The columns of the schema that hold a location: table, column, condition on the rows."""


class StoredPath(NamedTuple):
    """A path in MLflow's tables, and where it stands."""

    table: str
    column: str
    row: int
    location: str


def stored_paths(
    connection: sqlite3.Connection, excluded: str | None = None
) -> Iterator[StoredPath]:
    """Yields the recorded locations, except plain paths that begin with `excluded`."""
    names = tables(connection)
    for table, column, condition in COLUMNS:
        if table not in names:  # another version of MLflow
            continue
        if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
            continue
        rows = connection.execute(
            f"SELECT rowid, {column} FROM {table} "
            f"WHERE {condition} AND {column} IS NOT NULL "
            f"AND (?1 IS NULL OR substr({column}, 1, length(?1)) <> ?1)",
            (excluded,),
        )
        yield from (StoredPath(table, column, *row) for row in rows)


def local_path(location: str) -> str | None:
    """Returns the path at which MLflow looks for a location; None if it is on a server.

    Example:
        >>> local_path("file:///a%20b/mlruns/1"), local_path("/a b/mlruns/1"), local_path("s3://bucket/1")
        ('/a b/mlruns/1', '/a b/mlruns/1', None)
    """
    if location.startswith("file:"):
        return os.path.normpath(url2pathname(urlsplit(location).path))
    return os.path.normpath(url2pathname(location)) if os.path.isabs(location) else None


def moved_folder(places: Iterable[StoredPath], here: str) -> Iterator[str]:
    """Yields the old folders of artifacts, once each, some of whose files now lie in `here`."""
    yielded = set()
    exists: dict[str, bool] = {}
    for place in places:
        root, _, tail = (local_path(place.location) or "").rpartition(f"/{ARTIFACTS}/")
        root = f"{root}/{ARTIFACTS}"
        # An experiment's folder may be a mere number, but a run's id is in no other store.
        first, below, _ = tail.partition("/")
        if not below or root == here or root in yielded:
            continue
        if first not in exists:  # so that the disk is not asked for every run of another folder
            exists[first] = os.path.isdir(os.path.join(here, first))
        if exists[first] and os.path.exists(os.path.join(here, tail)):
            yielded.add(root)
            if not (os.path.exists(root) and os.path.samefile(root, here)):
                yield root


def moved(path: Path) -> tuple[str, str] | None:
    """Tells whether an sqlite store's folder was moved or copied, and not repaired since.

    Arguments:
        path: The store's file, absolute; one that is missing was not moved.

    Returns:
        The folder of artifacts that the store still names, and the one beside the file that holds
        them now; or None.
    """
    here = str(path.parent / ARTIFACTS)
    if not path.exists() or not os.path.isdir(here):
        return None
    with opened(path) as connection:
        old = next(moved_folder(stored_paths(connection, f"{here}/"), here), None)
    return None if old is None else (old, here)
