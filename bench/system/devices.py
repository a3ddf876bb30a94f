"""Which device computes, and what it is called."""

from __future__ import annotations

from pathlib import Path

import torch

from flowvae.errors import InputError

__all__ = ["choose_device", "device_name"]


def choose_device(text: str) -> str:
    """Returns the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for here.

    Raises:
        InputError: It is none of these, or torch does not see it.
    """
    count = torch.cuda.device_count()
    if text == "auto":
        return "cuda" if count else "cpu"
    kind, colon, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (
        colon and not (kind == "cuda" and index.isascii() and index.isdecimal() and len(index) < 5)
    ):
        raise InputError(f"bad --device '{text}': expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= count:
        raise InputError(f"no device '{text}': torch sees {count} CUDA devices; try --device cpu")
    return text


def device_name(device: str) -> str:
    """Returns the device's name with what decides its speed, such as `cuda: NVIDIA H200`."""
    if torch.device(device).type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((ln.split(":")[1].strip() for ln in lines if "model name" in ln), "")
    threads = torch.get_num_threads()
    return f"cpu: {model or 'unknown'}, {threads} thread{'s' if threads > 1 else ''}"
