"""Helpers for functions under `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["mapped_axis_first"]


def mapped_axis_first(
    size: int, dims: Sequence[int | None], tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Returns what `vmap` maps over with the mapped axis, of that size, first; shared ones too."""
    return tuple(
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for dim, tensor in zip(dims, tensors, strict=True)
    )
