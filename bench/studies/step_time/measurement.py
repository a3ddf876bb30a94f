"""Times a training step at one setting, and finds what bounds it.

Our step, the floor's matrix products and the floor's Adam (`bench/benchmarks/floor.py`) are timed
in turns. The step's time is compared with three others, and the largest bounds it:

    arithmetic   the time of the floor's matrix products
    launches     the time to start the step's operations, one by one
                 CPU:   the operators that the profiler counts in a step, times the time of one
                 CUDA:  the larger of two, since they overlap: the launches of the host, and the
                        kernels of a step times the time of one in a replayed graph
    memory       the larger of Adam's time and the step's time less arithmetic and launches: the
                 rest is elementwise work, whose time is that of the numbers it moves

The time of one operator is taken from a chain of multiplications of a single number, forward and
backward, divided by the operators that the same profiler counts in it; that of one kernel from a
graph of such multiplications. These are attributions, not measurements of a cause: on CUDA the
three may overlap, and "memory" includes all that the other two do not explain.
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
from bench.benchmarks.interleave import OURS, TURN_SECONDS, Runner, Turns
from bench.benchmarks.step_runner import SHAPE, StepRunner
from bench.execution.profiling import profiler
from flowvae.models.vae import build
from flowvae.numerics.precision import matrix_products
from flowvae.training.stack import stackable
from flowvae.training.trainer import synchronise
from flowvae.trial import Precision, Trial

__all__ = [
    "CENTRE_SETTING",
    "LIMITS",
    "MEASURED",
    "OUT_OF_MEMORY",
    "Point",
    "count_operations",
    "find_bound",
    "measure_point",
    "measure_unit_costs",
    "sweep_points",
]


CENTRE_SETTING = {"latent": 16, "batch": 256, "stack": 1}
"""The tutorial's setting."""
LIMITS = ("launches", "memory", "arithmetic")
MEASURED, OUT_OF_MEMORY, UNSTACKABLE = "measured", "out of memory", "cannot be stacked"
MIN_ROUNDS, MAX_ROUNDS = 3, 20
CHAIN_LENGTH = 200


@dataclass(frozen=True)
class Point:
    """A setting of the study."""

    prior: str
    latent: int = CENTRE_SETTING["latent"]
    batch: int = CENTRE_SETTING["batch"]
    stack: int = CENTRE_SETTING["stack"]


def sweep_points(
    priors: Sequence[str], latents: Sequence[int], batches: Sequence[int], stacks: Sequence[int]
) -> list[Point]:
    """Returns the points of the study, each once, with one axis varied at a time.

    Example:
        >>> points = sweep_points(["maf"], [2, 16], [256, 1024], [1])
        >>> [(point.latent, point.batch, point.stack) for point in points]
        [(2, 256, 1), (16, 256, 1), (16, 1024, 1)]
    """
    axes = {"latent": latents, "batch": batches, "stack": stacks}
    points = [
        Point(prior, **{**CENTRE_SETTING, axis: value})
        for axis, values in axes.items()
        for value in values
        for prior in priors
    ]
    return list(dict.fromkeys(points))


def find_bound(step: float, products: float, adam: float, launches: float) -> tuple[str, float]:
    """Returns what bounds a step; see the module.

    Arguments:
        step: The time of our step, s.
        products: The time of its matrix products, s.
        adam: The time of its Adam, s.
        launches: The time to launch its operations, s.

    Returns:
        One of LIMITS, and the time of memory, s.

    Example:
        >>> find_bound(10.0, 6.0, 1.0, 1.0)
        ('arithmetic', 3.0)
        >>> find_bound(10.0, 1.0, 1.0, 9.5)
        ('launches', 1.0)
    """
    memory = max(adam, step - products - launches)
    times = dict(zip(LIMITS, (launches, memory, products), strict=True))
    return max(times, key=lambda name: times[name]), memory


