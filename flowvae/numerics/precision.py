"""Precisions: the type of numbers, and the rounding of matrix products.

| precision | weights, densities, sums | matrix products of encoder and decoder |
|---|---|---|
| `float64` | float64 | float64 |
| `float32` | float32 | float32; TensorFloat-32 is off, also where torch has it on |
| `tf32` | float32 | TensorFloat-32: 10 bits of mantissa, on a CUDA device; the flows' too |
| `bf16` | float32 | bfloat16: 7 bits of mantissa, by autocast |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flowvae.errors import InputError

__all__ = ["DTYPES", "matrix_products"]


DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.float32,
}
"""The type of weights, densities and sums, by precision."""


@contextmanager
def matrix_products(precision: str, device: torch.device) -> Iterator[None]:
    """Sets TensorFloat-32 on or off for a block, forward and backward; leaves it as it was.

    Raises:
        InputError: The precision is `tf32` and the device has none.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError(
            f"precision tf32 needs a CUDA device: on '{device.type}' take float32 or bf16"
        )
    kind = "tf32" if precision == "tf32" else "ieee"
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = kind
        yield
    finally:
        for switch, setting in zip(switches, before, strict=True):
            switch.fp32_precision = setting
