"""Values computed in threads, ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]


Item = TypeVar("Item")
Value = TypeVar("Value")


def ahead(
    function: Callable[[Item], Value], items: Iterable[Item], workers: int = 1
) -> Generator[Value, None, None]:
    """Yields the function's values in order, while threads are at the next ones.

    Closing it waits for the calls under way and makes no more.

    Arguments:
        function: What to call; with one worker its calls follow each other.
        items: Its arguments.
        workers: The number of threads, and of values that are made before they are asked for.

    Example:
        >>> list(ahead(str, range(4), workers=2))
        ['0', '1', '2', '3']
    """
    waiting: deque[Future[Value]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
