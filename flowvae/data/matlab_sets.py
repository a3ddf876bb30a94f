"""Data sets published as MATLAB files: images as columns stacked, turned upright here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowvae.data.dataset import DATASETS, Dataset, Fixed, Grey
from flowvae.data.files import Source
from flowvae.data.matlab_format import read_arrays
from flowvae.data.pixels import first, is_binary, quantise
from flowvae.data.splits import Images, as_published, hold_out, prepare
from flowvae.errors import InputError
from flowvae.specs.values import Natural

__all__ = ["caltech101_silhouettes", "omniglot"]


OMNIGLOT = Source(
    "OMNIGLOT at 28x28",
    "omniglot",
    ("chardata.mat",),
    "https://github.com/yburda/iwae/tree/master/datasets/OMNIGLOT",
)
OMNIGLOT_SHAPES = {"data": (784, 24_345), "testdata": (784, 8_070), "testtarget": (50, 8_070)}
SILHOUETTES = Source(
    "CalTech 101 Silhouettes",
    "caltech101_silhouettes",
    ("caltech101_silhouettes_28_split1.mat",),
    "https://people.cs.umass.edu/~marlin/data/caltech101_silhouettes_28_split1.mat",
)
SILHOUETTES_SHAPES = {
    "train_data": (4_100, 784),
    "val_data": (2_264, 784),
    "test_data": (2_307, 784),
    "test_labels": (2_307, 1),
}


@DATASETS.register("omniglot", source="Burda et al., 2015, after Lake et al., 2015, MIT")
def omniglot(root: Path, *, valid: Natural = 1_345, binarise: Grey = "stochastic") -> Dataset:
    """Characters of 50 alphabets, 24,345 training and 8,070 test images of 28x28 in grey.

    This is the version of the importance-weighted autoencoder's paper, not the larger set of
    105x105 pixels that torchvision has. The training images are shuffled as in that paper's code,
    by numpy's RandomState(123), and the last `valid` held out. Intensities are rounded to 256
    levels. Labels are the alphabets, 0 to 49. Nothing is downloaded.

    References:
        Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2015),
        https://arxiv.org/abs/1509.00519
        Human-level Concept Learning through Probabilistic Program Induction (Lake et al., 2015),
        https://github.com/brendenlake/omniglot

    Arguments:
        root: The folder of the data sets; `chardata.mat` lies in `omniglot` below it.
        valid: The number of images held out for validation.
        binarise: How grey becomes black and white; the literature draws, `stochastic`.

    Raises:
        InputError: The file is absent or damaged.
    """
    path, arrays = _load(OMNIGLOT, OMNIGLOT_SHAPES, root)
    try:
        grey = {key: quantise(arrays[key], f"'{key}'") for key in ("data", "testdata")}
    except InputError as error:
        raise OMNIGLOT.damaged(path, str(error)) from None
    train, test = (_upright(grey[key].T) for key in ("data", "testdata"))
    order = torch.from_numpy(np.random.RandomState(123).permutation(len(train)))
    if not (is_binary(arrays["testtarget"]).all() and (arrays["testtarget"].sum(0) == 1).all()):
        raise OMNIGLOT.damaged(path, "expected a single 1 in each column of 'testtarget'")
    labels = torch.from_numpy(arrays["testtarget"].argmax(axis=0))
    split = Images(*hold_out("omniglot", train[order], valid), test, labels)
    return prepare("omniglot", binarise, split, {"valid": valid})


@DATASETS.register("caltech101-silhouettes", source="Marlin et al., 2010")
def caltech101_silhouettes(
    root: Path, *, valid: Natural = 2_264, binarise: Fixed = "fixed"
) -> Dataset:
    """Filled outlines of objects, 4,100 training, 2,264 validation and 2,307 test images of 28x28.

    The file's own split (`split1`). It draws the object as 0 on a ground of 1; as in the code of
    the VampPrior's paper x is one minus that, so that the object is 1. Labels are the object's
    classes, 1 to 101. Nothing is downloaded.

    References:
        Inductive Principles for Restricted Boltzmann Machine Learning (Marlin, Swersky, Chen and
        de Freitas, 2010), https://people.cs.umass.edu/~marlin/data.shtml
        VAE with a VampPrior (Tomczak and Welling, 2017), https://arxiv.org/abs/1705.07120

    Arguments:
        root: The folder of the data sets; `caltech101_silhouettes_28_split1.mat` lies in
            `caltech101_silhouettes` below it.
        valid: The number of validation images, which is published.
        binarise: `fixed`: the pixels are 0 and 1 as published.

    Raises:
        InputError: The file is absent or damaged, or `valid` is not the published number.
    """
    as_published("caltech101-silhouettes", valid)
    path, arrays = _load(SILHOUETTES, SILHOUETTES_SHAPES, root)
    for key in ("train_data", "val_data", "test_data"):
        bad = ~is_binary(arrays[key])
        if bad.any():
            found = f"'{key}' must hold only 0 and 1; got {first(bad, arrays[key])}"
            raise SILHOUETTES.damaged(path, found)
    train, held, test = (
        _upright(1 - arrays[key].astype(np.uint8))
        for key in ("train_data", "val_data", "test_data")
    )
    if not np.isin(arrays["test_labels"], range(1, 102)).all():
        raise SILHOUETTES.damaged(path, "expected 'test_labels' in 1..101")
    labels = torch.from_numpy(arrays["test_labels"].ravel().astype(np.uint8))
    split = Images(train, held, test, labels, levels=1)
    return prepare("caltech101-silhouettes", binarise, split, {"valid": valid})


def _load(
    source: Source, shapes: Mapping[str, tuple[int, ...]], root: Path
) -> tuple[Path, dict[str, NDArray]]:
    """Returns a file's path and its arrays, after a check of their shapes."""
    if source.missing(root):
        raise source.absent(root)
    path = root / source.folder / source.files[0]
    most = 8 * max(map(math.prod, shapes.values()))
    try:
        arrays = read_arrays(source.read(path), shapes, most)
    except ValueError as error:
        raise source.damaged(path, str(error)) from None
    for key, shape in shapes.items():
        found = arrays[key].shape if key in arrays else "nothing"
        if found != shape:
            raise source.damaged(path, f"expected '{key}' of shape {shape}; got {found}")
    return path, arrays


def _upright(columns: NDArray[np.uint8]) -> Tensor:
    """Turns images whose columns are stacked, (N, 784), into rows, (N, 28, 28)."""
    return torch.from_numpy(columns.reshape(-1, 28, 28)).mT.contiguous()
