"""The address of an MLflow store: which one is meant, and that there can be such a one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flowvae.errors import InputError

__all__ = ["FLAG", "SQLITE", "masked", "tracking_uri"]


SQLITE = "sqlite:///"
FLAG = "--tracking-uri, else MLFLOW_TRACKING_URI"


def tracking_uri(flag: str | None = None) -> str:
    """Returns the store's address: `flag`, else MLFLOW_TRACKING_URI, else this folder's."""
    uri = flag or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith("sqlite:"):  # MLflow keeps a store by its address: one folder, one address
        return SQLITE + str(_database(uri))
    return uri


def _database(uri: str) -> Path:
    """Returns the file of an sqlite store, which is made with its folder if it is not there.

    Raises:
        InputError: The address names no file that there could be.
    """
    name = uri.removeprefix(SQLITE)
    expected = f"bad MLflow store {uri} ({FLAG}): expected a file's address, as {SQLITE}mlflow.db"
    # What sqlite itself understands, a database in memory or options, would be lost or misread.
    if not uri.startswith(SQLITE) or not name.isprintable() or "?" in name or name == ":memory:":
        raise InputError(expected)
    try:
        path = Path(name).resolve()
        if path.exists() and not path.is_file():
            raise InputError(f"{expected}; got a folder")
    except OSError as error:
        raise InputError(f"{expected} ({error.strerror})") from None
    return path


def masked(text: str) -> str:
    """Returns a text without the passwords of the addresses in it.

    Example:
        >>> masked("--tracking-uri postgresql://me:secret@host/flowvae")
        '--tracking-uri postgresql://me:***@host/flowvae'
    """
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)
