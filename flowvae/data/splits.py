"""From published images to a data set: hold out the validation images, binarise, hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowvae.data.dataset import DATASETS, Dataset, Rule
from flowvae.data.pixels import draw_binary
from flowvae.errors import InputError
from flowvae.numerics.streams import generator
from flowvae.specs.values import Value, write

__all__ = ["Images", "as_published", "hold_out", "prepare"]


@dataclass(frozen=True)
class Images:
    """Images as they are published: split, but not yet binary.

    Arguments:
        train: The training images as uint8 in 0..levels, (N, H, W).
        valid: The validation images, (N', H, W).
        test: The test images, (N'', H, W).
        labels: The classes of the test images, (N'',); none where they are not known.
        levels: The intensity that stands for probability one.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    labels: Tensor | None = None
    levels: int = 255


def hold_out(
    name: str, train: Tensor, count: int, use: str = "validation"
) -> tuple[Tensor, Tensor]:
    """Splits training images (N, ...) into all but the last `count`, and those."""
    if count >= len(train):
        raise InputError(
            f"{name} has {len(train)} training images: cannot hold out {count} for {use}"
        )
    cut = len(train) - count
    return train[:cut], train[cut:]


def as_published(name: str, valid: int) -> None:
    """Raises for any size of the validation set but the published one, the option's default."""
    published = DATASETS[name].options["valid"]
    if valid != published:
        raise InputError(
            f"{name} is published with its own split, {published} validation images; "
            f"got valid={valid}: leave the option out"
        )


def prepare(name: str, rule: Rule, images: Images, options: Mapping[str, Value]) -> Dataset:
    """Binarises images by a rule.

    Arguments:
        name: The registered name.
        rule: `threshold`; `stochastic`, where training images keep their levels and the others
            are drawn once; or `fixed`, for images in {0, 1}.
        images: The images, split.
        options: The further options that were chosen.
    """
    levels = images.levels
    assert rule != "fixed" or levels == 1

    def once(x: Tensor, part: str) -> Tensor:
        if rule == "threshold":
            return (x >= levels - levels // 2).to(torch.uint8)  # x / levels >= 1/2
        return draw_binary(x, levels, generator(0, f"binarise/{part}")) if levels > 1 else x

    height, width = images.train.shape[1:]
    train, valid, test = (x.flatten(1) for x in (images.train, images.valid, images.test))
    labels = torch.zeros(len(test)) if images.labels is None else images.labels
    parts = {
        "train": once(train, "train") if rule == "threshold" else train,
        "valid": once(valid, "valid"),
        "test": once(test, "test"),
        "labels": labels.to(torch.uint8),
    }
    chosen = ",".join(f"{key}={write(value)}" for key, value in options.items())
    digest = hashlib.sha256(f"{name} {rule} {height}x{width} {levels}".encode())
    for part, tensor in parts.items():
        digest.update(f"{part} {len(tensor)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return Dataset(
        name=name,
        spec=DATASETS.resolve(f"{name}[{chosen},binarise={rule}]"),
        binarise=rule,
        shape=(height, width),
        levels=1 if rule == "threshold" else levels,
        hash=digest.hexdigest()[:16],
        **parts,
    )
