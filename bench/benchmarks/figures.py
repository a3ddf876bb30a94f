"""Figures of the benchmarks, and the reading of pytest-benchmark's JSON.

`races` compares our step with the tutorial's loop, our NLL with Pythae's, and both with the floor
(`bench/benchmarks/floor.py`), in images a second; every ratio is of timings taken in turns
(`bench/benchmarks/interleave.py`). `speed` shows the pieces of a step by prior and latent size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.benchmarks.interleave import BASELINES, FLOOR, OURS
from bench.figures.style import (
    GREY,
    LIGHT_GREY,
    MARKERS,
    NoDataError,
    add_style_legend,
    format_forest,
    format_speed_axis,
    join_facts,
    make_figure,
    make_panels,
    styles,
    theme,
    write_figure,
)
from bench.system.paths import writing
from flowvae.errors import InputError

__all__ = [
    "COMMAND",
    "draw_figures",
    "draw_races",
    "draw_speed",
    "ratio_lines",
    "read_benchmarks",
    "read_json",
    "read_races",
]


COMMAND = "pytest bench --benchmark-enable --benchmark-json FILE.json"
PIECE_COLUMNS = ("prior", "latent", "what", "device", "batch", "data", "images_per_second")
RACE_COLUMNS = ("race", "prior", "latent", "stack", "precision", "data", "device")
COLUMN_TYPES: dict[str, type] = {
    "latent": int,
    "batch": int,
    "stack": int,
    "images_per_second": float,
}
"""Types of the columns that are not text."""
PARSE_ERRORS = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Errors that JSON of another kind raises."""
RACE_UNITS = {
    "training": ("training images per second", "image"),
    "NLL": ("importance-weighted NLL, image-samples per second", "image-sample"),
}


def read_json(path: Path) -> list[dict[str, Any]]:
    """Reads the benchmarks of pytest-benchmark's JSON."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; write it with {COMMAND}"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON: write it with {COMMAND}") from None
    try:
        return [dict(benchmark) for benchmark in content["benchmarks"]]
    except PARSE_ERRORS as error:
        raise _format_error(path, error) from None


def _format_error(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is not pytest-benchmark's ({type(error).__name__}: {error}): write it with "
        f"{COMMAND}"
    )


def read_benchmarks(path: Path) -> pd.DataFrame:
    """Reads the pieces of a step from pytest-benchmark's JSON: one row a timing, in order.

    Returns:
        Columns prior, latent, what, device, batch (images), data, images_per_second,
        median_seconds, iqr_seconds, q1_seconds, q3_seconds, rounds. No row if none was timed.

    Raises:
        InputError: The file cannot be read, or is not pytest-benchmark's.
    """
    benchmarks = read_json(path)
    try:
        pieces = [b for b in benchmarks if "what" in b["extra_info"]]
        return pd.DataFrame([_piece_row(b["extra_info"], b["stats"]) for b in pieces])
    except PARSE_ERRORS as error:
        raise _format_error(path, error) from None


def _piece_row(facts: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
    row = {name: COLUMN_TYPES.get(name, str)(facts[name]) for name in PIECE_COLUMNS} | {
        "median_seconds": float(stats["median"]),
        "iqr_seconds": float(stats["iqr"]),
        "q1_seconds": float(stats["q1"]),
        "q3_seconds": float(stats["q3"]),
        "rounds": int(stats["rounds"]),
    }
    return _check_numbers(row)


def _check_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the row; raises a ValueError for a negative or infinite number."""
    for name, value in row.items():
        if not isinstance(value, str) and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}")
    return row


def read_races(path: Path) -> pd.DataFrame:
    """Reads the timings taken in turns from pytest-benchmark's JSON: one row a runner of a race.

    Returns:
        Columns race (`training` or `NLL`), prior, latent, stack, precision, data, device, what
        (`ours`, the baseline's name or `floor`), images (of a call), rounds; median_seconds,
        q1_seconds, q3_seconds of a call; images_per_second; and ratio, ratio_q1, ratio_q3: the
        runner's time for an image over ours in the same round, median and quartiles. This is our
        gain on a baseline, and the share of the floor that we reach. No row if there is no race.

    Raises:
        InputError: The file cannot be read, or is not pytest-benchmark's.
    """
    benchmarks = read_json(path)
    try:
        races = [b for b in benchmarks if "race" in b["extra_info"]]
        if others := {b["extra_info"]["race"] for b in races} - set(RACE_UNITS):
            raise ValueError(f"no race is called {min(map(str, others))}")
        rows = [row for b in races for row in _race_rows(b["extra_info"], b["stats"])]
    except PARSE_ERRORS as error:
        raise _format_error(path, error) from None
    return pd.DataFrame(rows)


