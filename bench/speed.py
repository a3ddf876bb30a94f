"""Draws the timings of the benchmarks: `python -m bench.speed FILE.json [--out DIR]`.

FILE.json is what `pytest bench --benchmark-enable --benchmark-json FILE.json` writes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowvae.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["main", "read_benchmarks"]

COMMAND = "pytest bench --benchmark-enable --benchmark-json FILE.json"
FACTS = ("prior", "latent", "what", "device", "batch", "data", "images_per_second")


def read_benchmarks(path: Path) -> pd.DataFrame:
    """Reads pytest-benchmark's JSON: one row a timing, in the order in which they ran.

    Returns:
        Columns prior, latent, what, device, batch (images), data, images_per_second,
        median_seconds, iqr_seconds, q1_seconds, q3_seconds, rounds.

    Raises:
        InputError: The file cannot be read, or holds no timing of an ELBO step.
    """
    import pandas as pd

    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; write it with {COMMAND}"
        ) from None
    except ValueError:
        raise InputError(f"{path} is not JSON: expected what {COMMAND} writes") from None
    try:
        found = [b for b in content["benchmarks"] if "what" in b["extra_info"]]
        rows = [_row(benchmark["extra_info"], benchmark["stats"]) for benchmark in found]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not pytest-benchmark's ({type(error).__name__}: {error}): expected what "
            f"{COMMAND} writes"
        ) from None
    if not rows:
        raise InputError(
            f"{path} holds no timing of an ELBO step ({len(content['benchmarks'])} others): "
            f"expected what {COMMAND} writes"
        )
    return pd.DataFrame(rows)


def _row(facts: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in FACTS} | {
        "median_seconds": float(stats["median"]),
        "iqr_seconds": float(stats["iqr"]),
        "q1_seconds": float(stats["q1"]),
        "q3_seconds": float(stats["q3"]),
        "rounds": int(stats["rounds"]),
    }


def _ratios(table: pd.DataFrame) -> list[str]:
    """Sets the tutorial's loop against our step, where both were timed."""
    ours = table[table["what"] == "optimiser step"]
    loop = table[table["what"] == "tutorial loop"]
    both = loop.merge(ours, on=["prior", "latent"], suffixes=("_loop", "_ours"))
    return [
        f"{row['prior']}, D = {row['latent']}: tutorial loop "
        f"{1e3 * row['median_seconds_loop']:.3g} ms, "
        f"our step {1e3 * row['median_seconds_ours']:.3g} ms, "
        f"ratio {row['median_seconds_loop'] / row['median_seconds_ours']:.2f}"
        for row in both.to_dict("records")
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speed", description="Draws the timings of the benchmarks."
    )
    parser.add_argument("file", type=Path, metavar="FILE.json", help=f"what {COMMAND} wrote")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("results/local/speed"),
        help="where the figure and its table go (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        table = read_benchmarks(arguments.file)
        written = _draw(table, arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*_ratios(table), *written, sep="\n")
    return 0


def _draw(table: pd.DataFrame, folder: Path) -> list[Path]:
    from . import figures

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return figures._write(figures.speed(table), folder / "speed", table, dpi=200)
    except OSError as error:
        raise InputError(f"cannot write to --out {folder}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
