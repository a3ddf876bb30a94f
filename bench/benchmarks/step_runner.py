"""Our training step in the pieces that the benchmarks time, and the images they train on.

Only `StepRunner` knows how `flowvae.training.trainer` takes a step
(`flowvae/training/optimiser_steps.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.transforms.functional import to_tensor

from bench.benchmarks import tutorial_loop
from flowvae.data import data_dir
from flowvae.models.vae import build
from flowvae.numerics.precision import DTYPES, matrix_products
from flowvae.numerics.streams import generator
from flowvae.training.optimiser_steps import EAGER_STEPS, Epoch, Recipe, Steps
from flowvae.training.stack import Stack
from flowvae.trial import Trial

__all__ = ["SHAPE", "RandomImages", "StepRunner", "TrainingImages", "find_images", "random_images"]


SHAPE = (28, 28)
DRAWN_BATCHES = 64
"""Minibatches that are drawn beforehand and used in a cycle."""


class RandomImages(torch.utils.data.Dataset[tuple[Any, int]]):
    """Random binary images that are loaded as MNIST is: array, PIL image, tensor, one by one.

    A step's time does not depend on the pixels.
    """

    def __init__(self, count: int = 64 * tutorial_loop.BATCH) -> None:
        self.data = 255 * random_images(count).view(-1, *SHAPE)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(Image.fromarray(self.data[index].numpy())), 0


class TrainingImages(NamedTuple):
    """Training images.

    Arguments:
        name: The name of the data.
        one_by_one: The data set of the tutorial's loader.
        binary: The images as uint8 in {0, 1}, (N, P).
    """

    name: str
    one_by_one: Any
    binary: Tensor


def random_images(count: int) -> Tensor:
    """Returns random binary images as uint8, (count, P)."""
    shape = (count, SHAPE[0] * SHAPE[1])
    draws = torch.randint(2, shape, generator=generator(0, "benchmark images"))
    return draws.to(torch.uint8)


def find_images() -> TrainingImages:
    """Returns MNIST if it is in the data folder, else random images."""
    try:
        mnist = MNIST(data_dir(), transform=to_tensor)
    except RuntimeError:
        mnist = None
    source = mnist or RandomImages()
    binary = (source.data >= 128).flatten(1).to(torch.uint8)
    return TrainingImages("mnist" if mnist else "random images", source, binary)


class StepRunner:
    """The step of `flowvae.training.trainer.fit`, in the pieces that are timed.

    A step does not include drawing an epoch, which `fit` does ahead in threads, and uploading it.
    Call it within `matrix_products` of the trials' precision, as `fit` does; a CUDA graph keeps
    the precision in which it was recorded.

    Arguments:
        trials: The stack: trials that differ only in the seed.
        images: The training images as uint8, (N, P), on the device to train on.
    """

    def __init__(self, trials: Sequence[Trial], images: Tensor) -> None:
        device, recipe = images.device, trials[0]
        self.batch, count = recipe.batch, DRAWN_BATCHES * recipe.batch
        self.stack = Stack([build(trial, SHAPE, images.cpu()).to(device) for trial in trials])
        self.steps = Steps(self.stack, images, Recipe(lr=recipe.lr))
        self.draws = []
        for trial in trials:
            order, noise = (generator(trial.seed, purpose) for purpose in ("order", "noise"))
            shape, dtype = (count, trial.latent), DTYPES[trial.precision]
            own = (count, self.stack.draws, trial.latent)
            drawn = Epoch(
                torch.randint(len(images), (count,), generator=order),
                torch.randn(shape, generator=noise, dtype=dtype),
                proposals=torch.randn(own, generator=noise, dtype=dtype) if own[1] else None,
            )
            self.draws.append(drawn.map(lambda tensor: tensor.to(device)))
        self.steps.load(self.draws)
        self.minibatch = self.steps.batch(self.batch)
        self._remaining = 0
        if images.is_cuda:  # record the step beforehand
            with matrix_products(recipe.precision, device):
                for _ in range(EAGER_STEPS + 1):
                    self.step()

    def forward(self) -> Tensor:
        """Returns the ELBO of one minibatch, (S, B), nats."""
        return self.stack.terms(*self.minibatch).elbo

    def backward(self) -> Tensor:
        """Returns the same and computes the gradients of minus its means."""
        return self.steps.gradients(*self.minibatch).elbo

    def step(self) -> Tensor:
        """Trains on the next minibatch.

        Returns:
            The sums over the images so far of ELBO, rate and distortion, (3, S), nats.
        """
        with self.steps.aside():
            if not self._remaining:
                self.steps.load(self.draws)
                self._remaining = DRAWN_BATCHES
            self.steps.take(self.batch)
        self._remaining -= 1
        return self.steps.sums
