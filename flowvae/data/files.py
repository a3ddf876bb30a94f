"""Files of a published data set: their folder, their origin, and errors for bad ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flowvae.errors import InputError

__all__ = ["Source", "first_line"]


NUMBERS = {1: "the file", 3: "the three files", 4: "the four files"}


@dataclass(frozen=True)
class Source:
    """Where the files of a data set come from, and where they belong.

    Arguments:
        title: The data set's name in a sentence.
        folder: Where the files lie, below the folder of the data sets.
        files: Their names.
        address: Where they are published.
        downloads: Whether we can fetch them.
    """

    title: str
    folder: str
    files: tuple[str, ...]
    address: str
    downloads: bool = False

    def missing(self, root: Path) -> list[str]:
        """Returns the names of the files that are not there."""
        folder = root / self.folder  # a path that the system refuses has no files either
        return [name for name in self.files if not os.path.isfile(folder / name)]

    def absent(self, root: Path, failure: str = "") -> InputError:
        """Builds the error for files that are not there: where to get them, where to put them.

        Arguments:
            root: The folder of the data sets.
            failure: Why the download failed, if there was one.
        """
        failed = f" and cannot be downloaded ({failure})" if failure else ""
        ways = ["run once with a network"] if failure else []
        ways += [
            f"point --data-dir or FLOWVAE_DATA at a folder that holds {self.folder}",
            f"copy {NUMBERS[len(self.files)]} there{', uncompressed' if self.downloads else ''}: "
            f"{', '.join(self.files)}, from {self.address}",
        ]
        return InputError(
            f"{self.title} is not in {root / self.folder}{failed}. "
            f"{'Three' if failure else 'Two'} ways out: {'; '.join(ways[:-1])}; or {ways[-1]}"
        )

    def read(self, path: Path) -> bytes:
        """Returns the content of a file.

        Raises:
            InputError: The system does not let us read it.
        """
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None

    def damaged(self, path: Path, found: str) -> InputError:
        """Builds the error for a file that is not what it should be.

        Arguments:
            path: The file.
            found: What came instead of what.
        """
        fetch = "to have it downloaded" if self.downloads else f"and fetch it from {self.address}"
        return InputError(f"{path} is no file of {self.title}: {found}; delete it {fetch} again")


def first_line(error: Exception) -> str:
    """Returns an error's message in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
