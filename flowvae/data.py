"""Images, their split, and the rule that makes them binary.

The likelihood is Bernoulli, so every pixel must be 0 or 1. *How* a grey image becomes binary
defines the data set: `threshold` sets x = 1 where the intensity is at least half, once and for
all; `stochastic` draws x ~ Bernoulli(intensity), afresh each time an image is used in training,
and once, from a fixed stream, for validation and test. Their likelihoods differ by ten nats and
are never compared.
"""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import redirect_stdout
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .options import Natural
from .registry import Registry
from .streams import generator

__all__ = ["DATASETS", "Dataset", "Rule", "data_dir", "digits", "load_data", "mnist"]

Rule = Literal["threshold", "stochastic"]


@dataclass(frozen=True)
class Dataset:
    """Binary images, split, on the CPU.

    Arguments:
        name: The data set's name.
        spec: The spec it was loaded by, every option filled in.
        binarise: The rule that made it binary.
        shape: The height and width of an image, pixels.
        levels: The intensity in `train` that stands for probability one: 1 where the images are
            binary already.
        train: The training images as uint8 in 0..levels, (N, P).
        valid: The validation images as uint8 in {0, 1}, (N', P), possibly none.
        test: The test images as uint8 in {0, 1}, (N'', P).
        labels: The classes of the test images, (N'',).
        hash: A hash of all of the above.
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

    def describe(self) -> str:
        """Says in words what the data are.

        Example:
            >>> load_data("digits").describe()
            'digits, 8x8, threshold at half: 1200 train, 237 valid, 360 test'
        """
        rule = "threshold at half" if self.binarise == "threshold" else "stochastic binarisation"
        height, width = self.shape
        return (
            f"{self.name}, {height}x{width}, {rule}: "
            f"{len(self.train)} train, {len(self.valid)} valid, {len(self.test)} test"
        )


def draw_binary(x: Tensor, levels: int, stream: torch.Generator) -> Tensor:
    """Draws x ~ Bernoulli(intensity / levels), uint8 of the same shape, for uint8 in 0..levels."""
    draws = torch.randint(levels, x.shape, generator=stream)
    return (x > draws).to(torch.uint8)  # P(x > draw) = x / levels exactly


def check_pixels(images: Tensor, most: int = 1, part: str = "given") -> None:
    """Refuses images that are no uint8 in 0..most: torch's Bernoulli takes them without a word."""
    if images.dtype != torch.uint8 or (len(images) and int(images.max()) > most):
        raise InputError(
            f"the {part} images must be uint8 in 0..{most}; got {images.dtype} up to "
            f"{images.max().item() if len(images) else 0}: binarise them first"
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
    """
    return DATASETS.build(spec, data_dir(root))


def _prepare(
    name: str, rule: Rule, levels: int, train: Tensor, test: Tensor, labels: Tensor, valid: int
) -> Dataset:
    """Binarises and splits intensities in 0..levels, (N, H, W); the last `valid` are held out."""
    if valid >= len(train):
        raise InputError(
            f"{name} has {len(train)} training images: cannot hold out {valid} for validation"
        )

    def once(x: Tensor, part: str) -> Tensor:
        if rule == "threshold":
            return (x >= levels - levels // 2).to(torch.uint8)  # x / levels >= 1/2
        return draw_binary(x, levels, generator(0, f"binarise/{part}"))

    height, width = train.shape[1:]
    cut = len(train) - valid
    fit, held, test = (part.flatten(1) for part in (train[:cut], train[cut:], test))
    parts = {
        "train": once(fit, "train") if rule == "threshold" else fit,
        "valid": once(held, "valid"),
        "test": once(test, "test"),
        "labels": labels.to(torch.uint8),
    }
    digest = hashlib.sha256(f"{name} {rule} {height}x{width} {levels}".encode())
    for part, tensor in parts.items():
        digest.update(f"{part} {len(tensor)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return Dataset(
        name=name,
        spec=DATASETS.resolve(f"{name}[valid={valid},binarise={rule}]"),
        binarise=rule,
        shape=(height, width),
        levels=1 if rule == "threshold" else levels,
        hash=digest.hexdigest()[:16],
        **parts,
    )


@DATASETS.register("digits", source="scikit-learn's copy of Alpaydin and Kaynak, 1998, CC BY 4.0")
def digits(root: Path, *, valid: Natural = 237, binarise: Rule = "threshold") -> Dataset:
    """Bundled handwritten digits, 1,797 images of 8x8 pixels with 17 levels, no download.

    A fifth (360) is the test set, drawn stratified by class with seed 0; the rest keeps the order
    of that draw, and its last `valid` images are the validation set.

    References:
        Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998),
        https://archive.ics.uci.edu/dataset/80

    Arguments:
        root: Not used: the images come with scikit-learn.
        valid: The number of images held out for validation.
        binarise: How grey becomes black and white.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, classes = load_digits(return_X_y=True)
    train, test, _, labels = train_test_split(
        images.astype(np.uint8).reshape(-1, 8, 8),
        classes,
        test_size=360,
        stratify=classes,
        random_state=0,
    )
    train, test, labels = map(torch.from_numpy, (train, test, labels))
    return _prepare("digits", binarise, 16, train, test, labels, valid)


MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@DATASETS.register("mnist", source="LeCun, Cortes and Burges, 1998, CC BY-SA 3.0")
def mnist(root: Path, *, valid: Natural = 10_000, binarise: Rule = "threshold") -> Dataset:
    """Handwritten digits, 60,000 training and 10,000 test images of 28x28 pixels with 256 levels.

    The last `valid` training images are the validation set. Downloaded once, through torchvision;
    the four files are held against their known SHA-256 each time.

    References:
        Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998),
        http://yann.lecun.com/exdb/mnist

    Arguments:
        root: The folder of the data sets; the files lie in `MNIST/raw` below it.
        valid: The number of images held out for validation.
        binarise: How grey becomes black and white.

    Raises:
        InputError: The files are absent and cannot be downloaded, or are not MNIST's.
    """
    raw = root / "MNIST" / "raw"
    if not all((raw / name).is_file() for name in MNIST_SHA256):
        _download_mnist(root)
    files = [_verified(raw / name, sha256) for name, sha256 in MNIST_SHA256.items()]
    train, _, test, labels = map(_idx, files)  # the very bytes that were verified
    return _prepare("mnist", binarise, 255, train, test, labels, valid)


def _verified(path: Path, sha256: str) -> bytes:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path} is not MNIST's: its SHA-256 begins with {found[:12]} instead of "
            f"{sha256[:12]} ({len(content)} bytes); delete it to have it downloaded again"
        )
    return content


def _idx(content: bytes) -> Tensor:
    """Reads an IDX file of bytes: images (N, 28, 28) or labels (N,)."""
    dimensions = content[3]  # magic number, then the sizes: four bytes each
    sizes = np.frombuffer(content, ">u4", count=dimensions, offset=4)
    pixels = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(pixels.reshape(sizes.tolist()).copy())


def _download_mnist(root: Path) -> None:
    MNIST = _torchvision_mnist()  # noqa: N806
    try:
        with redirect_stdout(io.StringIO()):  # torchvision reports every mirror that fails
            MNIST(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise InputError(
            f"MNIST is not in {root / 'MNIST' / 'raw'} and cannot be downloaded "
            f"({_first_line(error)}). Three ways out: run once with a network; point --data-dir "
            "or FLOWVAE_DATA at a folder that holds MNIST/raw; or copy the four uncompressed "
            f"files there: {', '.join(MNIST_SHA256)}"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _torchvision_mnist() -> type:
    try:
        from torchvision.datasets import MNIST
    except (ImportError, RuntimeError) as error:  # RuntimeError: operator torchvision::nms ...
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = f"torchvision {version('torchvision')}"
        except PackageNotFoundError:
            found = "no torchvision"
        raise InputError(
            f"torchvision cannot be imported beside torch {torch.__version__} (found {found}: "
            f"{_first_line(error)}): install both from one index, as "
            "`pip install --force-reinstall torch torchvision` does"
        ) from error
    return MNIST
