"""The device that computes, and its name."""

from __future__ import annotations

from pathlib import Path

import torch

from flowvae.errors import InputError

__all__ = ["choose_device", "device_name"]


def choose_device(text: str) -> str:
    """Returns the device of `auto`, `cpu`, `cuda` or `cuda:N` on this machine.

    Raises:
        InputError: The text is none of these, or torch does not see the device.
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
    """Returns the device's kind, model and threads, such as `cuda: NVIDIA H200`."""
    if torch.device(device).type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((ln.split(":")[1].strip() for ln in lines if "model name" in ln), "")
    threads = torch.get_num_threads()
    return f"cpu: {model or 'unknown'}, {threads} thread{'s' if threads > 1 else ''}"
