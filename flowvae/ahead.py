"""Values computed in threads, ahead of their use, and laid where a device can fetch them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["ahead", "pinned"]

Item = TypeVar("Item")
Value = TypeVar("Value")


def ahead(
    function: Callable[[Item], Value], items: Iterable[Item], workers: int = 1
) -> Generator[Value, None, None]:
    """Yields the function's values in order, while threads are at the next ones.

    Arguments:
        function: What to call; with one worker its calls follow each other.
        items: Its arguments.
        workers: The number of threads, and of values that are made before they are asked for.

    Example:
        >>> list(ahead(str, range(4), workers=2))
        ['0', '1', '2', '3']
    """
    waiting: deque[Future[Value]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a CPU tensor where a CUDA device copies from by itself; for others as it is."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