def _race_rows(facts: dict[str, Any], stats: dict[str, Any]) -> list[dict[str, Any]]:
    runners = {OURS: facts | {"seconds": stats["data"]}, **facts["others"]}
    seconds = {name: np.array(runner["seconds"], float) for name, runner in runners.items()}
    calls = {name: seconds[name] / runner["calls"] for name, runner in runners.items()}
    image = {name: calls[name] / runner["images"] for name, runner in runners.items()}
    rows = []
    for name, runner in runners.items():
        row: dict[str, Any] = {
            fact: COLUMN_TYPES.get(fact, str)(facts[fact]) for fact in RACE_COLUMNS
        }
        row |= {"what": name, "images": runner["images"], "rounds": len(calls[name])}
        quartiles = np.quantile(calls[name], [0.5, 0.25, 0.75])
        row |= dict(zip(("median_seconds", "q1_seconds", "q3_seconds"), quartiles, strict=True))
        quartiles = np.quantile(image[name] / image[OURS], [0.5, 0.25, 0.75])
        row |= dict(zip(("ratio", "ratio_q1", "ratio_q3"), quartiles, strict=True))
        row["images_per_second"] = runner["images"] / row["median_seconds"]
        rows.append(_check_numbers(row))
    return rows


def _variant_label(row: pd.Series) -> str:
    return row["precision"] + (f", stack of {row['stack']}" if row["stack"] > 1 else "")


def ratio_lines(races: pd.DataFrame) -> list[str]:
    """Returns a line for each race: ours against the baseline and the floor."""
    if not len(races):
        return []
    lines = []
    for key, rows in races.groupby(list(RACE_COLUMNS), sort=False):
        kind, prior, latent = key[:3]
        named = {str(row["what"]): row for _, row in rows.iterrows()}
        ours, unit = named[OURS], RACE_UNITS[str(kind)][1]
        line = f"{kind}, {prior}, D = {latent}, {_variant_label(ours)}: "
        if kind == "training":
            one = 1e3 * ours["median_seconds"] / ours["stack"]
            line += f"{one:.3g} ms a step" + (" and model" if ours["stack"] > 1 else "") + ", "
        line += f"{ours['images_per_second']:,.0f} {unit}s a second"
        for name, row in named.items():
            speed, sides = f"{row['images_per_second']:,.0f}", (row["ratio_q1"], row["ratio_q3"])
            if name == FLOOR:
                span = "quartiles {:.0%} to {:.0%}".format(*sides)
                line += f"; {row['ratio']:.0%} of the floor ({speed}; {span})"
            elif name != OURS:
                span = "quartiles {:.3g} to {:.3g}".format(*sides)
                line += f"; {row['ratio']:.3g} times {name} ({speed}; {span})"
        lines.append(line)
    return lines


