"""Draw what was measured: data in, a matplotlib Figure out, nothing kept and nothing global.

Intervals are those of `bench.stats`, never the plotting library's own; `bench.look` gives every
figure the same theme, styles and footer, `bench.comparisons` draws the differences between priors,
`bench.capacity` what their size brings, `bench.anatomy` what numbers are made of, `bench.troubles`
what went wrong, `bench.galleries` the models themselves. A figure that needs `stats.summary`
computes it, unless it is passed as `table`: `draw_all` does so once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from . import stats
from .anatomy import elbo_surgery, estimate_by_samples, parted
from .capacity import nll_by_parameters
from .clipping import BEYOND, beyond, is_far, limit, span
from .comparisons import interval_widths, joint_post_hoc, pair_matrix, paired_difference
from .galleries import (
    latent_maps,
    manifold_table,
    map_table,
    prior_manifold,
    sample_sheet,
    sample_table,
)
from .labels import beside, direct_labels, dodge
from .levels import PACE, UNSCORED, alone, timed_on, with_spans
from .look import (
    BELOW_THREE,
    COLUMN,
    CROSS,
    DOT,
    EDGED,
    FAINT,
    HALO,
    LOST,
    MARKERS,
    NLL,
    PAGE,
    SOFT,
    NoDataError,
    Style,
    arms,
    blank,
    crosses,
    footer,
    inches,
    key_height,
    latent_axis,
    legend,
    one_arm_each,
    panels,
    styles,
    theme,
    untimed,
    write,
)
from .troubles import find, troubles

__all__ = [
    "FIGURES",
    "draw_all",
    "elbo_curves",
    "nll_by_latent",
    "rate_distortion",
    "throughput_nll",
]


@theme()
def nll_by_latent(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw the test NLL by latent size and prior, with t intervals over seeds and every seed."""
    table, look = arms(frame, table=table), styles(stats.priors(frame))
    latents = sorted(int(d) for d in table["latent"].unique())
    if not (table["seeds"] > 0).any():
        raise NoDataError("Expected a complete trial with a test NLL; got none.")
    note = footer(frame) + f"{DOT}bars: 95 % t interval over seeds, test images fixed"
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    runs = stats.settle(frame)
    runs = runs[runs["status"] == "complete"]
    most = limit(runs["test/nll"])
    far = is_far(runs["test/nll"], most).any()
    note += f"{DOT}{BEYOND}" if far else ""
    names, high = inches(look, 8), 0.16 * len(look)  # at the right
    wide = 2.1 + 0.12 * len(look) * len(latents) + names
    figure = blank(min(max(COLUMN, wide), PAGE), max(2.7, 1.0 + high), note)
    ax = figure.subplots()
    ends: dict[str, tuple[float, float]] = {}
    for (label, style), shift in zip(look.items(), dodge(latents, len(look)), strict=True):
        rows = table[table["prior"] == label].sort_values("latent")
        x, colour = rows["latent"] * shift, style.colour
        y = rows["nll"].mask(is_far(rows["nll"], most))
        half = np.abs(rows[["nll_low", "nll_high"]].to_numpy().T - y.to_numpy())
        each = runs[runs["prior"] == label]
        ax.scatter(each["latent"] * shift, each["test/nll"], s=9, color=colour, alpha=0.3, lw=0)
        ax.errorbar(
            x, y, half, color=colour, ls=style.dash, marker=style.marker, ms=4.5,
            mew=0.4 if style.face == colour else 1, mfc=style.face,
            mec="white" if style.face == colour else colour,
            elinewidth=1.1, capsize=2, label=label,
        )  # fmt: skip
        for latent, seeds in each["test/nll"].groupby(each["latent"]):
            if is_far(seeds, most).any():
                value = seeds.mean() if is_far(seeds.mean(), most) else seeds.abs().max()
                beyond(ax, latent * shift, value, colour, inside=0.05)
        lost = x[rows["diverged"] > 0]
        crosses(ax, lost, [colour] * len(lost))
        if (seen := rows["nll"].dropna()).size:
            ends[label] = (float(x[seen.index[-1]]), float(seen.iloc[-1]))
        elif len(lost):
            ends[label] = (float(lost.iloc[-1]), np.inf)  # its last cross
    latent_axis(ax, latents)
    room = 2**0.35
    ax.set(xlim=(latents[0] / room, latents[-1] * room), ylabel=NLL)
    ax.margins(y=0.12)
    if far:
        ax.set_ylim(*span(runs["test/nll"], table[["nll_low", "nll_high"]], most=most))
    ax.grid(axis="y")
    sns.despine(ax=ax)
    direct_labels(ax, ends, look)
    return figure


