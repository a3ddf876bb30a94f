"""The interface of a data set, the registry of data sets, and the folder of their files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from flowvae.data.pixels import check_pixels
from flowvae.specs.registry import Registry

__all__ = ["DATASETS", "Dataset", "Fixed", "Grey", "Rule", "data_dir", "load_data"]


Grey = Literal["threshold", "stochastic"]
Fixed = Literal["fixed"]
Rule = Literal[Grey, Fixed]
WORDS: dict[Rule, str] = {
    "threshold": "threshold at half",
    "stochastic": "stochastic binarisation",
    "fixed": "fixed binarisation",
}


@dataclass(frozen=True)
class Dataset:
    """Binary images, split, on the CPU.

    Arguments:
        name: The data set's name; of a user's own file, the file's.
        spec: The spec it was loaded by, every option filled in.
        binarise: The rule that made it binary.
        shape: The height and width of an image, pixels.
        levels: The intensity in `train` that stands for probability one: 1 where the images are
            binary already.
        train: The training images as uint8 in 0..levels, (N, P).
        valid: The validation images as uint8 in {0, 1}, (N', P), possibly none.
        test: The test images as uint8 in {0, 1}, (N'', P).
        labels: The classes of the test images as uint8, (N'',); all 0 where none are known.
        hash: A hash of the name, rule, shape, levels and all of the above images and labels.
    """

    name: str
    spec: str
    binarise: Rule
    shape: tuple[int, int]
    levels: int
    train: Tensor
    valid: Tensor
    test: Tensor
    labels: Tensor
    hash: str

    def __post_init__(self) -> None:
        for part, most in (("train", self.levels), ("valid", 1), ("test", 1)):
            check_pixels(getattr(self, part), most, part)

    @property
    def test_hash(self) -> str:
        """A hash of the test images alone: they may be the same with another validation set."""
        content = self.test.contiguous().numpy().tobytes()
        return hashlib.sha256(f"{self.shape}".encode() + content).hexdigest()[:16]

    def describe(self) -> str:
        """Describes the data in words.

        Example:
            >>> load_data("digits").describe()
            'digits, 8x8, threshold at half: 1200 train, 237 valid, 360 test'
        """
        height, width = self.shape
        return (
            f"{self.name}, {height}x{width}, {WORDS[self.binarise]}: "
            f"{len(self.train)} train, {len(self.valid)} valid, {len(self.test)} test"
        )


DATASETS: Registry[Dataset] = Registry("dataset")


def data_dir(flag: str | Path | None = None) -> Path:
    """Returns the folder of the data sets: `flag`, else FLOWVAE_DATA, else `data`."""
    return Path(flag or os.environ.get("FLOWVAE_DATA") or "data")


def load_data(spec: str, root: str | Path | None = None) -> Dataset:
    """Loads the data set that `spec` names.

    Arguments:
        spec: A name with options, such as `mnist[binarise=stochastic,valid=0]`.
        root: The folder of the data sets; see `data_dir`.

    Raises:
        InputError: The spec is not known, or the files are absent or not what they should be.

    Example:
        >>> data = load_data("digits[valid=100]")
        >>> data.shape, data.valid.shape
        ((8, 8), torch.Size([100, 64]))
    """
    return DATASETS.build(spec, data_dir(root))
