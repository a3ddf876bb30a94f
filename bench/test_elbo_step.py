"""How long does a step take? `pytest bench --benchmark-enable --benchmark-json speed.json`.

For each prior and latent size: the ELBO, the ELBO with its gradients, and the trainer's whole
step; beside them the plain loop of zuko's tutorial with its own loader (`bench/tutorial.py`).
Every call ends with a synchronise, on every device; the number of calls is fixed, and the first
few are warm-up. `python -m bench.speed speed.json` draws the result. No test asserts a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.transforms.functional import to_tensor

from bench import tutorial
from bench.launch import device_name
from flowvae.data import data_dir
from flowvae.precision import DTYPES
from flowvae.streams import generator, global_stream
from flowvae.train import Stack, gradients, optimiser, step, synchronise
from flowvae.trial import Trial
from flowvae.vae import Terms, build

SHAPE = (28, 28)
LATENTS = (2, 16, 64)
WARMUP, ROUNDS = 3, 20


class Pictures(torch.utils.data.Dataset[tuple[Any, int]]):
    """Random binary images that take MNIST's way: one array, one PIL image, one tensor at a time.

    A step's time does not depend on the pixels.
    """

    def __init__(self, count: int = 64 * tutorial.BATCH) -> None:
        draws = torch.randint(2, (count, *SHAPE), generator=generator(0, "benchmark images"))
        self.data = (255 * draws).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(Image.fromarray(self.data[index].numpy())), 0


class Images(NamedTuple):
    """What is trained on: its name, for the loader one by one, and as uint8 in {0, 1}, (N, P)."""

    name: str
    one_by_one: Any
    binary: Tensor


class Trainer:
    """The step of `flowvae.train.fit`, in the pieces that are timed.

    Arguments:
        trial: The model.
        images: The training images as uint8, (N, P), on the device; so is all else.
    """

    def __init__(self, trial: Trial, images: Tensor) -> None:
        self.images, device = images, images.device
        self.stack = Stack([build(trial, SHAPE, images.cpu()).to(device)])
        self.adam = optimiser(self.stack, trial.lr)
        count, dtype = (WARMUP + ROUNDS) * trial.batch, DTYPES[trial.precision]
        order = torch.randint(len(images), (1, count), generator=generator(trial.seed, "order"))
        noise = torch.randn(
            (1, count, trial.latent), generator=generator(trial.seed, "noise"), dtype=dtype
        )
        draws = (drawn.to(device).split(trial.batch, dim=1) for drawn in (order, noise))
        self.batches: Iterator[Any] = itertools.cycle(list(zip(*draws, strict=True)))
        self.sums = torch.zeros(3, 1, dtype=torch.float64, device=device)
        self.draw()

    def draw(self) -> None:
        """Takes the next minibatch: images (S, B, P) and noise (S, B, D)."""
        rows, self.noise = next(self.batches)
        self.x = self.images[rows]

    def forward(self) -> Terms:
        """Returns the bound's terms, each (S, B), nats."""
        return self.stack.terms(self.x, self.noise)

    def backward(self) -> Terms:
        """Returns the terms and leaves the gradients of minus the mean ELBO."""
        return gradients(self.stack, self.adam, self.x, self.noise)

    def step(self) -> Terms:
        """Trains on the next minibatch."""
        self.draw()
        terms = step(self.stack, self.adam, self.x, self.noise)
        self.sums += torch.stack(terms).detach().sum(dim=-1)
        return terms


WHAT = {
    "forward": "ELBO forward",
    "backward": "forward + backward",
    "step": "optimiser step",
    "tutorial": "tutorial loop",
}
CASES = [  # the baseline comes right after what it is compared with: a machine's load drifts
    pytest.param(prior, latent, what, id=f"{prior}-z{latent}-{what}")
    for prior, latent, what in itertools.product(tutorial.PRIORS, LATENTS, WHAT)
    if what != "tutorial" or latent == tutorial.LATENT
]


@pytest.fixture(scope="module")
def images() -> Images:
    """MNIST where it is found (it is not downloaded), else random images."""
    try:
        found = MNIST(data_dir(), transform=to_tensor)
    except RuntimeError:
        found = None
    source = found or Pictures()
    binary = (source.data >= 128).flatten(1).to(torch.uint8)
    return Images("mnist" if found else "random images", source, binary)


def ours(prior: str, latent: int, what: str, images: Tensor) -> Callable[[], Tensor]:
    """Returns one piece of the trainer's step, to be called again and again."""
    trial = Trial(prior=prior, latent=latent, dataset="mnist", batch=tutorial.BATCH)
    trainer = Trainer(trial, images)
    piece = {"forward": trainer.forward, "backward": trainer.backward, "step": trainer.step}[what]
    return lambda: piece().elbo


def theirs(prior: str, latent: int, images: Any, device: torch.device) -> Callable[[], Tensor]:  # noqa: ANN401
    """Returns the tutorial's step, its share of the loader included."""
    loss = tutorial.model(prior, latent).to(device)
    steps = tutorial.steps(loss, tutorial.loader(images), device)
    return lambda: next(steps)


@pytest.mark.parametrize(("prior", "latent", "what"), CASES)
def test_elbo_step(
    benchmark: BenchmarkFixture,
    images: Images,
    device: torch.device,
    prior: str,
    latent: int,
    what: str,
) -> None:
    """Times one case; what compares with our whole step stands in its group."""
    compared = "step" if what == "tutorial" else what
    benchmark.group = f"{WHAT[compared]}, D = {latent}"
    benchmark.extra_info |= {
        "prior": prior,
        "latent": latent,
        "what": WHAT[what],
        "batch": tutorial.BATCH,
        "data": images.name,
        "device": device_name(str(device)),
    }
    with global_stream(0, "benchmark"):  # the tutorial draws from the global generator
        if what == "tutorial":
            target = theirs(prior, latent, images.one_by_one, device)
        else:
            target = ours(prior, latent, what, images.binary.to(device))

        def synchronised() -> Tensor:
            value = target()
            synchronise(device)
            return value

        value = benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=WARMUP)
    assert value.isfinite().all()
    if benchmark.stats is not None:  # with --benchmark-disable it ran once, untimed
        benchmark.extra_info["images_per_second"] = tutorial.BATCH / benchmark.stats.stats.median
