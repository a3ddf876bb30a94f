"""Where is a training step bound, and by what? `python -m bench.sweep [FLAGS]`.

Throughput of our step by prior and by latent size, batch and stack, one of the three varied at a
time around the tutorial's setting (D = 16, batch 256, one model). At each point our step, the
floor's matrix products and the floor's Adam (`bench/floor.py`) are timed in turns.

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

A point that does not fit into memory is recorded as such. (On a CPU the system may end the process
first: what was measured until then stands in the table, which is written point by point.)
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowvae.errors import InputError
from flowvae.options import Count, Positive, read
from flowvae.registry import split

from .command import COMPLETE, RESULTS, Parser, guarded, terminal

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure
    from rich.table import Table

    from flowvae.trial import Precision

__all__ = ["BOUNDS", "Point", "bound", "draw_sweep", "main", "measure", "operations", "points"]

CENTRE = {"latent": 16, "batch": 256, "stack": 1}
AXES = {"latent": "latent size D", "batch": "batch", "stack": "stack, models"}
BOUNDS = ("launches", "memory", "arithmetic")
MARKS = {"launches": "^", "memory": "s", "arithmetic": "o"}
LEAST_ROUNDS, MOST_ROUNDS = 3, 20
CHAIN = 200
MEASURED, LOST, UNSTACKABLE = "measured", "out of memory", "cannot be stacked"


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
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from flowvae.train import synchronise

    cuda = device.type == "cuda"
    if not cuda:  # torch's recorder tells, as an error, that there is no GPU
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as seen:
        call()
        synchronise(device)
    events = seen.events() or []
    if not cuda:
        return sum(e.name.startswith("aten::") and not e.cpu_children for e in events), 0
    handed = (
        "cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync",
        "cudaMemsetAsync",
    )  # fmt: skip
    kernels = sum(e.device_type == DeviceType.CUDA for e in events)
    return sum(e.name.startswith(handed) for e in events), kernels


def unit_costs(device: torch.device) -> tuple[float, float]:
    """Measures what it costs to start one operation from the host, and one kernel of a graph, s.

    The second is 0 on a CPU.
    """
    import torch

    from .race import Runner, Turns

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
    value, graph = torch.ones((), device=device), torch.cuda.CUDAGraph()
    value.mul_(1.0)
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        for _ in range(CHAIN):
            value.mul_(1.0)
    return host, each(graph.replay, CHAIN)


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
        precision: That of training; see `flowvae.precision`.
        net: The bodies; see `flowvae.nets`.

    Returns:
        What a row of the table holds; of a point that was lost, its `status` alone.
    """
    import torch

    from flowvae.stack import stackable
    from flowvae.trial import Trial

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
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()  # the CPU's allocator raises a plain RuntimeError
    return "not enough memory" in told or "can't allocate memory" in told


