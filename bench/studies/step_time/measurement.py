"""By what is a training step bound? A step at one setting, timed and attributed.

Our step, the floor's matrix products and the floor's Adam (`bench/benchmarks/floor.py`) are timed
in turns.

A step's time is set beside three others, and it is bound by the largest:

    arithmetic   the time of the floor's matrix products
    launches     what it costs to start the step's operations, one by one
                 CPU:   operators that the profiler counts in a step, times the time of one
                 CUDA:  the same for the launches of the host, or the kernels of a step times
                        the time of one in a replayed graph, whichever is more: they overlap
    memory       Adam, or the step less arithmetic and launches, whichever is more: what is left
                 is elementwise work, whose time is that of the numbers it moves

The time of one operator is that of a chain of multiplications of a single number, forward and
backward, over the operators that the same profiler counts in it; that of one kernel is taken from
a graph of such multiplications. Both are attributions, not measurements of a cause: on CUDA the
three may overlap, and "memory" holds all that the other two do not explain.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

from bench.benchmarks import floor
from bench.benchmarks.interleave import OURS, TURN, Runner, Turns
from bench.benchmarks.step_runner import SHAPE, Trainer
from bench.execution.profiling import profiler
from flowvae.models.vae import build
from flowvae.numerics.precision import matrix_products
from flowvae.training.stack import stackable
from flowvae.training.trainer import synchronise
from flowvae.trial import Precision, Trial

__all__ = [
    "BOUNDS",
    "CENTRE",
    "LOST",
    "MEASURED",
    "Point",
    "bound",
    "measure",
    "operations",
    "points",
    "unit_costs",
]


CENTRE = {"latent": 16, "batch": 256, "stack": 1}
"""The tutorial's setting."""
BOUNDS = ("launches", "memory", "arithmetic")
MEASURED, LOST, UNSTACKABLE = "measured", "out of memory", "cannot be stacked"
LEAST_ROUNDS, MOST_ROUNDS = 3, 20
CHAIN = 200


@dataclass(frozen=True)
class Point:
    """A setting; sizes are counts."""

    prior: str
    latent: int = CENTRE["latent"]
    batch: int = CENTRE["batch"]
    stack: int = CENTRE["stack"]


def points(
    priors: Sequence[str], latents: Sequence[int], batches: Sequence[int], stacks: Sequence[int]
) -> list[Point]:
    """Returns the points of a sweep, each once, one axis varied at a time.

    Example:
        >>> [(p.latent, p.batch, p.stack) for p in points(["maf"], [2, 16], [256, 1024], [1])]
        [(2, 256, 1), (16, 256, 1), (16, 1024, 1)]
    """
    axes = {"latent": latents, "batch": batches, "stack": stacks}
    wanted = [
        Point(prior, **{**CENTRE, axis: value})
        for axis, values in axes.items()
        for value in values
        for prior in priors
    ]
    return list(dict.fromkeys(wanted))


def bound(step: float, products: float, adam: float, launches: float) -> tuple[str, float]:
    """Says by what a step is bound; see the module.

    Arguments:
        step: The time of our step, s.
        products: The time of its matrix products, s.
        adam: The time of its Adam, s.
        launches: The time to start its operations, s.

    Returns:
        One of BOUNDS, and the time of memory, s.

    Example:
        >>> bound(10.0, 6.0, 1.0, 1.0)
        ('arithmetic', 3.0)
        >>> bound(10.0, 1.0, 1.0, 9.5)
        ('launches', 1.0)
    """
    memory = max(adam, step - products - launches)
    times = dict(zip(BOUNDS, (launches, memory, products), strict=True))
    return max(times, key=lambda name: times[name]), memory


