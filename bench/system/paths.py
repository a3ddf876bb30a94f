"""The folder of results, and errors of writing files as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowvae.errors import InputError

__all__ = ["RESULTS_FOLDER", "writing"]


RESULTS_FOLDER = Path("results") / "local"
"""Holds a folder per experiment; git ignores it."""


@contextmanager
def writing(where: object) -> Iterator[None]:
    """Turns an OSError of the block into an InputError that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {where}: {error.strerror or error}") from None