def _timed(
    trials: Sequence[Any], images: torch.Tensor, costs: tuple[float, float], seconds: float
) -> dict[str, Any]:
    from flowvae.precision import matrix_products
    from flowvae.vae import build

    from . import floor
    from .race import TURN, Runner, Turns
    from .trainer import SHAPE, Trainer

    recipe, size, device = trials[0], len(trials), images.device
    precision, count = recipe.precision, size * recipe.batch
    step = Trainer(trials, images).step
    vae = build(recipe, SHAPE, images.cpu())
    products = floor.training_products(
        vae, recipe.batch, members=size, precision=precision, device=device
    )
    runners = {
        "step": Runner("ours", step, count, precision),
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


def _table(found: pd.DataFrame) -> Table:
    from rich import box
    from rich.table import Table

    shown = Table(title="Our step", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("prior", "D", "batch", "stack", "images/s", "per model", "ms a step"):
        shown.add_column(name, justify="left" if name == "prior" else "right", no_wrap=True)
    for name in ("products", "Adam", "launches", "of floor"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("bound by", no_wrap=True)
    for _, row in found.iterrows():
        where = [row["prior"].replace("[", "\\["), *(str(row[axis]) for axis in CENTRE)]
        if row["status"] != MEASURED:
            shown.add_row(*where, *[""] * 7, row["status"])
            continue
        parts = ("step_seconds", "products_seconds", "adam_seconds", "launch_seconds")
        shown.add_row(
            *where,
            f"{row['images_per_second']:,.0f}",
            f"{row['images_per_second_per_model']:,.0f}",
            *(f"{1e3 * row[part]:.3g}" for part in parts),
            f"{row['floor_share']:.0%}",
            row["bound"],
        )
    return shown


def draw_sweep(found: pd.DataFrame) -> Figure:
    """Draw images a second by latent size, batch and stack, a line a prior, the floor dashed.

    A marker's shape says by what the step is bound; a cross at the top marks a point that was
    lost.

    Arguments:
        found: The table that the command writes.
    """
    from matplotlib.lines import Line2D

    from .look import DOT, SOFT, NoDataError, crosses, panels, styles, theme

    measured = found[found["status"] == MEASURED]
    if not len(measured):
        raise NoDataError("Expected at least one point that was measured; got none.")
    look = styles(list(dict.fromkeys(found["prior"])))
    centre = ", ".join(f"{axis} {value}" for axis, value in CENTRE.items())
    first = measured.iloc[0]
    note = DOT.join([
        f"one axis varied at a time around {centre}",
        f"random images, net {first['net']}, {first['precision']}",
        f"median of {measured['rounds'].min()} rounds or more, step and floor in turns",
        "images of all models of a stack count",
        "floor: dense matrix products and Adam", str(first["device"]),
    ])  # fmt: skip
    axes = [axis for axis in AXES if _along(found, axis)[axis].nunique() > 1] or ["latent"]
    with theme():
        figure, cells = panels(len(axes), note, size=(2.3, 2.5), extra=1.15, sharey=True)
        for ax, axis in zip(cells, axes, strict=True):
            _sweep_panel(ax, _along(found, axis), axis, look)
        cells[0].set_ylabel("training images per second")
        handles = [Line2D([], [], color=s.colour, label=p) for p, s in look.items()]
        handles.append(Line2D([], [], color=SOFT, ls=(0, (4, 1.6)), lw=1.0, label="floor"))
        handles += [
            Line2D([], [], color=SOFT, ls="", marker=mark, ms=4.5, label=f"bound by {by}")
            for by, mark in MARKS.items()
            if (measured["bound"] == by).any()
        ]
        lost = set(found["status"]) - {MEASURED}
        if lost:
            cross = Line2D([], [], color=SOFT, ls="", marker="x", ms=5, mew=1.5)
            cross.set_label(", ".join(sorted(lost)))
            handles.append(cross)
        figure.legend(handles=handles, loc="outside right upper", handlelength=2.2)
        for ax, axis in zip(cells, axes, strict=True):
            for prior, style in look.items():
                here = _along(found, axis)
                gone = here[(here["prior"] == prior) & (here["status"] != MEASURED)]
                crosses(ax, gone[axis], [style.colour] * len(gone))
    return figure


def _along(found: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Returns the points that vary `axis` alone, in its order."""
    rest = [other for other in CENTRE if other != axis]
    held = (found[rest] == [CENTRE[other] for other in rest]).all(axis=1)
    return found[held].sort_values(axis)


def _sweep_panel(ax: Any, rows: pd.DataFrame, axis: str, look: dict[str, Any]) -> None:  # noqa: ANN401
    import seaborn as sns
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from .look import latent_axis, thousands

    for prior, style in look.items():
        mine = rows[(rows["prior"] == prior) & (rows["status"] == MEASURED)]
        ax.plot(mine[axis], mine["images_per_second"], color=style.colour, zorder=3)
        ax.plot(
            mine[axis], mine["floor_images_per_second"], color=style.colour, lw=1.0,
            ls=(0, (4, 1.6)), zorder=2,
        )  # fmt: skip
        for by, mark in MARKS.items():
            those = mine[mine["bound"] == by]
            ax.plot(
                those[axis], those["images_per_second"], mark, color=style.colour, ms=5,
                mec="white", mew=0.6, zorder=4,
            )  # fmt: skip
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    ax.yaxis.set_minor_locator(NullLocator())
    latent_axis(ax, sorted(rows[axis].unique()))
    ax.set_xlabel(AXES[axis])
    ax.grid(axis="y")
    sns.despine(ax=ax)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sweep; returns the exit status."""
    return guarded(_run, argv)


def _counts(flag: str, text: str) -> list[int]:
    try:
        return [read(part, Count) for part in split(text)]
    except ValueError as expected:
        raise InputError(f"bad {flag} '{text}': expected {expected}, or a list of them") from None


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m bench.sweep",
        description="Measures the throughput of our training step, and by what it is bound.",
    )
    add = parser.add_argument
    add("--priors", default="gauss,maf,nsf", metavar="LIST", help="default: %(default)s")
    add("--latents", default="2,16,128", metavar="LIST", help="default: %(default)s")
    add("--batches", default="64,256,1024,4096", metavar="LIST", help="default: %(default)s")
    add("--stacks", default="1,4,32", metavar="LIST", help="default: %(default)s")
    add("--precision", default="float32", help="that of training (default: %(default)s)")
    add("--net", default="mlp", help="the bodies (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--seconds-per-point", default="2", metavar="S",
        help="how long a point is timed, s, after its warm-up (default: %(default)s)",
    )  # fmt: skip
    add(
        "--out", type=Path, metavar="DIR", default=RESULTS / "sweep",
        help="where the figure and its table go (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse(argv)
    try:
        seconds = read(arguments.seconds_per_point, Positive)
    except ValueError as expected:
        raise InputError(
            f"bad --seconds-per-point '{arguments.seconds_per_point}': expected {expected}"
        ) from None
    wanted = points(
        split(arguments.priors),
        _counts("--latents", arguments.latents),
        _counts("--batches", arguments.batches),
        _counts("--stacks", arguments.stacks),
    )
    return _sweep(wanted, arguments, seconds)


def _sweep(wanted: Sequence[Point], arguments: Any, seconds: float) -> int:  # noqa: ANN401
    import pandas as pd
    import torch

    from flowvae.precision import matrix_products
    from flowvae.trial import Trial

    from .launch import choose_device, device_name
    from .look import write
    from .trainer import random_images

    device = torch.device(choose_device(arguments.device))
    for prior in dict.fromkeys(point.prior for point in wanted):  # complaints come first
        Trial(
            prior=prior, dataset="mnist", latent=1, net=arguments.net,
            precision=arguments.precision,
        )  # fmt: skip
    with matrix_products(arguments.precision, device):
        pass
    _folder(arguments.out)
    console, start = terminal(), time.perf_counter()
    settings = {
        "precision": arguments.precision, "net": arguments.net,
        "device": device_name(str(device)), "torch": torch.__version__,
    }  # fmt: skip
    rows = []
    with console.status("warming up") as status:
        images = random_images(4 * max(point.batch for point in wanted)).to(device)
        costs = unit_costs(device)
        for number, point in enumerate(wanted, 1):
            status.update(f"{number} of {len(wanted)}: {point}")
            row = measure(
                point, images, costs, seconds=seconds, precision=arguments.precision,
                net=arguments.net,
            )  # fmt: skip
            rows.append({**vars(point), **row, **settings})
            pd.DataFrame(rows).to_csv(arguments.out / "sweep.csv", index=False)
    found = pd.DataFrame(rows)
    console.print(_table(found))
    told = f"starting one operation: {1e6 * costs[0]:.2f} us from the host"
    if device.type == "cuda":
        told += f", {1e6 * costs[1]:.2f} us in a graph"
    print(f"{settings['device']}; ms a step; {told}; {time.perf_counter() - start:.0f} s")
    if not (found["status"] == MEASURED).any():
        raise InputError("no point could be measured: see the table; try smaller lists")
    print(*write(draw_sweep(found), arguments.out / "sweep", found, 200), sep="\n")
    return COMPLETE


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to --out {out}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
