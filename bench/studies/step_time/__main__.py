"""Measures what bounds a training step: `python -m bench.studies.step_time [FLAGS]`.

The throughput of our step is measured by prior and by latent size, batch and stack, one of the
three varied at a time around the tutorial's setting (D = 16, batch 256, one model).
`bench/studies/step_time/measurement.py` explains how a point is timed and its bound found.

A point that does not fit into memory is recorded as such. (On a CPU the system may kill the
process first; the table is written point by point and keeps the points before.)
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from bench.cli.console import make_console
from bench.cli.parser import EXIT_COMPLETE, Parser, read_flag, read_list_flag, run_command
from bench.system.paths import RESULTS_FOLDER, writing
from flowvae.errors import InputError
from flowvae.specs.registry import split
from flowvae.specs.values import Count, Positive

__all__ = ["main"]


MAX_SIZE = 10**6
"""The largest size that is accepted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    return run_command(_run, argv, resumes=False)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m bench.studies.step_time",
        description="Measures the throughput of our training step and what bounds it: the largest "
        "of the times of its matrix products, of launching its operations, and of the rest, "
        "memory. One axis is varied at a time around D = 16, batch 256, one model.",
    )
    add = parser.add_argument
    add("--priors", default="gauss,maf,nsf", metavar="LIST", help="default: %(default)s")
    add("--latents", default="2,16,128", metavar="LIST", help="default: %(default)s")
    add("--batches", default="64,256,1024,4096", metavar="LIST", help="default: %(default)s")
    add("--stacks", default="1,4,32", metavar="LIST", help="default: %(default)s")
    add("--precision", default="float32", help="precision of training (default: %(default)s)")
    add("--net", default="mlp", help="encoder and decoder (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--seconds-per-point", default="2", metavar="S",
        help="time for each point, s, after its warm-up (default: %(default)s)",
    )  # fmt: skip
    add(
        "--out", type=Path, metavar="DIR", default=RESULTS_FOLDER / "sweep",
        help="folder of the figure and its table (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse(argv)
    sizes = {
        name: read_list_flag(name, vars(arguments)[name], Count)
        for name in ("latents", "batches", "stacks")
    }
    for name, values in sizes.items():
        if max(values) > MAX_SIZE:
            text = vars(arguments)[name]
            raise InputError(f"bad --{name} '{text}': expected sizes of at most {MAX_SIZE}")
    seconds = read_flag("seconds-per-point", arguments.seconds_per_point, Positive)
    return _measure(arguments, list(sizes.values()), seconds)


def _measure(arguments: Namespace, sizes: Sequence[Sequence[int]], seconds: float) -> int:
    import pandas as pd
    import torch

    from bench.benchmarks.step_runner import random_images
    from bench.figures.style import write_figure
    from bench.studies.step_time.figure import draw_step_times, step_time_table
    from bench.studies.step_time.measurement import (
        MEASURED,
        measure_point,
        measure_unit_costs,
        sweep_points,
    )
    from bench.system.devices import choose_device, device_name
    from flowvae.numerics.precision import matrix_products
    from flowvae.trial import Trial

    sweep = sweep_points(split(arguments.priors), *sizes)
    if not sweep:
        raise InputError(f"--priors '{arguments.priors}' is empty: expected at least one prior")
    device = torch.device(choose_device(arguments.device))
    for prior in dict.fromkeys(point.prior for point in sweep):  # invalid input first
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
        images = random_images(4 * max(point.batch for point in sweep)).to(device)
        costs = measure_unit_costs(device)
        for number, point in enumerate(sweep, 1):
            status.update(f"{number} of {len(sweep)}: {point}")
            row = measure_point(
                point, images, costs, seconds=seconds, precision=arguments.precision,
                net=arguments.net,
            )  # fmt: skip
            rows.append({**vars(point), **row, **settings})
            with writing(f"--out {out}"):
                pd.DataFrame(rows).to_csv(out / "sweep.csv", index=False)
    table = pd.DataFrame(rows)
    console.print(step_time_table(table))
    launch = f"launching one operation: {1e6 * costs[0]:.2f} us from the host"
    if device.type == "cuda":
        launch += f", {1e6 * costs[1]:.2f} us in a graph"
    print(f"{settings['device']}; ms a step; {launch}; {time.perf_counter() - start:.0f} s")
    if not (table["status"] == MEASURED).any():
        raise InputError("no point could be measured: see the table, and try smaller sizes")
    figure = draw_step_times(table)
    with writing(f"--out {out}"):
        written = write_figure(figure, out / "sweep", table, 200)
    print(*written, sep="\n")
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
