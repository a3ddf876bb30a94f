"""Who does a trial: of several processes on one grid, one at a time.

A claim is a lock on a file of the trial's own. The system lets go of it when its process ends,
however it ends, so that no claim outlives its holder, and no clock and no process number is needed
to tell.

A process is also known by where and when it started, for stores that are shared by machines with
no file in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bench.system.paths import writing

__all__ = ["Claims"]


class Claims:
    """The claims of one experiment.

    Arguments:
        folder: Where their files lie; all who share the experiment must see it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self, keys: Sequence[str]) -> Iterator[bool]:
        """Holds the claims on trials, all of them or none, in the block.

        Arguments:
            keys: The trials' ids.

        Returns:
            Whether they are held.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            for key in sorted(set(keys)):  # in one order: nobody waits for one who waits for him
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
        taken: Timeout | None = None
        with writing(self.folder):
            try:
                lock.acquire(timeout=0)
            except Timeout as error:  # which is an OSError, but says no fault
                taken = error
        if taken:
            raise taken
        try:
            yield
        finally:
            lock.release()

    def free(self, key: str) -> bool:
        """Tells whether nobody holds the claim on a trial."""
        with self.held([key]) as held:
            return held

    def forget(self, keys: Sequence[str]) -> None:
        """Removes the files of claims that are held, when their trials are complete.

        Whoever waits for such a claim, or makes the file anew, sees next that there is no more to
        do.
        """
        for key in keys:
            with suppress(OSError):  # it is a matter of tidiness
                (self.folder / f"{key}.lock").unlink()
