"""Turns a store that stops answering into one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.grid.job import UnfinishedError

if TYPE_CHECKING:
    from bench.store.runs import Store

__all__ = ["store_errors_as_one_line"]


@contextmanager
def store_errors_as_one_line(store: Store) -> Iterator[None]:
    """Makes one line of it if the store stops to answer in the block.

    Raises:
        UnfinishedError: It did.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from bench.store.names import is_temporary
    from bench.store.spool import letters
    from bench.store.sqlite import explain

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        if not is_temporary(error):
            raise
        waits = f": what it did not take lies in {store.unsent}" if letters(store) else ""
        raise UnfinishedError(
            f"the MLflow store {store.shown} does not answer ({explain(error)}){waits}; the same "
            "command goes on when it is back"
        ) from error
