"""What a lower precision changes: `python -m bench.studies.precision digits --seeds 0:20`.

Every trial is trained in each precision and scored in float32; the models trained in float32 are
scored in each precision too. A difference is taken on the same image at the same seed, so that
nothing but the precision differs: initial weights, minibatches, noise and test draws are the same.
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
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, Parser, read_flag, run_command
from bench.figures.style import footer, format_forest, make_panels, mark_lost_seeds, styles, theme
from bench.results.read import Results
from bench.statistics import comparison, frames
from bench.statistics.captions import DOT
from bench.statistics.intervals import components, crossed, seeds_for
from bench.system.paths import RESULTS_FOLDER
from flowvae.errors import InputError
from flowvae.specs.registry import split
from flowvae.specs.values import Positive, read
from flowvae.trial import Precision

__all__ = ["EXACT", "changes", "main", "precision_changes", "precision_table"]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.studies.precision",
        description="Measures what a lower precision changes in training and in scoring.",
        epilog="All other arguments are those of `python -m bench.run`, but --list.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--lower", metavar="LIST", default="bf16", help="default: bf16; tf32 needs a CUDA device"
    )
    parser.add_argument("--name", default="precision", help="default: precision")
    parser.add_argument(
        "--resolution", metavar="NATS", default="0.1",
        help="half-width of an interval to count seeds for (default: 0.1)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="run also what is complete")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    return run_command(_run, argv)


def _lower(text: str) -> list[str]:
    """Reads the precisions that are compared to the exact one, each once."""
    try:
        found = [read(part, Precision) for part in split(text)]
    except ValueError as expected:
        raise InputError(f"bad --lower '{text}': expected {expected}, or a list of them") from None
    if not found:
        raise InputError(f"--lower '{text}' is empty: there is nothing to compare")
    return list(dict.fromkeys(found))


def _run(argv: Sequence[str]) -> int:
    mine, rest = _parser().parse_known_args(argv)
    if "--list" in rest:
        raise InputError("--list is for python -m bench.run")

    from bench.figures.style import write_figure
    from bench.run import perform

    wanted, lower = read_flag("resolution", mine.resolution, Positive, "nats"), _lower(mine.lower)
    command, console = (
        f"python -m bench.studies.precision {shlex.join(argv)}".strip(),
        make_console(),
    )
    rest += [f"--name={mine.name}"]
    first = ["--precision", ",".join([EXACT, *lower]), "--nll-precision", EXACT]
    trained = perform([*rest, *first, *["--force"] * mine.force], console, command)
    if trained is None:  # a dry run
        return EXIT_COMPLETE
    scored = {}
    for precision in lower:
        again = [*rest, "--precision", EXACT, "--nll-precision", precision]
        if (results := perform(again, console, command)) is not None:
            scored[precision] = results
    found = changes(trained, scored, resolution=wanted)
    if not found["seeds"].any():
        return EXIT_UNFINISHED  # each trial has said why
    folder = RESULTS_FOLDER / mine.name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(precision_table(found))
    figure = precision_changes(found, trained.frame)
    for path in write_figure(figure, folder / "precision_changes", found, 200):
        console.print(str(path), markup=False, soft_wrap=True)
    whole = all(each.complete for each in (trained, *scored.values()))
    return EXIT_COMPLETE if whole else EXIT_UNFINISHED


if __name__ == "__main__":
    sys.exit(main())


EXACT = "float32"
STAGES = ("training", "scoring")
ARM = ["net", "latent", "prior"]


def changes(
    by_training: Results, by_scoring: Mapping[str, Results], *, resolution: float = 0.1
) -> pd.DataFrame:
    """Returns the change in NLL by stage, precision and arm, with its interval.

    Arguments:
        by_training: Trials of every precision, scored in float32.
        by_scoring: The float32 trials scored in each lower precision.
        resolution: The half-width, nats, that seeds are counted for.

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
    sides += [("scoring", p, each.frame, each.loglik) for p, each in by_scoring.items()]
    rows_of = []
    for stage, precision, frame, loglik in sides:
        for key, rows in frame.groupby(ARM, sort=False):
            base = exact[(exact[ARM] == list(key)).all(axis=1)]
            d = comparison.differences(
                comparison.scores(rows, loglik), comparison.scores(base, by_training.loglik)
            )
            rows_of.append(
                {"stage": stage, "precision": precision, **dict(zip(ARM, key, strict=True))}
                | vars(crossed(d))
                | {f"sd_{name}": sd for name, sd in components(d)._asdict().items()}
                | {"diverged": int((rows["status"] == "diverged").sum())}
                | {"resolution": resolution, "seeds_for_resolution": seeds_for(d, resolution)}
            )
    return pd.DataFrame(rows_of)


