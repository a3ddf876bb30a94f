"""A limit on the size of a model, for descriptions from an untrusted source.

A file of a hundred bytes can ask for a layer of 10^12 weights. The sizes of a model are known to
its builder alone, which may be of another package; so each operation of torch that it calls is
tried on tensors without data first, which have a shape and take no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flowvae.errors import InputError

__all__ = ["Room", "count_weights"]


SORTING = 8
"""What an operation makes, as a multiple of what it is given, where that is all that is known."""


class Room(TorchDispatchMode):
    """Counts what torch makes in the block, and ends it before that exceeds a limit.

    It costs about a tenth of a millisecond an operation.

    Arguments:
        elements: The most numbers that may be made, temporary ones included.
        operations: The most operations that may be called.

    Raises:
        InputError: In the block: the limit would be exceeded.

    Example:
        >>> with Room(elements=1000, operations=10):
        ...     torch.ones(10**6, 10**6)
        Traceback (most recent call last):
        flowvae.errors.InputError: it takes more than 1000 numbers
    """

    def __init__(self, *, elements: int, operations: int) -> None:
        super().__init__()
        self.elements, self.operations = elements, operations
        self._made = self._called = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes seconds

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        self._called += 1
        if self._called > self.operations:
            raise InputError(f"it takes more than {self.operations} operations")
        self._made += _new(func, args, kwargs)
        if self._made > self.elements:
            raise InputError(f"it takes more than {self.elements} numbers")
        return func(*args, **kwargs)


class _Unfilled(TorchDispatchMode):
    """Leaves out what would fill a tensor: without data there is nothing to fill."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func._schema.is_mutable:  # type: ignore[attr-defined]
            return args[0]
        return func(*args, **(kwargs or {}))


def count_weights(build: Callable[[], nn.Module]) -> int:
    """Counts the weights of what `build` makes, without any memory for them.

    Raises:
        RuntimeError: Something in it needs its numbers, or there are too many to count.

    Example:
        >>> count_weights(lambda: nn.Linear(10**6, 10**6))
        1000001000000
    """
    with torch.device("meta"), _Unfilled():
        return sum(parameter.numel() for parameter in build().parameters())


def _new(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:  # noqa: ANN401
    """Returns how many numbers an operation would make."""
    if func._schema.is_mutable or func.is_view:
        return 0
    shapes = [x.shape for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    # Of these it is plain; without data they would import a computer algebra, seconds again.
    if shapes and torch.Tag.pointwise in func.tags:
        return math.prod(torch.broadcast_shapes(*shapes))
    if func is torch.ops.aten.mm.default:
        return shapes[0][0] * shapes[1][1]
    args, kwargs = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        made = func(*args, **kwargs)
    except RuntimeError:  # how many depends on the numbers: such as sort them
        return SORTING * sum(map(math.prod, shapes))
    return sum(x.numel() for x in tree_leaves(made) if isinstance(x, Tensor))
