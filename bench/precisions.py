"""What a lower precision changed: paired differences, their table and their figure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from . import stats
from .intervals import components, crossed, seeds_for
from .look import DOT, footer, forest, losses, panels, styles, theme
from .results import Results

__all__ = ["EXACT", "changes", "precision_changes", "table"]

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
            d = stats.differences(
                stats.scores(rows, loglik), stats.scores(base, by_training.loglik)
            )
            rows_of.append(
                {"stage": stage, "precision": precision, **dict(zip(ARM, key, strict=True))}
                | vars(crossed(d))
                | {f"sd_{name}": sd for name, sd in components(d)._asdict().items()}
                | {"diverged": int((rows["status"] == "diverged").sum())}
                | {"resolution": resolution, "seeds_for_resolution": seeds_for(d, resolution)}
            )
    return pd.DataFrame(rows_of)


def table(found: pd.DataFrame) -> Table:
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
    look, nets = styles(stats.priors(frame)), found["net"].nunique()
    latents = sorted(found["latent"].unique())
    cells_of = [(stage, latent) for stage in STAGES for latent in latents]
    keys = ["precision", "net", "prior"]
    marks = list(dict.fromkeys(found[keys].itertuples(index=False, name=None)))
    note = f"{footer(frame)}{DOT}bars: 95 % t interval, seeds and images random"
    figure, cells = panels(
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
            losses(ax, row.rename({"seeds": "pairs"}), y, style.colour, 0)
        names = [f"{p}, {prior}" + (f", {net}" if nets > 1 else "") for p, net, prior in marks]
        forest(ax, names, f"{stage}, D = {latent}")
    figure.suptitle(f"NLL minus that in {EXACT}, nats per image", size=9)
    return figure
