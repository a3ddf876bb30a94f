"""Timings in turns, so that a drifting load of the machine affects all runners alike.

A turn is one call that is not timed, then as many calls as fill TURN_SECONDS, timed together, with
a synchronise before and after: in use, too, a step follows a step, with the memory and caches that
the last one left. A round is one turn of each runner; rounds are repeated. A ratio is the median
over rounds of the ratio within a round, so a slow round does not change it.
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

__all__ = ["BASELINES", "FLOOR", "OURS", "TURN_SECONDS", "Runner", "Turns", "race"]


OURS, FLOOR = "ours", "floor"
BASELINES = {"training": "tutorial loop", "NLL": "Pythae's get_nll, re-written"}
"""Names of the runners; those of the baselines by race."""
TURN_SECONDS = 0.15
"""The time of a turn, s; one call if it takes longer."""
WARMUP_CALLS, MAX_CALLS = 3, 2000


class Runner(NamedTuple):
    """A participant of a race.

    Arguments:
        name: Its name in tables.
        call: The call that is timed.
        images: The images of a call, over all models of a stack; for an NLL, times K.
        precision: The precision of its matrix products; see `flowvae.numerics.precision`.
    """

    name: str
    call: Callable[[], Any]
    images: int
    precision: str = "float32"


class Turns:
    """A runner's turns; calling it makes the timed calls of one.

    Arguments:
        runner: The runner.
        device: The device that is synchronised.
        seconds: The time of a turn, s; 0 for one call without warm-up.
    """

    def __init__(
        self, runner: Runner, device: torch.device, seconds: float = TURN_SECONDS
    ) -> None:
        self.runner, self.device, self.calls = runner, device, 1
        self._warms = bool(seconds)
        if not seconds:
            return
        start = time.perf_counter()
        for _ in range(WARMUP_CALLS):
            self.warm_up()
            if time.perf_counter() - start > 2 * seconds:
                break
        # first estimated from one call, which includes a synchronise, then from that many calls
        for _ in range(2):
            self.calls = min(MAX_CALLS, math.ceil(seconds * self.calls / self.time_turn()))
            if self.calls == 1:
                break

    def __call__(self) -> Any:  # noqa: ANN401
        """Makes the calls of a turn and waits for the device; returns the last call's result."""
        with matrix_products(self.runner.precision, self.device):
            for _ in range(self.calls):
                value = self.runner.call()
            synchronise(self.device)
        return value

    def warm_up(self) -> None:
        """Makes the call before those that are timed, and waits for the device."""
        if not self._warms:
            return
        with matrix_products(self.runner.precision, self.device):
            self.runner.call()
            synchronise(self.device)

    def time_turn(self) -> float:
        """Makes a turn; returns the time of its calls together, s."""
        self.warm_up()
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
    """Times `ours` by pytest-benchmark, and the others before it in each of its rounds.

    `benchmark.extra_info` gets the calls of a turn, the images of a call, and for each of the
    others the same and the times of its turns, s. With benchmarks disabled each is called once.

    Returns:
        The result of the last call of `ours`.
    """
    seconds = 0.0 if benchmark.disabled else TURN_SECONDS
    mine, *theirs = (Turns(runner, device, seconds) for runner in (ours, *others))
    times: list[list[float]] = [[] for _ in theirs]

    def time_others() -> None:
        for turns, values in zip(theirs, times, strict=True):
            values.append(turns.time_turn())
        mine.warm_up()

    value = benchmark.pedantic(mine, setup=time_others, rounds=rounds)
    facts = [{"calls": t.calls, "images": t.runner.images} for t in (mine, *theirs)]
    benchmark.extra_info |= facts[0] | {
        "precision": ours.precision,
        "others": {
            turns.runner.name: fact | {"seconds": values}
            for turns, fact, values in zip(theirs, facts[1:], times, strict=True)
        },
    }
    return value
