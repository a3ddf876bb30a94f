"""What a lower precision changes: `python -m bench.precision digits --seeds 0:20`.

Every trial is trained in each precision and scored in float32; the models trained in float32 are
scored in each precision too. A difference is taken on the same image at the same seed, so that
nothing but the precision differs: initial weights, minibatches, noise and test draws are the same.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from . import stats
from .command import COMPLETE, UNFINISHED, Parser, guarded, terminal
from .intervals import components, crossed, seeds_for
from .look import DOT, footer, forest, panels, styles, theme, write
from .results import Results
from .run import perform

__all__ = ["changes", "main", "precision_changes"]

EXACT = "float32"
STAGES = ("training", "scoring")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.precision",
        description="Measures what a lower precision changes in training and in scoring.",
        epilog="All other arguments are those of `python -m bench.run`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--lower", metavar="LIST", default="bf16", help="default: bf16; tf32 needs a CUDA device"
    )
    parser.add_argument("--name", default="precision", help="default: precision")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    return guarded(_run, argv)


def _run(argv: Sequence[str]) -> int:
    mine, rest = _parser().parse_known_args(argv)
    rest += ["--name", mine.name]
    lower = mine.lower.split(",")
    command, console = f"python -m bench.precision {shlex.join(argv)}".strip(), terminal()
    trained = perform([*rest, "--precision", ",".join([EXACT, *lower])], console, command)
    if trained is None:
        return COMPLETE
    scored = {}
    for precision in lower:
        again = [*rest, "--precision", EXACT, "--nll-precision", precision]
        scored[precision] = perform(again, console, command)
    sound = {p: each for p, each in scored.items() if each is not None and each.complete}
    if not trained.complete or len(sound) < len(lower):
        return UNFINISHED  # each trial has said why
    table = changes(trained, sound)
    folder = Path("results") / "local" / mine.name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(_shown(table))
    figure = precision_changes(table, trained.frame)
    for path in write(figure, folder / "precision_changes", table, 200):
        console.print(str(path), markup=False, soft_wrap=True)
    return COMPLETE


def changes(by_training: Results, by_scoring: Mapping[str, Results]) -> pd.DataFrame:
    """Returns the change in NLL by stage, precision, latent size and prior, with its interval.

    Arguments:
        by_training: Trials of every precision, scored in float32.
        by_scoring: The float32 trials scored in each lower precision.

    Returns:
        Columns `stage, precision, latent, prior`, those of `intervals.Interval`, `sd_seed`,
        `sd_image`, `sd_rest`, and `seeds_for_0.1`: seeds for a half-width of 0.1 nats.
    """
    exact = by_training.frame[by_training.frame["precision"] == EXACT]
    sides: list[tuple[str, str, pd.DataFrame, Mapping[str, NDArray[Any]]]] = [
        ("training", str(precision), rows, by_training.loglik)
        for precision, rows in by_training.frame.groupby("precision", sort=False)
        if precision != EXACT
    ]
    sides += [("scoring", p, each.frame, each.loglik) for p, each in by_scoring.items()]
    rows = []
    for stage, precision, frame, loglik in sides:
        for (latent, prior), here in frame.groupby(["latent", "prior"], sort=False):
            base = exact[(exact["latent"] == latent) & (exact["prior"] == prior)]
            d = _differences(here, loglik, base, by_training.loglik)
            rows.append(
                {"stage": stage, "precision": precision, "latent": latent, "prior": prior}
                | vars(crossed(d))
                | {f"sd_{name}": sd for name, sd in components(d)._asdict().items()}
                | {"seeds_for_0.1": seeds_for(d, 0.1)}
            )
    return pd.DataFrame(rows)


def _differences(
    lower: pd.DataFrame,
    lower_loglik: Mapping[str, NDArray[Any]],
    exact: pd.DataFrame,
    exact_loglik: Mapping[str, NDArray[Any]],
) -> NDArray[np.float64]:
    """Returns NLL in the lower precision minus that in float32, (S, N), nats per image."""
    ours, theirs = (
        {
            seed: loglik[run]
            for seed, run in zip(f["seed"], f["run_id"], strict=True)
            if run in loglik
        }
        for f, loglik in ((lower, lower_loglik), (exact, exact_loglik))
    )
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return np.empty((0, 0))
    return np.stack([theirs[seed] - ours[seed] for seed in both])


def _shown(table: pd.DataFrame) -> Table:
    shown = Table(
        title="Change of the test NLL by a lower precision, nats per image",
        caption="[ ]: 95 % intervals, seeds and images random; seeds: for a half-width of 0.1",
        box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left",
    )  # fmt: skip
    for name in ("stage", "precision", "D", "prior"):
        shown.add_column(name)
    for name in ("n", "change", "sd over seeds", "seeds for 0.1"):
        shown.add_column(name, justify="right")
    for _, row in table.iterrows():
        span = "" if np.isnan(row["low"]) else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        enough = row["seeds_for_0.1"]
        shown.add_row(
            row["stage"], row["precision"], str(row["latent"]), row["prior"], str(row["seeds"]),
            f"{row['mean']:+.3f}" + span.replace("[", r"\["), f"{row['sd_seed']:.3f}",
            f"{enough:.0f}" if np.isfinite(enough) else "",
        )  # fmt: skip
    return shown


@theme()
def precision_changes(table: pd.DataFrame, frame: pd.DataFrame) -> Figure:
    """Draw the changes of `changes` with their intervals; `frame` names the trials."""
    look = styles(stats.priors(frame))
    latents = sorted(table["latent"].unique())
    cells_of = [(stage, latent) for stage in STAGES for latent in latents]
    lower = list(dict.fromkeys(table["precision"]))
    note = f"{footer(frame)}{DOT}bars: 95 % t interval, seeds and images random"
    height = 0.9 + 0.22 * len(look) * len(lower)
    figure, cells = panels(
        len(cells_of), note, size=(2.1, height), extra=1.4, across=len(latents), sharey=True
    )
    marks = [(precision, label) for precision in lower for label in look]
    for ax, (stage, latent) in zip(cells, cells_of, strict=True):
        ax.axvline(0, color="#888888", lw=0.9, zorder=1)
        here = table[(table["stage"] == stage) & (table["latent"] == latent)]
        for _, row in here.iterrows():
            y, style = marks.index((row["precision"], row["prior"])), look[row["prior"]]
            ax.plot([row["low"], row["high"]], [y, y], color=style.colour, lw=1.3)
            ax.plot(row["mean"], y, style.marker, color=style.colour, ms=5)
        forest(
            ax, [f"{precision}, {label}" for precision, label in marks], f"{stage}, D = {latent}"
        )
    figure.suptitle(f"NLL minus that in {EXACT}, nats per image", size=9)
    return figure


if __name__ == "__main__":
    sys.exit(main())
