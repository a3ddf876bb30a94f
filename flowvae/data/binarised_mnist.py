"""MNIST in its fixed binarisation: Larochelle's text files, one image of 784 digits a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowvae.data.dataset import DATASETS, Dataset, Fixed
from flowvae.data.files import Source
from flowvae.data.splits import Images, as_published, prepare
from flowvae.specs.values import Natural

__all__ = ["mnist_fixed"]


PIXELS = 784
COUNTS = {"train": 50_000, "valid": 10_000, "test": 10_000}
SOURCE = Source(
    "MNIST in its fixed binarisation",
    "BinarizedMNIST",
    tuple(f"binarized_mnist_{part}.amat" for part in COUNTS),
    "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
)


@DATASETS.register("mnist-fixed", source="Larochelle and Murray, 2011")
def mnist_fixed(root: Path, *, valid: Natural = 10_000, binarise: Fixed = "fixed") -> Dataset:
    """MNIST as drawn once and published, 50,000 training, 10,000 validation and test images.

    One draw x ~ Bernoulli(intensity), after Salakhutdinov and Murray, published with this split by
    Larochelle. No labels are published with it: they are all 0 here. Nothing is downloaded.

    References:
        On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov and Murray, 2008)
        The Neural Autoregressive Distribution Estimator (Larochelle and Murray, 2011),
        http://proceedings.mlr.press/v15/larochelle11a/larochelle11a.pdf

    Arguments:
        root: The folder of the data sets; `binarized_mnist_train.amat`, `_valid` and `_test` lie
            in `BinarizedMNIST` below it.
        valid: The number of validation images, which is published.
        binarise: `fixed`: the pixels are 0 and 1 as published.

    Raises:
        InputError: The files are absent or damaged, or `valid` is not the published number.
    """
    as_published("mnist-fixed", valid)
    if SOURCE.missing(root):
        raise SOURCE.absent(root)
    paths = [root / SOURCE.folder / name for name in SOURCE.files]
    train, held, test = map(_read, paths, COUNTS.values())
    split = Images(train, held, test, levels=1)
    return prepare("mnist-fixed", binarise, split, {"valid": valid})


def _read(path: Path, count: int) -> Tensor:
    """Returns the images of a file, (N, 28, 28) in {0, 1}."""
    content = SOURCE.read(path)
    rows = _aligned(content)
    if rows is None:
        rows = _split(path, content)
    if len(rows) != count:
        raise SOURCE.damaged(path, f"expected {count} lines; got {len(rows)}")
    return torch.from_numpy(rows.reshape(-1, 28, 28) - np.uint8(ord("0")))


def _aligned(content: bytes) -> NDArray[np.uint8] | None:
    """Reads lines of one length, digits at every second byte, (N, 784); none if they are not."""
    width = content.find(b"\n") + 1
    if width < 2 * PIXELS or len(content) % width:
        return None
    table = np.frombuffer(content, np.uint8).reshape(-1, width)
    digits, gaps = table[:, : 2 * PIXELS : 2], table[:, 1 : 2 * PIXELS - 1 : 2]
    ends = np.isin(table[:, 2 * PIXELS - 1 :], np.frombuffer(b" \r\n", np.uint8))
    aligned = (digits >> 1 == ord("0") >> 1).all() and (gaps == ord(" ")).all() and ends.all()
    return digits if aligned else None


def _split(path: Path, content: bytes) -> NDArray[np.uint8]:
    """Reads lines however they are spaced, (N, 784); tells the first that is bad."""
    rows = []
    for number, line in enumerate(content.rstrip().split(b"\n"), 1):
        words = line.split()
        if len(words) != PIXELS:
            raise SOURCE.damaged(
                path, f"line {number} holds {len(words)} values, expected {PIXELS}"
            )
        if bad := next((word for word in words if word not in (b"0", b"1")), None):
            text = bad.decode(errors="replace")
            raise SOURCE.damaged(path, f"line {number} holds '{text}', expected only 0 and 1")
        rows.append(b"".join(words))
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, PIXELS)
