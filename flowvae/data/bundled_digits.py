"""Images that come with a library: no download, no folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flowvae.data.dataset import DATASETS, Dataset, Grey
from flowvae.data.splits import Images, hold_out, prepare
from flowvae.specs.values import Natural

__all__ = ["digits"]


@DATASETS.register("digits", source="scikit-learn's copy of Alpaydin and Kaynak, 1998, CC BY 4.0")
def digits(root: Path, *, valid: Natural = 237, binarise: Grey = "threshold") -> Dataset:
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
    split = Images(*hold_out("digits", train, valid), test, labels, levels=16)
    return prepare("digits", binarise, split, {"valid": valid})
