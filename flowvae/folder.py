"""A fitted model as a folder: weights as safetensors, description as JSON.

Neither file can carry code, so a model from a stranger is safe to load.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from .errors import InputError
from .trial import Trial
from .vae import VAE, build

__all__ = ["load", "save"]


def save(vae: VAE, trial: Trial, folder: str | Path) -> Path:
    """Writes `weights.safetensors`, `trial.json` and `image.json` into a folder.

    Arguments:
        vae: The model.
        trial: Its description.
        folder: The folder, made if need be.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous().cpu() for name, tensor in vae.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    (folder / "image.json").write_text(json.dumps({"shape": vae.shape}))
    (folder / "trial.json").write_text(trial.to_json())
    return folder


def load(folder: str | Path) -> tuple[VAE, Trial]:
    """Reads a folder that `save` wrote.

    Arguments:
        folder: The folder.

    Returns:
        The model, on the CPU, and its description.

    Raises:
        InputError: A file is absent, or is not what it should be.
    """
    folder = Path(folder)
    try:
        trial = Trial.from_json((folder / "trial.json").read_text())
        shape = json.loads((folder / "image.json").read_text())["shape"]
        weights = safetensors.torch.load_file(folder / "weights.safetensors")
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a saved model: {error.filename} is absent") from None
    except (SafetensorError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is not a saved model: {error}") from None
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)):
        raise InputError(f"{folder / 'image.json'}: expected a shape of two whole numbers")
    if not 0 < math.prod(shape) <= 1 << 24:
        raise InputError(f"{folder / 'image.json'}: cannot use the shape {shape}")
    vae = build(trial, (shape[0], shape[1]))
    vae.to(next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32))
    try:
        vae.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{folder / 'weights.safetensors'} does not fit its trial.json: {error}"
        ) from None
    return vae.eval(), trial
