"""Draws the timings of the benchmarks: `python -m bench.speed FILE.json [--out DIR]`.

FILE.json is what `pytest bench --benchmark-enable --benchmark-json FILE.json` writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flowvae.errors import InputError

from .command import COMPLETE, RESULTS, Parser, guarded
from .look import DOT, MARKERS, NoDataError, forest, legend, panels, styles, theme, write

__all__ = ["draw_speed", "main", "read_benchmarks"]

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
    """Runs the command line; returns the exit status."""
    return guarded(_run, argv)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m bench.speed", description="Draws the timings of benchmarks.")
    parser.add_argument("file", type=Path, metavar="FILE.json", help=f"what {COMMAND} wrote")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=RESULTS / "speed",
        help="where the figure and its table go (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse(argv)
    table = read_benchmarks(arguments.file)
    print(*_ratios(table), *_draw(table, arguments.out), sep="\n")
    return COMPLETE


@theme()
def draw_speed(benchmarks: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Draw the median time of a step with its interquartile range, prior by prior.

    Arguments:
        benchmarks: What `read_benchmarks` returns.
        order: The priors of the other figures, in their order, so that colours agree.
    """
    if not len(benchmarks):
        raise NoDataError(
            "Expected at least one benchmark; got none. Run bench/test_elbo_step.py."
        )
    look = styles(list(dict.fromkeys([*order, *benchmarks["prior"]])))
    labels = [p for p in look if (benchmarks["prior"] == p).any()]
    latents, kinds = sorted(benchmarks["latent"].unique()), list(dict.fromkeys(benchmarks["what"]))
    facts = [f"median and quartiles, batch {benchmarks['batch'].iloc[0]}"]
    facts += ["; ".join(benchmarks[name].unique()) for name in ("data", "device")]
    note = DOT.join(facts)
    rows = max(0.24, 0.11 * len(latents) + 0.08) * len(labels)
    figure, cells = panels(
        len(kinds), note, size=(1.9, 0.95 + rows), extra=1.2, sharey=True, sharex=True
    )
    shift = np.linspace(-0.3, 0.3, len(latents)) if len(latents) > 1 else np.zeros(1)
    for ax, kind in zip(cells, kinds, strict=True):
        for row in benchmarks[benchmarks["what"] == kind].itertuples(index=False):
            k = latents.index(row.latent)
            quartiles = (row.median_seconds - row.q1_seconds, row.q3_seconds - row.median_seconds)
            spread = 1e3 * np.maximum(quartiles, 0)[:, None]
            ax.errorbar(
                1e3 * row.median_seconds, labels.index(row.prior) + shift[k],
                xerr=spread, clip_on=False, color=look[row.prior].colour, marker=MARKERS[k],
                ms=4.5, mew=0.5, mec="white", elinewidth=1.2, capsize=2,
            )  # fmt: skip
        forest(ax, labels, kind)
        ax.set_xlabel("ms per step  (\N{LEFTWARDS ARROW} faster)")
    cells[0].set_xlim(left=0)
    if len(latents) > 1:
        legend(figure, {}, latents)
    return figure


def _draw(table: pd.DataFrame, folder: Path) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write(draw_speed(table), folder / "speed", table, dpi=200)
    except OSError as error:
        raise InputError(f"cannot write to --out {folder}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
