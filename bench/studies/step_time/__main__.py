"""Where is a training step bound, and by what? `python -m bench.studies.step_time [FLAGS]`.

Throughput of our step by prior and by latent size, batch and stack, one of the three varied at a
time around the tutorial's setting (D = 16, batch 256, one model).
`bench/studies/step_time/measurement.py` says how each point is timed, and by what its step is
bound.

A point that does not fit into memory is recorded as such. (On a CPU the system may end the process
first: what was measured until then stands in the table, which is written point by point.)
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from bench.cli.console import make_console
from bench.cli.parser import EXIT_COMPLETE, Parser, run_command
from bench.system.paths import RESULTS_FOLDER, writing
from flowvae.errors import InputError
from flowvae.specs.registry import split
from flowvae.specs.values import Count, Positive, read

__all__ = ["main"]


MOST = 10**6
"""The largest size that is measured: on larger ones even counting the operations is in vain."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sweep; returns the exit status."""
    return run_command(_run, argv, resumes=False)


def _counts(flag: str, text: str) -> list[int]:
    try:
        found = [read(part, Count) for part in split(text) or [""]]
    except ValueError as expected:
        raise InputError(f"bad {flag} '{text}': expected {expected}, or a list of them") from None
    if max(found) > MOST:
        raise InputError(f"bad {flag} '{text}': expected sizes of at most {MOST}")
    return found


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m bench.studies.step_time",
        description="Measures the throughput of our training step, and by what it is bound: the "
        "largest of its matrix products, of what starting its operations costs, and of the rest, "
        "memory. One axis is varied at a time around D = 16, batch 256, one model.",
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
        "--out", type=Path, metavar="DIR", default=RESULTS_FOLDER / "sweep",
        help="where the figure and its table go (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse(argv)
    try:
        seconds = read(arguments.seconds_per_point, Positive)
    except ValueError as expected:
        raise InputError(
            f"bad --seconds-per-point '{arguments.seconds_per_point}': expected {expected}"
        ) from None
    sizes = [
        _counts(f"--{name}", vars(arguments)[name]) for name in ("latents", "batches", "stacks")
    ]
    return _sweep(arguments, sizes, seconds)


def _sweep(arguments: Namespace, sizes: Sequence[Sequence[int]], seconds: float) -> int:
    import pandas as pd
    import torch

    from bench.benchmarks.step_runner import random_images
    from bench.figures.style import write_figure
    from bench.studies.step_time.figure import draw_sweep, step_time_table
    from bench.studies.step_time.measurement import MEASURED, measure, points, unit_costs
    from bench.system.devices import choose_device, device_name
    from flowvae.numerics.precision import matrix_products
    from flowvae.trial import Trial

    wanted = points(split(arguments.priors), *sizes)
    if not wanted:
        raise InputError(f"--priors '{arguments.priors}' is empty: there is nothing to measure")
    device = torch.device(choose_device(arguments.device))
    for prior in dict.fromkeys(point.prior for point in wanted):  # complaints come first
        Trial(
            prior=prior, dataset="mnist", latent=1, net=arguments.net,
            precision=arguments.precision,
        )  # fmt: skip
    with matrix_products(arguments.precision, device):
        pass
    out: Path = arguments.out
    with writing(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
    console, start = make_console(), time.perf_counter()
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
            with writing(f"--out {out}"):
                pd.DataFrame(rows).to_csv(out / "sweep.csv", index=False)
    found = pd.DataFrame(rows)
    console.print(step_time_table(found))
    told = f"starting one operation: {1e6 * costs[0]:.2f} us from the host"
    if device.type == "cuda":
        told += f", {1e6 * costs[1]:.2f} us in a graph"
    print(f"{settings['device']}; ms a step; {told}; {time.perf_counter() - start:.0f} s")
    if not (found["status"] == MEASURED).any():
        raise InputError("no point could be measured: see the table; try smaller lists")
    figure = draw_sweep(found)
    with writing(f"--out {out}"):
        written = write_figure(figure, out / "sweep", found, 200)
    print(*written, sep="\n")
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
