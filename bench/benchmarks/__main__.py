"""Draws the figures of benchmarks: `python -m bench.benchmarks FILE.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.benchmarks.figures import (
    COMMAND,
    draw_figures,
    ratio_lines,
    read_benchmarks,
    read_json,
    read_races,
)
from bench.cli.parser import EXIT_COMPLETE, Parser, run_command
from bench.system.paths import RESULTS_FOLDER
from flowvae.errors import InputError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_run, argv, resumes=False)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m bench.benchmarks", description="Draws the timings of benchmarks."
    )
    parser.add_argument("file", type=Path, metavar="FILE.json", help=f"written by {COMMAND}")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=RESULTS_FOLDER / "speed",
        help="folder of the figures and their tables (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse(argv)
    races, pieces = read_races(arguments.file), read_benchmarks(arguments.file)
    if not len(races) and not len(pieces):
        raise InputError(
            f"{arguments.file} has no timing of an ELBO step or an NLL "
            f"({len(read_json(arguments.file))} others): write it with {COMMAND}"
        )
    print(*ratio_lines(races), "ratios: medians of the ratios within a round", sep="\n")
    print(*draw_figures(races, pieces, arguments.out), sep="\n")
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