def precision_table(found: pd.DataFrame) -> Table:
    """Returns what `changes` found, as a person reads it."""
    resolution = found["resolution"].iloc[0]
    shown = Table(
        title="Change of the test NLL by a lower precision, nats per image",
        caption="[ ]: 95 % intervals, seeds and images random; last column: seeds for a "
        f"half-width of {resolution:g} nats",
        box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left",
    )  # fmt: skip
    for name in ("stage", "precision", "net", "D", "prior"):
        shown.add_column(name, no_wrap=True)
    for name in ("n", "change", "sd over seeds", "seeds"):
        shown.add_column(name, justify="right", no_wrap=True)
    for _, row in found.iterrows():
        span = "" if np.isnan(row["low"]) else f" \\[{row['low']:+.4f}, {row['high']:+.4f}]"
        enough, lost = row["seeds_for_resolution"], row["diverged"]
        shown.add_row(
            row["stage"], row["precision"], row["net"].replace("[", "\\["), str(row["latent"]),
            row["prior"].replace("[", "\\["),
            f"{row['seeds']}" + (f" ({lost} diverged)" if lost else ""),
            f"{row['mean']:+.4f}{span}",
            "" if np.isnan(row["sd_seed"]) else f"{row['sd_seed']:.4f}",
            f"{enough:.0f}" if np.isfinite(enough) else "",
        )  # fmt: skip
    return shown


@theme()
def precision_changes(found: pd.DataFrame, frame: pd.DataFrame) -> Figure:
    """Draw what `changes` found with its intervals; `frame` names the trials."""
    look, nets = styles(frames.priors(frame)), found["net"].nunique()
    latents = sorted(found["latent"].unique())
    cells_of = [(stage, latent) for stage in STAGES for latent in latents]
    keys = ["precision", "net", "prior"]
    marks = list(dict.fromkeys(found[keys].itertuples(index=False, name=None)))
    note = f"{footer(frame)}{DOT}bars: 95 % t interval, seeds and images random"
    figure, cells = make_panels(
        len(cells_of), note, size=(2.4, 1.0 + 0.22 * len(marks)), extra=1.6, across=len(latents),
        sharey=True,
    )  # fmt: skip
    for ax, (stage, latent) in zip(cells, cells_of, strict=True):
        ax.axvline(0, color="#888888", lw=0.9, zorder=1)
        here = found[(found["stage"] == stage) & (found["latent"] == latent)]
        for _, row in here.iterrows():
            y, style = marks.index(tuple(row[k] for k in keys)), look[row["prior"]]
            ax.plot([row["low"], row["high"]], [y, y], color=style.colour, lw=1.3)
            marker, face = style.marker, style.face
            ax.plot(row["mean"], y, marker=marker, color=style.colour, ms=5, mfc=face)
            mark_lost_seeds(ax, row.rename({"seeds": "pairs"}), y, style.colour, 0)
        names = [f"{p}, {prior}" + (f", {net}" if nets > 1 else "") for p, net, prior in marks]
        format_forest(ax, names, f"{stage}, D = {latent}")
    figure.suptitle(f"NLL minus that in {EXACT}, nats per image", size=9)
    return figure
