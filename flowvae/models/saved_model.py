"""A fitted model as a folder: weights as safetensors, description as JSON.

Neither file can carry code, so a model from an untrusted source is safe to load.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from flowvae.errors import InputError
from flowvae.models.vae import VAE, build
from flowvae.numerics.size_limits import Room
from flowvae.trial import Trial

__all__ = ["load", "save"]


ELEMENTS, OPERATIONS = 2**26, 2000
"""What building a model may take beside a multiple of its weights: some priors draw points."""
REFUSED = (ValueError, TypeError, IndexError, AssertionError, OverflowError)
"""What torch and zuko raise for numbers that no model can have."""


def save(vae: VAE, trial: Trial, folder: str | Path) -> Path:
    """Writes `weights.safetensors`, `trial.json` and `image.json` into a folder.

    Arguments:
        vae: The model.
        trial: Its description.
        folder: The folder, made if need be.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> from flowvae.models.vae import build
        >>> trial = Trial(prior="gauss", latent=2, net="mlp[hidden=8]")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(path.name for path in save(build(trial, (8, 8)), trial, folder).iterdir())
        ['image.json', 'trial.json', 'weights.safetensors']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous().cpu() for name, tensor in vae.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    (folder / "image.json").write_text(json.dumps({"shape": vae.shape}))
    (folder / "trial.json").write_text(trial.to_json())
    return folder


def load(folder: str | Path, *, trusted: bool = False) -> tuple[VAE, Trial]:
    """Reads a folder that `save` wrote.

    No file of it is trusted: none can run code, and none makes us allocate more than a fixed
    multiple of the weights that are there.

    Arguments:
        folder: The folder.
        trusted: Whether its trial may name builders of other modules, as `my_module:my_prior`,
            which are imported and called.

    Returns:
        The model, on the CPU, and its description.

    Raises:
        InputError: A file is absent, or is not what it should be.

    Example:
        >>> import tempfile
        >>> from flowvae.models.vae import build
        >>> trial = Trial(prior="gauss", latent=2, net="mlp[hidden=8]")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vae, described = load(save(build(trial, (8, 8)), trial, folder))
        >>> vae.shape, described == trial
        ((8, 8), True)
    """
    folder = Path(folder)
    try:
        trial = _trial(folder / "trial.json", trusted=trusted)
        height, width = _shape(folder / "image.json")
        weights = safetensors.torch.load(_content(folder / "weights.safetensors"))
    except InputError:
        raise
    except OSError as error:
        absent = f"cannot read {error.filename}: {error.strerror}"
        raise InputError(f"{folder} is not a saved model: {absent}") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{folder} is not a saved model: {error}") from None
    path = folder / "weights.safetensors"
    size = sum(weight.numel() for weight in weights.values())
    misfit = f"{path} does not fit its trial.json and image.json"
    for name, weight in weights.items():
        if weight.is_complex():
            raise InputError(f"{misfit}: '{name}' is {weight.dtype}, expected real numbers")
    if max(height * width, trial.latent) > size:  # before anything of that size is made
        raise InputError(f"{misfit}: {height}x{width} pixels, latent {trial.latent}")
    try:
        with Room(elements=ELEMENTS + 64 * size, operations=OPERATIONS + 100 * len(weights)):
            vae = build(trial, (height, width))
        vae.load_state_dict(weights)
    except (RuntimeError, MemoryError, *REFUSED) as error:
        raise InputError(f"{misfit}: {' '.join(str(error).split())}") from None
    for name, parameter in vae.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(
                f"{path}: '{name}' holds numbers that are not finite: "
                "the training diverged, or the file is damaged"
            )
    return vae.eval(), trial


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a device may never end
        raise ValueError(f"{path.name} is no file")
    return path.read_bytes()


def _text(path: Path) -> str:
    return _content(path).decode()


def _trial(path: Path, *, trusted: bool) -> Trial:
    text = _text(path)
    try:
        return Trial.from_json(text, trusted=trusted)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _shape(path: Path) -> tuple[int, int]:
    """Reads the height and the width of an image."""
    try:
        image = json.loads(_text(path))
        match image:
            case {"shape": [int(height), int(width)]} if height > 0 and width > 0:
                return height, width
        found = f"{image!r:.80}"
    except RecursionError:
        found = "lists in lists"
    raise InputError(f"{path}: expected a shape of two whole numbers above 0; got {found}")
