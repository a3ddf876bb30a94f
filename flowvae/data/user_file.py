"""A user's own images: a NumPy file, `.npy` or `.npz`, and a rule that makes them binary."""

from __future__ import annotations

import lzma
import os
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowvae.data.dataset import DATASETS, Dataset, Rule
from flowvae.data.files import first_line
from flowvae.data.pixels import first, is_binary, quantise
from flowvae.data.splits import Images, hold_out, prepare
from flowvae.errors import InputError, unknown
from flowvae.numerics.streams import generator
from flowvae.specs.values import Count, Natural

__all__ = ["file"]


PARTS = ("train", "valid", "test")
FOREIGN = (
    # of numpy
    ValueError, TypeError, SyntaxError, OverflowError, MemoryError, OSError, EOFError,
    tokenize.TokenError,
    # of zipfile
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError,
)  # fmt: skip
"""What is raised for other bytes, as half a million damaged files showed."""
DTYPES = "bool, uint8 in 0..255 or floating in [0, 1]"


@DATASETS.register("file", source="your own images")
def file(
    root: Path,
    *,
    path: str | None = None,
    valid: Natural | None = None,
    test: Count | None = None,
    binarise: Rule = "threshold",
) -> Dataset:
    """Your own images, from a NumPy file.

    An `.npz` holds `train` and `test`, perhaps `valid`, and perhaps `labels`, the classes of the
    test images. An `.npy` holds one array. What the file does not split is shuffled with a fixed
    seed; then the last `test` images are held out, and before them the last `valid`.

    Images are (N, H, W) or (N, H, W, 1): bool, uint8 in 0..255, or floating in [0, 1], which is
    rounded to 256 levels. Where all images hold nothing but 0 and 1 these are the two levels,
    whatever the type. The spec names the file, not what is in it: the data set's hash does that.

    Arguments:
        root: The folder of the data sets.
        path: The file, relative to that folder, else to the current one; no commas or brackets.
        valid: The number of validation images; none for the file's own, or else for a tenth.
        test: The number of test images; none for the file's own, or else for a tenth.
        binarise: How grey becomes black and white; `fixed` where the images are already.

    Raises:
        InputError: The file is absent or not such a file, or cannot be split or binarised so.

    Example:
        >>> import tempfile
        >>> from flowvae.data import load_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/shapes.npy", np.eye(100).reshape(100, 10, 10))
        ...     load_data("file[path=shapes.npy,binarise=fixed]", folder).describe()
        'shapes.npy, 10x10, fixed binarisation: 80 train, 10 valid, 10 test'
    """
    if path is None:
        raise InputError("data set 'file' needs a path, such as file[path=shapes.npz]; got none")
    full = root / path
    if not os.path.exists(full) and os.path.isfile(path):  # False too of what can be no path
        full = Path(path)
    arrays = _read(full)
    labels = arrays.pop("labels", None)
    _check(full, arrays)
    pixels, levels = _levels(full, arrays, binarise)
    parts = _split(full, pixels, valid=valid, test=test)
    classes = None if labels is None else _labels(full, labels, len(parts["test"]))
    split = Images(**parts, labels=classes, levels=levels)
    data = prepare("file", binarise, split, {"path": path, "valid": valid, "test": test})
    return replace(data, name=full.name)


def _read(path: Path) -> dict[str, NDArray]:
    """Returns the arrays of an `.npz`, or the one of an `.npy` as `train`."""
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"expected an .npz or .npy file; got {path}")
    if not os.path.isfile(path):
        raise InputError(
            f"{path} does not exist: give a path relative to the folder of the data sets "
            "(--data-dir or FLOWVAE_DATA), or an absolute one"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a header that Python 2 wrote will do
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"train": loaded}
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except FOREIGN as error:
        raise InputError(
            f"{path} cannot be read as a NumPy file without pickled objects "
            f"({first_line(error)}): write it with np.savez or np.save from plain arrays"
        ) from None
    for name, array in arrays.items():
        if name not in (*PARTS, "labels"):
            raise unknown("array", name, (*PARTS, "labels"), of=str(path))
        if not isinstance(array, np.ndarray):  # of a file that is no array numpy returns the bytes
            raise InputError(
                f"'{name}' of {path} is no array: write the file with np.savez from plain arrays"
            )
    for name in ("train", "test"):
        if name not in arrays:
            raise InputError(
                f"{path} has no array '{name}', only {', '.join(arrays) or 'none'}: an .npz "
                "needs train and test; to have one array split, save it as .npy"
            )
    return arrays


