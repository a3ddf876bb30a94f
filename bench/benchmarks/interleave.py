"""Timings that are compared are taken in turns, since the load of a machine drifts.

A turn is one call that is not timed, then as many calls as fill TURN seconds, timed as one, with a
synchronise before and after: in use, too, a step follows a step, and a tile of images a tile, in
the memory and the caches that the last one left. A round is one turn of each runner; rounds
repeat. A ratio is the median over rounds of the ratio within a
round, so that what slows a whole round down leaves it alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flowvae.numerics.precision import matrix_products
from flowvae.training.trainer import synchronise

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ["BASELINES", "FLOOR", "OURS", "TURN", "Runner", "Turns", "race"]


OURS, FLOOR = "ours", "floor"
BASELINES = {"training": "tutorial loop", "NLL": "Pythae's get_nll, re-written"}
"""The names of runners; the baselines' by race."""
TURN = 0.15
"""The time of a turn, s, where one call takes less."""
WARMUP, MOST = 3, 2000


class Runner(NamedTuple):
    """What takes part.

    Arguments:
        name: How tables call it.
        call: One call of it.
        images: The images of a call, over all models of a stack; of an NLL, times its samples.
        precision: That of its matrix products; see `flowvae.numerics.precision`.
    """

    name: str
    call: Callable[[], Any]
    images: int
    precision: str = "float32"


class Turns:
    """A runner's turns; calling it makes the timed calls of one.

    Arguments:
        runner: Who.
        device: What is synchronised.
        seconds: The time of a turn, s; with 0 it is one call and nothing is warmed up.
    """

    def __init__(self, runner: Runner, device: torch.device, seconds: float = TURN) -> None:
        self.runner, self.device, self.calls = runner, device, 1
        self._warms = bool(seconds)
        if not seconds:
            return
        start = time.perf_counter()
        for _ in range(WARMUP):
            self.ready()
            if time.perf_counter() - start > 2 * seconds:
                break
        # A first guess by one call, which holds a synchronise; a better one by as many as it says.
        for _ in range(2):
            self.calls = min(MOST, math.ceil(seconds * self.calls / self.timed()))
            if self.calls == 1:
                break

    def __call__(self) -> Any:  # noqa: ANN401
        """Makes the calls of a turn and waits for the device; returns what the last one does."""
        with matrix_products(self.runner.precision, self.device):
            for _ in range(self.calls):
                value = self.runner.call()
            synchronise(self.device)
        return value

    def ready(self) -> None:
        """Makes the call that comes before those that are timed, and waits for the device."""
        if not self._warms:
            return
        with matrix_products(self.runner.precision, self.device):
            self.runner.call()
            synchronise(self.device)

    def timed(self) -> float:
        """Takes a turn; returns what its calls took together, s."""
        self.ready()
        start = time.perf_counter()
        self()
        return time.perf_counter() - start


def race(
    benchmark: BenchmarkFixture,
    ours: Runner,
    others: Sequence[Runner],
    device: torch.device,
    *,
    rounds: int,
) -> Any:  # noqa: ANN401
    """Times `ours` by pytest-benchmark, and in each of its rounds before it the others.

    `benchmark.extra_info` gets the calls of a turn, the images of a call, and for each of the
    others the same and its turns' times, s. With benchmarks disabled all are called once.

    Returns:
        What the last call of `ours` returns.
    """
    seconds = 0.0 if benchmark.disabled else TURN
    mine, *theirs = (Turns(runner, device, seconds) for runner in (ours, *others))
    taken: list[list[float]] = [[] for _ in theirs]

    def the_others() -> None:
        for turns, found in zip(theirs, taken, strict=True):
            found.append(turns.timed())
        mine.ready()

    value = benchmark.pedantic(mine, setup=the_others, rounds=rounds)
    facts = [{"calls": t.calls, "images": t.runner.images} for t in (mine, *theirs)]
    benchmark.extra_info |= facts[0] | {
        "precision": ours.precision,
        "others": {
            turns.runner.name: fact | {"seconds": found}
            for turns, fact, found in zip(theirs, facts[1:], taken, strict=True)
        },
    }
    return value