def count_operations(call: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Counts the operations of one call: from the host, and as kernels on a CUDA device.

    Returns:
        The operators that call no other (on CUDA: launches, copies and graphs started by the
        host), and the kernels that ran (on a CPU: 0).
    """
    with profiler(device) as seen:
        call()
        synchronise(device)
    events = seen.events() or []
    if device.type != "cuda":
        return sum(e.name.startswith("aten::") and not e.cpu_children for e in events), 0
    launches = (
        "cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync",
        "cudaMemsetAsync",
    )  # fmt: skip
    kernels = sum(e.device_type == DeviceType.CUDA and not e.is_user_annotation for e in events)
    return sum(e.name.startswith(launches) for e in events), kernels


def measure_unit_costs(device: torch.device) -> tuple[float, float]:
    """Measures the time to launch one operation from the host, and one kernel of a graph, s.

    The second is 0 on a CPU.
    """
    number = torch.ones((), device=device, requires_grad=True)

    def chain() -> None:
        value = number
        for _ in range(CHAIN_LENGTH):
            value = value * number
        value.backward()
        number.grad = None

    def time_of_one(call: Callable[[], object], count: int) -> float:
        turns = Turns(Runner("chain", call, 1), device)
        return min(turns.time_turn() for _ in range(5)) / turns.calls / count

    host = time_of_one(chain, count_operations(chain, device)[0])
    if device.type != "cuda":
        return host, 0.0
    value = torch.ones((), device=device)

    def kernels() -> None:
        for _ in range(CHAIN_LENGTH):
            value.mul_(1.0)

    return host, time_of_one(floor.make_replayed(kernels, "float32", device), CHAIN_LENGTH)


def measure_point(
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
        costs: The times of `measure_unit_costs`, s.
        seconds: The time to measure, s, after the warm-up; at least three rounds are measured.
        precision: The precision of training; see `flowvae.numerics.precision`.
        net: Encoder and decoder; see `flowvae.nets`.

    Returns:
        The columns of the table; only `status` for a point that does not fit or cannot be stacked.
    """

    def trial(seed: int) -> Trial:
        return Trial(
            prior=point.prior, latent=point.latent, dataset="mnist", batch=point.batch,
            precision=precision, net=net, seed=seed,
        )  # fmt: skip

    if point.stack > 1 and not stackable(trial(0)):
        return {"status": UNSTACKABLE}
    try:
        return _time_point([trial(seed) for seed in range(point.stack)], images, costs, seconds)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    finally:
        gc.collect()
        if images.is_cuda:
            torch.cuda.empty_cache()
    return {"status": OUT_OF_MEMORY}


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()  # the CPU's allocator raises a plain RuntimeError
    return "not enough memory" in message or "can't allocate memory" in message


def _time_point(
    trials: Sequence[Trial], images: torch.Tensor, costs: tuple[float, float], seconds: float
) -> dict[str, Any]:
    recipe, size, device = trials[0], len(trials), images.device
    precision, count = recipe.precision, size * recipe.batch
    step = StepRunner(trials, images).step
    vae = build(recipe, SHAPE, images.cpu())
    products = floor.make_training_products(
        vae, recipe.batch, members=size, precision=precision, device=device
    )
    runners = {
        "step": Runner(OURS, step, count, precision),
        "products": Runner("products", products, count, precision),
        "adam": Runner("Adam", floor.make_adam(vae, members=size, device=device), count),
    }
    turn = min(TURN_SECONDS, seconds / (2 * len(runners) * MIN_ROUNDS))
    turns = {name: Turns(runner, device, turn) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    start = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name, runner_turns in turns.items():
            times[name].append(runner_turns.time_turn() / runner_turns.calls)
    with matrix_products(precision, device):
        host, kernels = count_operations(step, device)
    median = {name: statistics.median(values) for name, values in times.items()}
    launches = max(host * costs[0], kernels * costs[1])
    bound, memory = find_bound(median["step"], median["products"], median["adam"], launches)
    least = median["products"] + median["adam"]
    shares = [(p + a) / s for s, p, a in zip(*times.values(), strict=True)]
    return {
        "status": MEASURED,
        "bound": bound,
        "images_per_second": count / median["step"],
        "images_per_second_per_model": recipe.batch / median["step"],
        "floor_images_per_second": count / least,
        "floor_share": statistics.median(shares),
        "step_seconds": median["step"],
        "fastest_step_seconds": min(times["step"]),
        "slowest_step_seconds": max(times["step"]),
        "products_seconds": median["products"],
        "adam_seconds": median["adam"],
        "memory_seconds": memory,
        "launch_seconds": launches,
        "launches": host,
        "kernels": kernels,
        "gflop": size * floor.training_flops(vae, recipe.batch) / 1e9,
        "rounds": len(times["step"]),
    }
