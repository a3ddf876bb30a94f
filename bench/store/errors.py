"""One-line errors for a store that stops answering."""

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
    """Raises one error of one line if the store stops answering in the block.

    Raises:
        UnfinishedError: The store stopped answering.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from bench.store.retry import is_temporary
    from bench.store.sqlite import explain

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        if not is_temporary(error):
            raise
        raise UnfinishedError(
            f"the MLflow store {store.shown} does not answer ({explain(error)}); once it does, "
            "the same command resumes"
        ) from error