@theme()
def elbo_curves(frame: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw training and validation ELBO by epoch: faint lines the seeds, and their mean."""
    one_arm_each(frame)
    known = set(curves["metric"]) if len(curves) else set()
    parts = [m for m in ("train/elbo", "valid/elbo") if m in known]
    if not parts:
        raise NoDataError("Expected curves of train/elbo or valid/elbo; got neither.")
    runs, look = stats.settle(frame), styles(stats.priors(frame))
    data = curves.merge(runs[["run_id", "status"]], on="run_id")
    data["value"] = data["value"].where(data["value"].abs() < 1e300)
    ends = data[data["status"] == "complete"].groupby(["run_id", "metric"])["value"].last()
    most = limit(ends)
    latents = sorted(data["latent"].unique())
    across = min(len(latents), 4)
    blocks = [latents[k : k + across] for k in range(0, len(latents), across)]
    order = [
        (d, m) for block in blocks for m in parts for d in [*block, *[None] * across][:across]
    ]
    note = f"{footer(frame)}{DOT}thin: one seed; thick: mean over complete seeds"
    note += f"{DOT}{BEYOND}" if is_far(ends, most).any() else ""
    rows = len(order) // across
    width = COLUMN if across == 1 else PAGE
    dot: dict[str, Any] = (
        {"marker": "o", "ms": 3} if data["epoch"].nunique() == 1 else {}
    )  # no line in one point
    figure, cells = panels(
        len(order),
        note,
        size=(width / across, 1.65 + key_height(look, width) / rows),
        across=across,
        sharex=True,
    )
    for ax, (latent, metric) in zip(cells, order, strict=True):
        if latent is None:
            ax.remove()
            continue
        part = data[(data["latent"] == latent) & (data["metric"] == metric)]
        sound = part[part["status"] == "complete"]
        for label, style in look.items():
            seen = part[part["prior"] == label]
            for _, one in seen.groupby("run_id"):
                ax.plot(one["epoch"], one["value"], color=style.colour, alpha=0.28, lw=0.7, **dot)
            mean = sound[sound["prior"] == label].groupby("epoch")["value"].mean()
            ax.plot(mean.index, mean, color=style.colour, ls=style.dash, label=label, **dot)
        low, high = _robust(sound if len(sound) else part, most)
        ax.set_ylim(low, high)
        for label, style in look.items():
            mean = sound[sound["prior"] == label].groupby("epoch")["value"].mean()
            if len(mean) and is_far(mean.iloc[-1], most):
                beyond(ax, mean.index[-1], mean.iloc[-1], style.colour)
        for _, one in part[part["status"] == "diverged"].groupby("run_id"):
            end = one.sort_values("epoch").iloc[-1]
            value = end["value"] if np.isfinite(end["value"]) else low
            where = (end["epoch"], np.clip(value, low, high))
            ax.plot(*where, "x", color=look[end["prior"]].colour, **LOST)
        name = {"train/elbo": "training", "valid/elbo": "validation"}[str(metric)]
        ax.set_title(f"D = {latent}, {name}")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.grid(axis="y")
        sns.despine(ax=ax)
        if latent == latents[0] or latent in [block[0] for block in blocks]:
            ax.set_ylabel("ELBO, nats per image\n(higher is better)")
        if metric == parts[-1]:
            ax.set_xlabel("epoch")
            ax.tick_params(labelbottom=True)
    legend(figure, look)
    return figure


def _robust(curves: pd.DataFrame, most: float) -> tuple[float, float]:
    """Return y limits that the last seventy percent of training fill, not its first epochs.

    Values beyond `most` in size are left out.
    """
    begin = curves["epoch"].min() + 0.3 * np.ptp(curves["epoch"])
    late = curves["value"][curves["epoch"] >= begin].dropna()
    late = late[~is_far(late, most)]
    low, high = (late.quantile(0.02), late.max()) if len(late) else (-1.0, 0.0)
    pad = 0.08 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def _plane(
    table: pd.DataFrame, x: str, y: str, look: Mapping[str, Style], note: str
) -> tuple[Figure, Axes]:
    """Draw each prior as a path through its latent sizes: colour and dash the prior, marker D.

    Arms that are far off in x or y are left out. A bar is an interval over seeds.
    """
    latents = sorted(table["latent"].unique())
    few = len(look) <= NAMED  # which have their names beside them, and no key
    width = COLUMN if len(look) <= 5 else (5.2 if few else PAGE)
    keys = {} if few else look
    words = [*keys, *(f"D = {d}" for d in latents)]
    figure = blank(width, max(2.6, 0.55 * width) + key_height(words, width), note)
    ax = figure.subplots()
    marker = dict(zip(latents, MARKERS, strict=False))
    for label, style in look.items():
        rows = table[table["prior"] == label].sort_values("latent")
        ax.plot(rows[x], rows[y], color=style.colour, ls=style.dash, lw=1, alpha=0.75)
        for _, row in rows.iterrows():
            bar: dict[str, Any] = {"color": style.colour, "lw": 0.8, "alpha": 0.55, "gid": "span"}
            ax.plot([row[x]] * 2, [row[f"{y}_low"], row[f"{y}_high"]], **bar)
            ax.plot([row[f"{x}_low"], row[f"{x}_high"]], [row[y]] * 2, **bar)
            sign = marker[row["latent"]]
            edge = EDGED if style.face == style.colour else EDGED | {"mec": style.colour}
            ax.plot(row[x], row[y], sign, color=style.colour, ms=6, mfc=style.face, **edge)
    ax.margins(0.12)
    sns.despine(ax=ax)
    legend(figure, keys, latents)
    return figure, ax


def _named(
    figure: Figure, ax: Axes, table: pd.DataFrame, x: str, y: str, look: Mapping[str, Style]
) -> None:
    """Write each prior's name beside its path, where they are few enough to have no key."""
    if len(look) > NAMED:
        return
    table = table[table[[x, y]].notna().all(axis=1)].sort_values("latent")
    last = ~table.duplicated("prior", keep="last")
    names = table["prior"].where(last, "").tolist()
    figure.draw_without_rendering()
    beside(ax, table[[x, y]].to_numpy(), names, [look[p].colour for p in table["prior"]])


@theme()
def throughput_nll(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw training throughput against test NLL: what a prior costs beside what it brings."""
    table = _timed(arms(frame, table=table), frame)
    look, left_out = styles(stats.priors(frame)), untimed(frame)
    if not table[[SPEED, "nll"]].notna().all(axis=1).any():
        reason = f"none: {left_out}" if left_out else "none"
        raise NoDataError(f"Expected an arm with both throughput and test NLL; got {reason}.")
    timed = frame[alone(frame)]
    note = footer(frame.assign(device=timed_on(timed)))
    note += f"{DOT}bars: 95 % t intervals over seeds"
    note += f"{DOT}{left_out}" if left_out else ""
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    far = is_far(table["nll"], limit(table["nll"])) & table[SPEED].notna()
    note += f"{DOT}{BEYOND}" if far.any() else ""
    figure, ax = _plane(table[~far], SPEED, "nll", look, note)
    colours = table["prior"].map(lambda p: look[p].colour)
    for _, row in table[far].iterrows():
        beyond(ax, row[SPEED], row["nll"], look[row["prior"]].colour, inside=0.05)
    speeds = timed.groupby(["latent", "prior"])[PACE].mean()
    lost = table[table["diverged"] > 0]
    where = [
        speeds.get((d, p), np.nan) for d, p in zip(lost["latent"], lost["prior"], strict=True)
    ]
    crosses(ax, where, colours[lost.index].tolist())
    ax.set_xscale("log")
    each = timed[PACE][timed[PACE] > 0]
    low, high = float(each.min()), float(each.max())
    if high / low < 20:  # a decade's ticks alone would leave the axis without numbers
        near = high / low < 3
        ax.xaxis.set_major_locator(MaxNLocator(4) if near else LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set(xlim=(low / 1.35, high * 1.35), ylabel=NLL)
    ax.set_xlabel("training images per second  (faster \N{RIGHTWARDS ARROW})")
    ax.grid()
    _named(figure, ax, table[~far], SPEED, "nll", look)
    return figure


def _timed(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return arms with the intervals of their speed, over seeds that were timed alone."""
    settled = stats.settle(frame)
    return with_spans(table, settled[alone(settled)], {SPEED: [PACE]})


@theme()
def rate_distortion(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Draw the rate-distortion plane of the test set, with lines of equal ELBO.

    References:
        Fixing a Broken ELBO (Alemi et al., 2018)
        https://arxiv.org/abs/1711.00464
    """
    table, look = _split(arms(frame, table=table), frame), styles(stats.priors(frame))
    if not table[["rate", "distortion"]].notna().all(axis=1).any():
        raise NoDataError("Expected an arm with test rate and distortion; got none.")
    note = f"{footer(frame)}{DOT}means over complete seeds, with 95 % t intervals"
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    far = np.logical_or(*(is_far(table[name], limit(table[name])) for name in PLANE))
    note += f"{DOT}{BEYOND}" if far.any() else ""
    figure, ax = _plane(table[~far], *PLANE, look, note)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for total in MaxNLocator(7).tick_values(left + bottom, right + top):
        # from where the line enters the axes at the top or left to where it leaves them
        start, end = max(left, total - top), min(right, total - bottom)
        if end - start < 0.2 * (right - left):
            continue
        ax.plot([start, end], [total - start, total - end], color=FAINT, lw=0.8, zorder=0)
        at, side = _free_end(start, end, table["rate"], 0.02 * (right - left))
        label = f"ELBO {-total:g}".replace("-", "\N{MINUS SIGN}")
        ax.text(
            at, total - at, label, size=6.2, color=SOFT, rotation=-45, va="bottom", ha=side,
            transform_rotates_text=True, rotation_mode="anchor", path_effects=HALO, zorder=1,
        )  # fmt: skip
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set(xlabel="rate, nats per image", ylabel="distortion, nats per image")
    for k, (gid, row, words) in enumerate(_absent(table, table[far])):
        text = f"{row['prior']}, D = {row['latent']}: {words}"
        ax.text(
            0.985, 0.965 - 0.05 * k, text, color=look[row["prior"]].colour, size=7, ha="right",
            va="center", transform=ax.transAxes, path_effects=HALO, gid=gid,
        )  # fmt: skip
    _named(figure, ax, table[~far], *PLANE, look)
    return figure


def _split(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return arms with the intervals of rate and distortion."""
    return with_spans(table, stats.settle(frame), {name: [f"test/{name}"] for name in PLANE})


def _free_end(
    start: float, end: float, taken: pd.Series, pad: float
) -> tuple[float, Literal["left", "right"]]:
    """Return the end of a line that is farther from what is drawn, and where its words begin."""
    if (taken - start).abs().min() > (taken - end).abs().min():
        return start + pad, "left"
    return end - pad, "right"


def _absent(
    table: pd.DataFrame, far: pd.DataFrame
) -> Iterator[tuple[Literal["diverged", "beyond"], pd.Series, str]]:
    """Yield what has no place in the plane: lost seeds, and arms far off."""
    for _, row in table[table["diverged"] > 0].iterrows():
        tried = row["seeds"] + sum(row[status] for status in UNSCORED)
        yield "diverged", row, f"{row['diverged']} of {tried} {CROSS}"
    for _, row in far.iterrows():
        words = ", ".join(f"{name} {row[name]:.3g}" for name in PLANE)
        yield "beyond", row, f"{words} \N{RIGHTWARDS ARROW}"


NAMED = 8
"""The most priors that are named beside their paths, and not in a key."""
SPEED = PACE.removeprefix("time/")
PLANE = ("rate", "distortion")
LEVEL = ["net", "latent", "prior", "seeds", *UNSCORED]
PAIRED = [*LEVEL, "reference", "pairs", "images", "difference", "low", "high"]
COLUMNS = {
    "nll_by_latent": [*LEVEL, "nll", "nll_low", "nll_high", "rank"],
    "nll_by_parameters": [*LEVEL, "prior_parameters", "nll", "nll_low", "nll_high"],
    "paired_difference": [*PAIRED, "p", "p_holm", "df", "verdict", "seeds_needed", "note"],
    "interval_widths": [*PAIRED, "sd_seed", "sd_image", "sd_rest", "resolution"]
    + ["seeds_for_resolution", "half_width_limit"],
    "throughput_nll": [
        *LEVEL,
        SPEED,
        f"{SPEED}_low",
        f"{SPEED}_high",
        "timing",
        "timed",
        "timing_device",
    ]
    + ["nll", "nll_low", "nll_high", "device"],
    "rate_distortion": [*LEVEL, "rate", "rate_low", "rate_high"]
    + ["distortion", "distortion_low", "distortion_high", "elbo"],
    "elbo_surgery": [
        *LEVEL,
        "elbo",
        "whole_low",
        "whole_high",
        "distortion",
        "rate",
        "index_code",
        "index_code_out",
    ]
    + ["log_images", "saturated", "marginal_kl", "marginal_kl_out"]
    + ["active_units", "active_units_relative"],
}
COLUMNS["joint_post_hoc"] = COLUMNS["paired_difference"]
SPANS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]] = {
    "throughput_nll": _timed,
    "rate_distortion": _split,
    "elbo_surgery": parted,
}
"""The figures with intervals that a summary does not hold, and what adds them to it."""
EACH = {"run_id", "prior", "latent", "seed", "status", "nll_samples", "test/ess", "test/khat_high"}
"""What names a trial and its estimate in the table behind a figure of trials."""

FIGURES: dict[Callable[..., Figure], tuple[tuple[str, ...], str]] = {
    nll_by_latent: ((), "summary"),
    nll_by_parameters: ((), "summary"),
    elbo_curves: (("curves",), ""),
    paired_difference: (("loglik",), "summary"),
    pair_matrix: (("loglik",), "pairs"),
    interval_widths: (("loglik",), "summary"),
    joint_post_hoc: (("loglik",), "summary"),
    throughput_nll: ((), "summary"),
    rate_distortion: ((), "summary"),
    elbo_surgery: ((), "summary"),
    estimate_by_samples: ((), ""),
    troubles: ((), "summary"),
    latent_maps: (("maps",), ""),
    prior_manifold: (("maps",), ""),
    sample_sheet: (("samples",), ""),
}
"""Every figure of a grid, in order, with what it takes after the frame, and as its table."""


def draw_all(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]],
    curves: pd.DataFrame,
    samples: Mapping[str, NDArray[Any]],
    maps: Mapping[str, Mapping[str, NDArray[Any]]],
    folder: Path,
    *,
    resolution: float = stats.RESOLUTION,
    dpi: int = 200,
) -> list[Path]:
    """Write every figure that has data as PNG and SVG, and the table behind it as CSV.

    Where more than the latent size was crossed (nets, say), each setting gets figures of its own,
    named `nll_by_latent-net=mlp.png`. A figure without data is left out, not drawn empty.

    Returns:
        The files written, in the order of the figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = [c for c in stats.axes(frame) if c != "latent" and frame[c].nunique(dropna=False) > 1]
    parts = frame.groupby(others, dropna=False) if others else [((), frame)]
    written: list[Path] = []
    for key, part in parts:
        tail = "".join(f"-{c}={v}" for c, v in zip(others, key, strict=True))
        known: dict[str, Any] = {
            "loglik": loglik,
            "curves": curves[curves["run_id"].isin(part["run_id"])] if len(curves) else curves,
            "samples": samples,
            "maps": maps,
            "summary": stats.summary(part, loglik, resolution=resolution),
            "pairs": stats.pairs(part, loglik, resolution=resolution),
        }
        for draw, (data, table) in FIGURES.items():
            name = draw.__name__
            try:
                figure = draw(
                    part, *(known[d] for d in data), **({"table": known[table]} if table else {})
                )
            except NoDataError:
                continue
            written += write(figure, folder / f"{name}{tail}", _behind(name, part, known), dpi)
    return written


def _behind(name: str, frame: pd.DataFrame, known: Mapping[str, Any]) -> pd.DataFrame:
    """Return the numbers that a figure shows.

    Arguments:
        name: The figure's.
        frame: One row a trial.
        known: What figures take, by the names in `FIGURES`.
    """
    if name in COLUMNS:
        return SPANS.get(name, lambda table, _: table)(known["summary"], frame)[COLUMNS[name]]
    tables: dict[str, Callable[[], pd.DataFrame]] = {
        "elbo_curves": lambda: known["curves"],
        "pair_matrix": lambda: known["pairs"],
        "estimate_by_samples": lambda: _rungs(frame),
        "troubles": lambda: find(frame, known["summary"]),
        "latent_maps": lambda: map_table(frame, known["maps"]),
        "prior_manifold": lambda: manifold_table(frame, known["maps"]),
        "sample_sheet": lambda: sample_table(frame, known["samples"]),
    }
    return tables[name]()


def _rungs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each trial's estimates at every K."""
    return frame[[c for c in frame if c in EACH or str(c).startswith("test/nll_k")]]