def _check(path: Path, arrays: dict[str, NDArray]) -> None:
    """Raises for arrays that are not images of one size and type; drops a last axis of one."""
    for part, images in arrays.items():
        if images.ndim == 4 and images.shape[-1] == 1:
            arrays[part] = images = images[..., 0]
        if images.ndim != 3 or 0 in images.shape[1:]:
            raise InputError(
                f"'{part}' of {path} must be images (N, H, W) or (N, H, W, 1); "
                f"got shape {images.shape}"
            )
        if not len(images) and part != "valid":
            raise InputError(f"'{part}' of {path} holds no image: expected at least one")
        if not (images.dtype.kind in "bf" or images.dtype == np.uint8):
            raise InputError(f"'{part}' of {path} must be {DTYPES}; got {images.dtype}")
        size, expected = images.shape[1:], arrays["train"].shape[1:]
        if size != expected:
            raise InputError(
                f"the images of {path} must be of one size: those of 'train' are "
                f"{expected[0]}x{expected[1]}, those of '{part}' {size[0]}x{size[1]}"
            )


def _levels(
    path: Path, arrays: Mapping[str, NDArray], rule: Rule
) -> tuple[dict[str, Tensor], int]:
    """Returns the images as uint8 in 0..levels, and the levels: 1 if all are binary, else 255."""
    binary = {part: is_binary(images) for part, images in arrays.items()}
    if all(each.all() for each in binary.values()):
        return {k: torch.from_numpy(v.astype(np.uint8)) for k, v in arrays.items()}, 1
    if rule == "fixed":
        part = next(part for part, each in binary.items() if not each.all())
        raise InputError(
            f"binarise=fixed takes images of 0 and 1 as they are, but '{part}' of {path} holds "
            f"{first(~binary[part], arrays[part])}: choose binarise=threshold or stochastic"
        )
    kinds = {images.dtype.kind for images in arrays.values()}
    if len(kinds) > 1:
        types = ", ".join(f"'{part}' {images.dtype}" for part, images in arrays.items())
        raise InputError(f"the images of {path} must be of one type: {DTYPES}; got {types}")
    levels = {
        part: quantise(images, f"'{part}' of {path}") if kinds == {"f"} else images
        for part, images in arrays.items()
    }
    return {part: torch.from_numpy(images) for part, images in levels.items()}, 255


def _split(
    path: Path, pixels: Mapping[str, Tensor], *, valid: int | None, test: int | None
) -> dict[str, Tensor]:
    """Returns `train`, `valid` and `test`, (N, H, W) each, as the file has them or held out."""
    parts = dict(pixels)
    if "valid" not in parts or "test" not in parts:
        order = torch.randperm(len(parts["train"]), generator=generator(0, "data/shuffle"))
        parts["train"] = parts["train"][order]
    tenth = max(1, len(parts["train"]) // 10)
    for part, wanted in (("test", test), ("valid", valid)):
        if part not in parts:
            count = tenth if wanted is None else wanted
            parts["train"], parts[part] = hold_out(path.name, parts["train"], count, part)
        elif wanted not in (None, len(parts[part])):
            raise InputError(
                f"{path} has its own '{part}', {len(parts[part])} images; got {part}={wanted}: "
                "leave the option out"
            )
    return parts


def _labels(path: Path, labels: NDArray, count: int) -> Tensor:
    """Returns the classes of the test images, (N,)."""
    whole = labels.dtype.kind in "biu" and labels.shape == (count,)
    if not whole or labels.min() < 0 or labels.max() > 255:
        raise InputError(
            f"'labels' of {path} must be whole numbers in 0..255, one for each of the {count} "
            f"test images; got {labels.dtype} of shape {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.uint8))
