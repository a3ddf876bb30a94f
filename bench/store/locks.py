"""File locks that let one process at a time run a trial."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bench.system.paths import writing

__all__ = ["TrialLocks"]


class TrialLocks:
    """The locks of an experiment's trials, a file each.

    The system releases a lock when its process ends, however that happens.

    Arguments:
        folder: The folder of the files; all processes that share the experiment must see it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self, keys: Collection[str]) -> Iterator[bool]:
        """Holds the locks of trials in the block, all of them or none.

        Arguments:
            keys: The ids of the trials.

        Returns:
            Whether they are held.

        Raises:
            InputError: The files cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            for key in sorted(
                set(keys)
            ):  # in one order, so that no two processes block each other
                try:
                    locks.enter_context(self._lock(key))
                except Timeout:
                    locks.close()
                    yield False
                    return
            yield True

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        lock = FileLock(self.folder / f"{key}.lock")
        timeout: Timeout | None = None
        with writing(self.folder):
            try:
                lock.acquire(timeout=0)
            except Timeout as error:  # an OSError too, but no fault
                timeout = error
        if timeout:
            raise timeout
        try:
            yield
        finally:
            lock.release()

    def remove(self, keys: Collection[str]) -> None:
        """Removes the files of held locks whose trials are done.

        A process that waits for such a lock, or makes the file anew, finds the trial done.
        """
        for key in keys:
            with suppress(OSError):  # a file that stays does no harm
                (self.folder / f"{key}.lock").unlink()
