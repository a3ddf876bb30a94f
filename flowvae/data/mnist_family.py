"""The MNIST family: four files in IDX format, fetched through torchvision.

An IDX file is a magic number of four bytes (0, 0, 8 for unsigned bytes, the number of dimensions),
the sizes as big-endian 32-bit integers, then the bytes. We read these files ourselves: torchvision
prefers an old `processed` folder to them, and does not check what is on the disk.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowvae.data.dataset import DATASETS, Dataset, Grey
from flowvae.data.files import Source, first_line
from flowvae.data.splits import Images, hold_out, prepare
from flowvae.errors import InputError
from flowvae.specs.registry import Spec
from flowvae.specs.values import Natural

__all__ = ["MNIST_SHA256", "downloads", "emnist_letters", "fashion_mnist", "kmnist", "mnist"]


MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class Family:
    """A data set of 28x28 images in four IDX files, as torchvision lays them out.

    Arguments:
        source: The files: training images and labels, test images and labels.
        loader: Torchvision's class.
        split: The part of it, where it has several.
        train: The number of training images.
        test: The number of test images.
        classes: The labels.
        transposed: Whether the files hold the images' columns first.
        sha256: The files' hashes, where they are known.
    """

    source: Source
    loader: str
    split: str | None = None
    train: int = 60_000
    test: int = 10_000
    classes: range = range(10)
    transposed: bool = False
    sha256: Mapping[str, str] | None = None


def _like_mnist(title: str, loader: str, address: str) -> Family:
    files = tuple(MNIST_SHA256)
    return Family(Source(title, f"{loader}/raw", files, address, downloads=True), loader)


FAMILIES = {
    "mnist": replace(
        _like_mnist("MNIST", "MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        sha256=MNIST_SHA256,
    ),
    "fashion-mnist": _like_mnist(
        "Fashion-MNIST",
        "FashionMNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "kmnist": _like_mnist(
        "Kuzushiji-MNIST", "KMNIST", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"
    ),
    "emnist-letters": Family(
        Source(
            "EMNIST Letters",
            "EMNIST/raw",
            tuple(
                f"emnist-letters-{part}-{kind}-ubyte"
                for part in ("train", "test")
                for kind in ("images-idx3", "labels-idx1")
            ),
            "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
            downloads=True,
        ),
        "EMNIST",
        split="letters",
        train=124_800,
        test=20_800,
        classes=range(1, 27),
        transposed=True,
    ),
}


@DATASETS.register("mnist", source="LeCun, Cortes and Burges, 1998, CC BY-SA 3.0")
def mnist(root: Path, *, valid: Natural = 10_000, binarise: Grey = "threshold") -> Dataset:
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
    return _build("mnist", root, valid, binarise)


@DATASETS.register("fashion-mnist", source="Xiao, Rasul and Vollgraf, 2017, MIT")
def fashion_mnist(root: Path, *, valid: Natural = 10_000, binarise: Grey = "threshold") -> Dataset:
    """Articles of clothing, 60,000 training and 10,000 test images of 28x28 with 256 levels.

    The last `valid` training images are the validation set. Downloaded once, through torchvision,
    which checks MD5; the files are held against their format, counts and labels each time.

    References:
        Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms
        (Xiao, Rasul and Vollgraf, 2017), https://arxiv.org/abs/1708.07747

    Arguments:
        root: The folder of the data sets; the files lie in `FashionMNIST/raw` below it.
        valid: The number of images held out for validation.
        binarise: How grey becomes black and white.

    Raises:
        InputError: The files are absent and cannot be downloaded, or are damaged.
    """
    return _build("fashion-mnist", root, valid, binarise)


@DATASETS.register("kmnist", source="Clanuwat et al., 2018, CC BY-SA 4.0")
def kmnist(root: Path, *, valid: Natural = 10_000, binarise: Grey = "threshold") -> Dataset:
    """Cursive Japanese characters, 60,000 training and 10,000 test images of 28x28, 256 levels.

    The last `valid` training images are the validation set. Downloaded once, through torchvision,
    which checks MD5; the files are held against their format, counts and labels each time. The
    licence asks for this line: "KMNIST Dataset" (created by CODH), adapted from "Kuzushiji
    Dataset" (created by NIJL and others), doi:10.20676/00000341.

    References:
        Deep Learning for Classical Japanese Literature (Clanuwat et al., 2018),
        https://arxiv.org/abs/1812.01718

    Arguments:
        root: The folder of the data sets; the files lie in `KMNIST/raw` below it.
        valid: The number of images held out for validation.
        binarise: How grey becomes black and white.

    Raises:
        InputError: The files are absent and cannot be downloaded, or are damaged.
    """
    return _build("kmnist", root, valid, binarise)


@DATASETS.register("emnist-letters", source="Cohen, Afshar, Tapson and van Schaik, 2017")
def emnist_letters(
    root: Path, *, valid: Natural = 20_800, binarise: Grey = "threshold"
) -> Dataset:
    """Handwritten letters, 124,800 training and 20,800 test images of 28x28 with 256 levels.

    The last `valid` training images are the validation set. The files hold the images transposed;
    here they stand upright. Labels are 1 for A to 26 for Z, both cases together. Downloaded once,
    through torchvision, which checks MD5: 560 MB, for the one archive holds all six parts of
    EMNIST; the files are held against their format, counts and labels each time.

    References:
        EMNIST: an extension of MNIST to handwritten letters (Cohen et al., 2017),
        https://arxiv.org/abs/1702.05373

    Arguments:
        root: The folder of the data sets; the files lie in `EMNIST/raw` below it.
        valid: The number of images held out for validation.
        binarise: How grey becomes black and white.

    Raises:
        InputError: The files are absent and cannot be downloaded, or are damaged.
    """
    return _build("emnist-letters", root, valid, binarise)


def downloads(spec: str, root: Path) -> str:
    """Describes what `load_data` would download first, and from where; empty where nothing.

    Arguments:
        spec: The data set.
        root: The folder of the data sets.
    """
    family = FAMILIES.get(Spec.parse(spec).name)
    if family is None or not family.source.missing(root):
        return ""
    source = family.source
    return (
        f"{source.title} is not in {root / source.folder}: a run downloads it first, from "
        f"{source.address}"
    )


def _build(name: str, root: Path, valid: int, binarise: Grey) -> Dataset:
    family = FAMILIES[name]
    train, test, labels = _load(family, root)
    if family.transposed:
        train, test = train.mT, test.mT
    split = Images(*hold_out(name, train, valid), test, labels)
    return prepare(name, binarise, split, {"valid": valid})


def _load(family: Family, root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Returns training images (N, 28, 28), test images (N', 28, 28) and their labels (N',)."""
    source = family.source
    if source.missing(root):
        _download(family, root)
    paths = [root / source.folder / name for name in source.files]
    contents = [source.read(path) for path in paths]  # what is verified is what is read
    if family.sha256 is not None:
        for path, content in zip(paths, contents, strict=True):
            _verify(source, path, content, family.sha256[path.name])
    shapes = [(n, *size) for n in (family.train, family.test) for size in ((28, 28), ())]
    train, train_labels, test, test_labels = (
        _idx(source, *each) for each in zip(paths, contents, shapes, strict=True)
    )
    for path, labels in ((paths[1], train_labels), (paths[3], test_labels)):
        _check_labels(family, path, labels)
    return train, test, test_labels


