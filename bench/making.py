"""An sqlite store is made once, by one process, and wholly or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient

from flowvae.errors import InputError

from .address import SQLITE

__all__ = ["alone", "make"]

PATIENCE = 120.0
"""How long another process may take to open a store, and to make its tables, s."""


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keeps others away: several first users at once would break the tables as they are made.

    Where nothing can be written, nobody makes any.
    """
    lock = FileLock(file.with_name(file.name + ".lock"))
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise InputError(
            f"another process has been opening the MLflow store {file} for {PATIENCE:g} s: it "
            "is stopped or stuck; end it"
        ) from None
    except OSError:  # a folder that cannot be written to
        pass
    try:
        yield
    finally:
        lock.release()


def make(file: Path) -> None:
    """Makes a store that is not there yet, aside: killed in between, it leaves no half of one."""
    if file.exists() and file.stat().st_size:
        return
    aside = file.with_name(file.name + ".new")
    made = (aside, aside.with_name(aside.name + "-journal"))
    for left in made:
        left.unlink(missing_ok=True)
    try:
        MlflowClient(f"{SQLITE}{aside}").search_experiments(max_results=1)
        aside.replace(file)
    finally:  # the disk may be full
        for left in made:
            left.unlink(missing_ok=True)