@theme()
def draw_races(races: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Draws images a second of ours, of the baseline and of the floor, a row a race.

    The axis is logarithmic: equal lengths are equal ratios. Beside each row: ours over the
    baseline, and the share of the floor.

    Arguments:
        races: The races, as `read_races` returns them.
        order: The priors of other figures, in their order, so that colours agree.
    """
    if not len(races):
        raise NoDataError("Expected at least one race; got none. Run `pytest bench`.")
    look = styles(list(dict.fromkeys([*order, *races["prior"]])))
    kinds = [kind for kind in RACE_UNITS if (races["race"] == kind).any()]
    keys = ["race", "prior", "stack", "precision"]
    counts = [
        len(races[races["race"] == kind][keys].drop_duplicates())
        + races[races["race"] == kind]["prior"].nunique()
        for kind in kinds
    ]
    latents = ", ".join(str(d) for d in sorted(races["latent"].unique()))
    note = join_facts(
        f"D = {latents}", f"median of {races['rounds'].min()} rounds or more, taken in turns",
        "images of all models of a stack count",
        "floor: the step's dense matrix products (in NLL: those of decoder and prior) "
        "and, in training, Adam; same precision and device",
        "baselines in float32" + ", Pythae's with a Gaussian prior" * ("NLL" in kinds),
        *("; ".join(races[name].unique()) for name in ("data", "device")),
    )  # fmt: skip
    figure = make_figure(6.6, 0.2 * sum(counts) + 0.75 * len(kinds) + 0.25, note)
    # panels are as high as they have rows, so that rows have equal distances
    grid = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=[c + 1.2 for c in counts])
    for ax, kind in zip(grid[:, 0], kinds, strict=True):
        _draw_race_panel(ax, races[races["race"] == kind], kind, look)
    _add_race_legend(figure, kinds)
    return figure


def _draw_race_panel(ax: Axes, races: pd.DataFrame, kind: str, look: dict[str, Any]) -> None:
    """Draws one kind of race, its rows grouped by prior."""
    ticks: list[tuple[float, str, str]] = []
    y = 0.0
    edge = ax.get_yaxis_transform()
    for prior in [p for p in look if (races["prior"] == p).any()]:
        colour = look[prior].colour
        ticks.append((y, prior, colour))
        groups = races[races["prior"] == prior].groupby(["stack", "precision"], sort=False)
        for _, rows in groups:
            y += 1
            speeds = dict(zip(rows["what"], rows["images_per_second"], strict=True))
            shares = dict(zip(rows["what"], rows["ratio"], strict=True))
            ours, floor = speeds[OURS], speeds.get(FLOOR)
            base, gain = speeds.get(BASELINES[kind]), shares.get(BASELINES[kind])
            if floor is not None:
                ax.plot([ours, floor], [y, y], color=LIGHT_GREY, lw=1.2, zorder=1)
                ax.plot(floor, y, "|", color="#222222", ms=9, mew=1.6, zorder=3)
                ax.text(
                    1.17, y, f"{shares[FLOOR]:.0%}", size=7.5, ha="right", va="center",
                    transform=edge,
                )  # fmt: skip
            if base is not None and gain is not None:
                ax.plot([base, ours], [y, y], color=colour, lw=1.8, zorder=2, alpha=0.55)
                ax.plot(base, y, "o", color=colour, mfc="white", ms=4.5, mew=1.1, zorder=3)
                ax.text(
                    1.075, y, _format_gain(gain), size=7.5, ha="right",
                    va="center", transform=edge, color=colour,
                )  # fmt: skip
            ax.plot(ours, y, "o", color=colour, ms=5.5, mec="white", mew=0.5, zorder=4)
            ticks.append((y, _variant_label(rows.iloc[0]), "#333333"))
        y += 1.25
    ax.set_ylim(y - 0.6, -0.75)
    ax.set_yticks([t[0] for t in ticks], [t[1] for t in ticks])
    for label, (_, text, colour) in zip(ax.get_yticklabels(), ticks, strict=True):
        label.set_color(colour)
        label.set_fontweight("bold" if text in look else "normal")
    ax.tick_params(axis="y", length=0)
    low, high = races["images_per_second"].min(), races["images_per_second"].max()
    ax.set_xlim(low / 1.25, high * 1.25)
    format_speed_axis(ax.xaxis)
    ax.set_xlabel(RACE_UNITS[kind][0] + "  (faster \N{RIGHTWARDS ARROW})")
    for x, head in ((1.075, "gain"), (1.17, "of floor")):
        ax.text(x, -0.02, head, size=7, ha="right", va="center", transform=edge, color=GREY)
    ax.grid(axis="x")
    sns.despine(ax=ax, left=True)


def _format_gain(ratio: float) -> str:
    return (f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}") + "\N{MULTIPLICATION SIGN}"


def _add_race_legend(figure: Figure, kinds: Sequence[str]) -> None:
    base = " / ".join(BASELINES[kind] for kind in kinds)
    dot: dict[str, Any] = {"ls": "", "color": GREY}
    handles = [
        Line2D([], [], marker="o", mfc="white", ms=4.5, mew=1.1, label=base, **dot),
        Line2D([], [], marker="o", ms=5.5, label=OURS, **dot),
        Line2D([], [], marker="|", ms=9, mew=1.6, ls="", color="#222222", label=FLOOR),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handletextpad=0.1)


@theme()
def draw_speed(benchmarks: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Draws the median time of a step with its interquartile range, prior by prior.

    Arguments:
        benchmarks: The timings, as `read_benchmarks` returns them.
        order: The priors of other figures, in their order, so that colours agree.
    """
    if not len(benchmarks):
        raise NoDataError(
            "Expected at least one benchmark; got none. Run bench/benchmarks/test_elbo_step.py."
        )
    look = styles(list(dict.fromkeys([*order, *benchmarks["prior"]])))
    labels = [p for p in look if (benchmarks["prior"] == p).any()]
    latents, kinds = sorted(benchmarks["latent"].unique()), list(dict.fromkeys(benchmarks["what"]))
    note = join_facts(
        f"median and quartiles, batch {benchmarks['batch'].iloc[0]}",
        *("; ".join(benchmarks[name].unique()) for name in ("data", "device")),
    )
    rows = max(0.24, 0.11 * len(latents) + 0.08) * len(labels)
    figure, cells = make_panels(
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
        format_forest(ax, labels, kind)
        ax.set_xlabel("ms per step  (\N{LEFTWARDS ARROW} faster)")
    cells[0].set_xlim(left=0)
    if len(latents) > 1:
        add_style_legend(figure, {}, latents)
    return figure


def draw_figures(races: pd.DataFrame, pieces: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes the figures of races and pieces, and their tables; returns the paths."""
    written = []
    with writing(f"--out {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        if len(races):
            written += write_figure(draw_races(races), folder / "races", races, dpi=200)
        if len(pieces):
            written += write_figure(draw_speed(pieces), folder / "speed", pieces, dpi=200)
    return written
