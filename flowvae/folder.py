"""A fitted model as a folder: weights as safetensors, description as JSON.

Neither file can carry code, so a model from a stranger is safe to load.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
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
        image = json.loads((folder / "image.json").read_text())
        weights = safetensors.torch.load((folder / "weights.safetensors").read_bytes())
    except OSError as error:
        absent = f"cannot read {error.filename}: {error.strerror}"
        raise InputError(f"{folder} is not a saved model: {absent}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"{folder} is not a saved model: {error}") from None
    height, width = _shape(image, folder / "image.json")
    size = sum(weight.numel() for weight in weights.values())
    misfit = f"{folder / 'weights.safetensors'} does not fit its trial.json and image.json"
    if max(height * width, trial.latent) > size:  # before anything of that size is made
        raise InputError(f"{misfit}: {height}x{width} pixels, latent {trial.latent}")
    try:
        vae = build(trial, (height, width))
        vae.load_state_dict(weights)
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"{misfit}: {error}") from None
    return vae.eval(), trial


def _shape(image: object, path: Path) -> tuple[int, int]:
    match image:
        case {"shape": [int(height), int(width)]} if height > 0 and width > 0:
            return height, width
    raise InputError(f"{path}: expected a shape of two whole numbers above 0; got {image!r:.80}")
