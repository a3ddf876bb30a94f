"""Names of tags, params and files of a run; errors of the store that may pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    pass

__all__ = [
    "ARTIFACTS",
    "COMPLETE_TAG",
    "ENDED_AS",
    "GROUP",
    "LETTER",
    "NOTE",
    "STORE_ERRORS",
    "SUPERSEDED",
    "TRIAL",
    "OvertakenError",
    "is_temporary",
]


ENDED_AS = "ended_as"
"""The param; its values are `complete`, `diverged` and `superseded`."""
SUPERSEDED = "superseded"


class OvertakenError(Exception):
    """Another process took the trial over, or completed it."""


TRIAL = "trial"
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a description, of a run or of an experiment."""
GROUP = "group"
"""The tag by which MLflow puts the seeds of an arm together: what names it, in short."""


COMPLETE_TAG = "complete"
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
"""MLflow's codes for what may be over when it is tried again."""
LETTER = "letter.json"
ARTIFACTS = "artifacts"


def is_temporary(error: BaseException) -> bool:
    """Tells whether a store's error may be over when it is tried again."""
    if isinstance(error, MlflowException):
        return error.error_code in PASSING
    return isinstance(error, STORE_ERRORS)
