"""The address of an MLflow store: from the flag or the environment, checked, and masked."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flowvae.errors import InputError

__all__ = ["SQLITE", "URI_SOURCE", "masked", "tracking_uri"]


SQLITE = "sqlite:///"
URI_SOURCE = "--tracking-uri, else MLFLOW_TRACKING_URI"


def tracking_uri(flag: str | None = None) -> str:
    """Returns the store's address: `flag`, else MLFLOW_TRACKING_URI, else this folder's."""
    uri = flag or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith("sqlite:"):  # MLflow caches stores by address: one file, one address
        return SQLITE + str(_database(uri))
    return uri


def _database(uri: str) -> Path:
    """Returns the file of an sqlite store; it need not exist.

    Raises:
        InputError: The address names no possible file.
    """
    name = uri.removeprefix(SQLITE)
    expected = (
        f"bad MLflow store {uri} ({URI_SOURCE}): expected a file's address, as {SQLITE}mlflow.db"
    )
    # Databases in memory and options, which sqlite understands, would be lost or misread.
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
    """Returns a text in which the passwords of addresses are masked.

    Example:
        >>> masked("--tracking-uri postgresql://me:secret@host/flowvae")
        '--tracking-uri postgresql://me:***@host/flowvae'
    """
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)