def _verify(source: Source, path: Path, content: bytes, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise source.damaged(
            path,
            f"its SHA-256 begins with {found[:12]} instead of {sha256[:12]} "
            f"({len(content)} bytes)",
        )


def _idx(source: Source, path: Path, content: bytes, shape: tuple[int, ...]) -> Tensor:
    """Reads an IDX file of bytes that must have a certain shape."""
    head = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
    if content[: len(head)] != head:
        raise source.damaged(
            path,
            f"expected it to begin with {head.hex(' ', 4)}, for bytes of shape {shape}; "
            f"got {content[: len(head)].hex(' ', 4) or 'nothing'}",
        )
    expected = len(head) + int(np.prod(shape))
    if len(content) != expected:
        raise source.damaged(path, f"expected {expected} bytes; got {len(content)}")
    pixels = np.frombuffer(content, np.uint8, offset=len(head))
    return torch.from_numpy(pixels.reshape(shape).copy())


def _check_labels(family: Family, path: Path, labels: Tensor) -> None:
    low, high = int(labels.min()), int(labels.max())
    least, most = family.classes[0], family.classes[-1]
    if low < least or high > most:
        raise family.source.damaged(
            path, f"expected labels in {least}..{most}; got some in {low}..{high}"
        )


def _download(family: Family, root: Path) -> None:
    source, loader = family.source, _torchvision(family.loader)
    options = {} if family.split is None else {"split": family.split}
    try:
        with redirect_stdout(io.StringIO()):  # torchvision reports every mirror that fails
            loader(root, download=True, **options)
    except (OSError, RuntimeError, HTTPException) as error:
        raise source.absent(root, first_line(error)) from None
    if missing := source.missing(root):  # it trusts old `processed` files and half of a download
        raise InputError(
            f"torchvision downloaded {source.title} without {', '.join(missing)}: "
            f"delete {(root / source.folder).parent} and run again"
        )


def _torchvision(name: str) -> type:
    try:
        return getattr(importlib.import_module("torchvision.datasets"), name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: operator torchvision::nms ...
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = f"torchvision {version('torchvision')}"
        except PackageNotFoundError:
            found = "no torchvision"
        raise InputError(
            f"torchvision cannot be imported beside torch {torch.__version__} (found {found}: "
            f"{first_line(error)}): install both from one index, as "
            "`pip install --force-reinstall torch torchvision` does"
        ) from error
