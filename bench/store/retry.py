"""Retries of calls to an MLflow store, and which of its errors may pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from bench.system.signals import requested_end

__all__ = ["RETRY_SECONDS", "STORE_ERRORS", "is_temporary", "with_retries"]


Result = TypeVar("Result")
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
TEMPORARY_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
"""MLflow's error codes for faults that may pass."""
RETRY_SECONDS = (1.0, 4.0, 16.0, 64.0)
"""The pauses before a failed call is tried again, s."""
SIGNAL_SECONDS = 0.5
"""The time between two looks for a signal in a pause, s."""


def is_temporary(error: BaseException) -> bool:
    """Tells whether a store's error may pass, so that the call is worth another try."""
    if isinstance(error, MlflowException):
        return error.error_code in TEMPORARY_CODES
    return isinstance(error, STORE_ERRORS)


def with_retries(call: Callable[[], Result], pauses: Sequence[float] | None = None) -> Result:
    """Returns what a call to the store returns, tried again while the store does not answer.

    Arguments:
        call: The call; it may be made several times.
        pauses: The pauses between tries, s; none for RETRY_SECONDS.

    Raises:
        Exception: The last error of the call; an earlier one if it cannot pass, or if a signal
            has asked this process to end.
    """
    for pause in RETRY_SECONDS if pauses is None else pauses:
        try:
            return call()
        except STORE_ERRORS as error:
            if not is_temporary(error) or requested_end():
                raise
        end = time.monotonic() + pause
        while (remaining := end - time.monotonic()) > 0 and not requested_end():
            time.sleep(min(remaining, SIGNAL_SECONDS))
    return call()
