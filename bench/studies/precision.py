"""Measures how a lower precision changes the NLL: `python -m bench.studies.precision digits`.

Every trial is trained in each precision and scored in float32; the models trained in float32 are
also scored in each precision. Differences are taken on the same image at the same seed, with the
same initial weights, minibatches, noise and test draws, so that only the precision differs.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from bench.cli.console import make_console
from bench.cli.parser import (
    EXIT_COMPLETE,
    EXIT_UNFINISHED,
    Parser,
    read_flag,
    read_list_flag,
    run_command,
)
from bench.figures.style import (
    footer,
    format_forest,
    join_facts,
    make_panels,
    mark_lost_seeds,
    styles,
    theme,
)
from bench.results.read import Results
from bench.statistics import comparison, frames
from bench.statistics.intervals import components, crossed, seeds_for
from bench.system.paths import RESULTS_FOLDER
from flowvae.errors import InputError
from flowvae.specs.values import Positive
from flowvae.trial import Precision

__all__ = ["main", "measure_changes", "precision_changes", "precision_table"]


EXACT = "float32"
STAGES = ("training", "scoring")
ARM_COLUMNS = ["net", "latent", "prior"]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.studies.precision",
        description="Measures how a lower precision in training and in scoring changes the NLL.",
        epilog="Other arguments: those of `python -m bench.run`, except --list.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--lower", metavar="LIST", default="bf16", help="default: bf16; tf32 needs a CUDA device"
    )
    parser.add_argument("--name", default="precision", help="default: precision")
    parser.add_argument(
        "--resolution", metavar="NATS", default="0.1",
        help="half-width of an interval, for the number of seeds (default: 0.1)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="repeat trials that are complete")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    return run_command(_run, argv)


def _run(argv: Sequence[str]) -> int:
    own, rest = _parser().parse_known_args(argv)
    if "--list" in rest:
        raise InputError("--list is for python -m bench.run")

    from bench.figures.style import write_figure
    from bench.run import perform

    resolution = read_flag("resolution", own.resolution, Positive, "nats")
    lower = read_list_flag("lower", own.lower, Precision)
    console = make_console()
    command = f"python -m bench.studies.precision {shlex.join(argv)}".strip()
    rest += [f"--name={own.name}"]
    flags = ["--precision", ",".join(dict.fromkeys([EXACT, *lower])), "--nll-precision", EXACT]
    by_training = perform([*rest, *flags, *["--force"] * own.force], console, command)
    if by_training is None:  # a dry run
        return EXIT_COMPLETE
    by_scoring = {}
    for precision in lower:
        flags = ["--precision", EXACT, "--nll-precision", precision]
        if (results := perform([*rest, *flags], console, command)) is not None:
            by_scoring[precision] = results
    changes = measure_changes(by_training, by_scoring, resolution=resolution)
    if not changes["seeds"].any():
        return EXIT_UNFINISHED  # each trial has reported its reason
    folder = RESULTS_FOLDER / own.name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(precision_table(changes))
    figure = precision_changes(changes, by_training.frame)
    for path in write_figure(figure, folder / "precision_changes", changes, 200):
        console.print(str(path), markup=False, soft_wrap=True)
    complete = all(results.complete for results in (by_training, *by_scoring.values()))
    return EXIT_COMPLETE if complete else EXIT_UNFINISHED


def measure_changes(
    by_training: Results, by_scoring: Mapping[str, Results], *, resolution: float = 0.1
) -> pd.DataFrame:
    """Returns the change in NLL by stage, precision and arm, with its interval.

    Arguments:
        by_training: Trials of every precision, scored in float32.
        by_scoring: The float32 trials scored in each lower precision.
        resolution: The half-width of an interval for which seeds are counted, nats.

    Returns:
        Columns `stage, precision, net, latent, prior`, those of `intervals.Interval`, `sd_seed`,
        `sd_image`, `sd_rest`, `diverged` (seeds in the lower precision), and
        `seeds_for_resolution`.
    """
    exact = by_training.frame[by_training.frame["precision"] == EXACT]
    sides = [
        ("training", str(precision), rows, by_training.loglik)
        for precision, rows in by_training.frame.groupby("precision", sort=False)
        if precision != EXACT
    ]
    sides += [("scoring", p, results.frame, results.loglik) for p, results in by_scoring.items()]
    changes = []
    for stage, precision, frame, loglik in sides:
        for key, rows in frame.groupby(ARM_COLUMNS, sort=False):
            base = exact[(exact[ARM_COLUMNS] == list(key)).all(axis=1)]
            d = comparison.differences(
                comparison.scores(rows, loglik), comparison.scores(base, by_training.loglik)
            )
            arm = dict(zip(ARM_COLUMNS, key, strict=True))
            changes.append(
                {"stage": stage, "precision": precision, **arm}
                | vars(crossed(d))
                | {f"sd_{name}": sd for name, sd in components(d)._asdict().items()}
                | {"diverged": int((rows["status"] == "diverged").sum())}
                | {"resolution": resolution, "seeds_for_resolution": seeds_for(d, resolution)}
            )
    return pd.DataFrame(changes)


def precision_table(changes: pd.DataFrame) -> Table:
    """Returns the table of the terminal, a row for each stage, precision and arm."""
    resolution = changes["resolution"].iloc[0]
    table = Table(
        title="Change of the test NLL by a lower precision, nats per image",
        caption="[ ]: 95 % intervals, seeds and images random; last column: seeds for a "
        f"half-width of {resolution:g} nats",
        box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left",
    )  # fmt: skip
    for name in ("stage", "precision", "net", "D", "prior"):
        table.add_column(name, no_wrap=True)
    for name in ("n", "change", "sd over seeds", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    for _, row in changes.iterrows():
        interval = "" if np.isnan(row["low"]) else f" \\[{row['low']:+.4f}, {row['high']:+.4f}]"
        seeds, lost = row["seeds_for_resolution"], row["diverged"]
        table.add_row(
            row["stage"], row["precision"], row["net"].replace("[", "\\["), str(row["latent"]),
            row["prior"].replace("[", "\\["),
            f"{row['seeds']}" + (f" ({lost} diverged)" if lost else ""),
            f"{row['mean']:+.4f}{interval}",
            "" if np.isnan(row["sd_seed"]) else f"{row['sd_seed']:.4f}",
            f"{seeds:.0f}" if np.isfinite(seeds) else "",
        )  # fmt: skip
    return table


@theme()
def precision_changes(changes: pd.DataFrame, frame: pd.DataFrame) -> Figure:
    """Draws the changes with their intervals; `frame` has the trials."""
    look, nets = styles(frames.priors(frame)), changes["net"].nunique()
    latents = sorted(changes["latent"].unique())
    settings = [(stage, latent) for stage in STAGES for latent in latents]
    columns = ["precision", "net", "prior"]
    keys = list(dict.fromkeys(changes[columns].itertuples(index=False, name=None)))
    labels = [f"{p}, {prior}" + (f", {net}" if nets > 1 else "") for p, net, prior in keys]
    note = join_facts(footer(frame), "bars: 95 % t interval, seeds and images random")
    figure, cells = make_panels(
        len(settings), note, size=(2.4, 1.0 + 0.22 * len(keys)), extra=1.6, across=len(latents),
        sharey=True,
    )  # fmt: skip
    for ax, (stage, latent) in zip(cells, settings, strict=True):
        ax.axvline(0, color="#888888", lw=0.9, zorder=1)
        rows = changes[(changes["stage"] == stage) & (changes["latent"] == latent)]
        for _, row in rows.iterrows():
            y, style = keys.index(tuple(row[c] for c in columns)), look[row["prior"]]
            ax.plot([row["low"], row["high"]], [y, y], color=style.colour, lw=1.3)
            ax.plot(row["mean"], y, marker=style.marker, color=style.colour, ms=5, mfc=style.face)
            mark_lost_seeds(ax, row.rename({"seeds": "pairs"}), y, style.colour)
        format_forest(ax, labels, f"{stage}, D = {latent}")
    figure.suptitle(f"NLL minus that in {EXACT}, nats per image", size=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
