"""The folder of results, and errors of writing there in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flowvae.errors import InputError

if TYPE_CHECKING:
    pass

__all__ = ["RESULTS_FOLDER", "writing"]


RESULTS_FOLDER = Path("results") / "local"
"""Where results go, a folder each; git ignores it."""


@contextmanager
def writing(where: object) -> Iterator[None]:
    """Raises an InputError for what the system says against writing to `where`, in the block."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {where}: {error.strerror or error}") from None