def operations(call: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Counts what one call starts: from the host, and as kernels on a CUDA device.

    Returns:
        The operators that call no other (on CUDA: the launches, copies and graphs that the host
        hands over), and the kernels that ran (on a CPU: 0).
    """
    with profiler(device) as seen:
        call()
        synchronise(device)
    events = seen.events() or []
    if device.type != "cuda":
        return sum(e.name.startswith("aten::") and not e.cpu_children for e in events), 0
    handed = (
        "cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync",
        "cudaMemsetAsync",
    )  # fmt: skip
    kernels = sum(e.device_type == DeviceType.CUDA and not e.is_user_annotation for e in events)
    return sum(e.name.startswith(handed) for e in events), kernels


def unit_costs(device: torch.device) -> tuple[float, float]:
    """Measures what it costs to start one operation from the host, and one kernel of a graph, s.

    The second is 0 on a CPU.
    """
    number = torch.ones((), device=device, requires_grad=True)

    def chain() -> None:
        value = number
        for _ in range(CHAIN):
            value = value * number
        value.backward()
        number.grad = None

    def each(call: Callable[[], object], count: int) -> float:
        turns = Turns(Runner("chain", call, 1), device)
        return min(turns.timed() for _ in range(5)) / turns.calls / count

    host = each(chain, operations(chain, device)[0])
    if device.type != "cuda":
        return host, 0.0
    value = torch.ones((), device=device)

    def kernels() -> None:
        for _ in range(CHAIN):
            value.mul_(1.0)

    return host, each(floor.replayed(kernels, "float32", device), CHAIN)


def measure(
    point: Point,
    images: torch.Tensor,
    costs: tuple[float, float],
    *,
    seconds: float,
    precision: Precision = "float32",
    net: str = "mlp",
) -> dict[str, Any]:
    """Times one point.

    Arguments:
        point: The setting.
        images: Images as uint8 in {0, 1}, (N, P), on the device.
        costs: What `unit_costs` returns.
        seconds: How long to go on, s, once each runner is warm; three rounds at least.
        precision: That of training; see `flowvae.numerics.precision`.
        net: The bodies; see `flowvae.nets`.

    Returns:
        What a row of the table holds; of a point that was lost, its `status` alone.
    """

    def trial(seed: int) -> Trial:
        return Trial(
            prior=point.prior, latent=point.latent, dataset="mnist", batch=point.batch,
            precision=precision, net=net, seed=seed,
        )  # fmt: skip

    if point.stack > 1 and not stackable(trial(0)):
        return {"status": UNSTACKABLE}
    try:
        return _timed([trial(seed) for seed in range(point.stack)], images, costs, seconds)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    finally:
        gc.collect()
        if images.is_cuda:
            torch.cuda.empty_cache()
    return {"status": LOST}


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()  # the CPU's allocator raises a plain RuntimeError
    return "not enough memory" in told or "can't allocate memory" in told


def _timed(
    trials: Sequence[Trial], images: torch.Tensor, costs: tuple[float, float], seconds: float
) -> dict[str, Any]:
    recipe, size, device = trials[0], len(trials), images.device
    precision, count = recipe.precision, size * recipe.batch
    step = Trainer(trials, images).step
    vae = build(recipe, SHAPE, images.cpu())
    products = floor.training_products(
        vae, recipe.batch, members=size, precision=precision, device=device
    )
    runners = {
        "step": Runner(OURS, step, count, precision),
        "products": Runner("products", products, count, precision),
        "adam": Runner("Adam", floor.adam(vae, members=size, device=device), count),
    }
    turn = min(TURN, seconds / (2 * len(runners) * LEAST_ROUNDS))
    turns = {name: Turns(runner, device, turn) for name, runner in runners.items()}
    taken: dict[str, list[float]] = {name: [] for name in runners}
    start = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name, each in turns.items():
            taken[name].append(each.timed() / each.calls)
    with matrix_products(precision, device):
        host, kernels = operations(step, device)
    found = {name: statistics.median(times) for name, times in taken.items()}
    launches = max(host * costs[0], kernels * costs[1])
    by, memory = bound(found["step"], found["products"], found["adam"], launches)
    least = found["products"] + found["adam"]
    shares = [(p + a) / s for s, p, a in zip(*taken.values(), strict=True)]
    return {
        "status": MEASURED,
        "bound": by,
        "images_per_second": count / found["step"],
        "images_per_second_per_model": recipe.batch / found["step"],
        "floor_images_per_second": count / least,
        "floor_share": statistics.median(shares),
        "step_seconds": found["step"],
        "fastest_step_seconds": min(taken["step"]),
        "slowest_step_seconds": max(taken["step"]),
        "products_seconds": found["products"],
        "adam_seconds": found["adam"],
        "memory_seconds": memory,
        "launch_seconds": launches,
        "launches": host,
        "kernels": kernels,
        "gflop": size * floor.training_flops(vae, recipe.batch) / 1e9,
        "rounds": len(taken["step"]),
    }
