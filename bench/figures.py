"""Draw what was measured: data in, a matplotlib Figure out, nothing kept and nothing global.

Every figure draws the intervals of `bench.stats` (never the plotting library's own), gives a prior
the same colour, marker and dash everywhere, marks what diverged instead of dropping it, and says
in its footer which data, estimator, seeds and device it stands on. Figures are built without
pyplot: no window system is needed and none leaks. The theme holds only while a function runs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from bench import stats

__all__ = [
    "NoDataError",
    "Style",
    "draw_all",
    "elbo_curves",
    "footer",
    "latent_maps",
    "nll_by_latent",
    "paired_difference",
    "rate_distortion",
    "sample_sheet",
    "speed",
    "styles",
    "theme",
    "throughput_nll",
]

REFERENCE = "#3b3b3b"
# Okabe and Ito (2008) without its yellow, which vanishes on white, then two of Tol's muted scheme
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#332288")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "H", "8")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
CLASSES = "#4477AA #EE6677 #228833 #C9A227 #35B0D6 #AA3377 #EE7733 #009988 #7A1F3D #7B5BD6".split()
DOT, CROSS = " \N{MIDDLE DOT} ", "\N{MULTIPLICATION SIGN}"
HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]
LOST: dict[str, Any] = {"ms": 5, "mew": 1.5, "clip_on": False, "zorder": 5, "gid": "diverged"}
EDGED: dict[str, Any] = {"mec": "white", "mew": 0.6, "zorder": 4}
SOFT, FAINT = "#666666", "#d4d4d4"
NLL = "test NLL, nats per image\n(lower is better)"
BELOW_THREE = "fewer than three seeds: no interval over seeds"
RC = {
    "axes.edgecolor": "#444444",
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.size": 8.5,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "flowvae",  # the same figure, the same file
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    **{f"{axis}tick.major.{k}": v for axis in "xy" for k, v in (("size", 3), ("width", 0.7))},
}


class NoDataError(ValueError):
    """A figure has nothing to show: `draw_all` leaves it out."""


class Style(NamedTuple):
    """How a prior looks, in every figure."""

    colour: str
    marker: str
    dash: Any


@contextmanager
def theme() -> Iterator[None]:
    """Apply the look of all figures for as long as the block (or the decorated function) runs."""
    look: Any = {**sns.axes_style("ticks"), **sns.plotting_context("paper"), **RC}
    with mpl.rc_context(look):
        yield


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a fixed style for each prior; "gauss" is dark grey, the others coloured."""
    found, others = {}, 0
    for k, label in enumerate(labels):
        colour = REFERENCE if label == "gauss" else COLOURS[others % len(COLOURS)]
        others += label != "gauss"
        found[label] = Style(colour, MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)])
    return found


def _words(values: Iterable[Any]) -> str:
    """Return numbers as a short list: 0-4 for a run of them, else 0, 2, 5."""
    found = sorted(set(values))
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]}\N{EN DASH}{found[-1]}"
    return ", ".join(str(v) for v in found)


def footer(frame: pd.DataFrame) -> str:
    """Return what every figure carries: data, estimator, recipe, seeds, device, losses."""
    row = frame.iloc[0]
    facts = [f"{row['dataset']}, {row['binarise']} binarisation"]
    facts.append(f"NLL by importance weighting with K = {row['nll_samples']}")
    names = {"net": "net", "epochs": "epochs", "precision": "precision"}
    facts += [f"{n} {_words(frame[c].unique())}" for c, n in names.items() if c in frame]
    seeds = frame["seed"].unique()
    facts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {_words(seeds)}")
    if "device" in frame:
        facts.append("; ".join(dict.fromkeys(frame["device"].dropna().astype(str))))
    for status, sign in (("diverged", f"{CROSS} "), ("failed", "")):
        lost = frame[frame["status"] == status]
        if len(lost):
            arms = lost.groupby(["prior", "latent"], sort=False).size()
            each = [f"{p} at D = {d} ({n})" for p, d, n in arms.reset_index().to_numpy()]
            more = f" and {len(each) - 4} more" if len(each) > 4 else ""
            facts.append(f"{sign}{status}: {', '.join(each[:4])}{more}")
    return DOT.join(facts)


def _lines(note: str, width: int) -> list[str]:
    """Break a footer between its facts where possible, at `width` characters."""
    lines = [""]
    for fact in note.split(DOT):
        if len(lines[-1]) + len(fact) + len(DOT) <= width:
            lines[-1] += DOT * bool(lines[-1]) + fact
        else:
            lines += textwrap.wrap(fact, width)
    return [line for line in lines if line]


def _figure(width: float, height: float, note: str) -> Figure:
    """Return a figure of that many inches, `note` set small along its foot."""
    lines = _lines(note, int(width * 20.5))
    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Figure((width, height + 0.12 * len(lines)), layout=engine)
    figure.supxlabel("\n".join(lines), x=0.012, ha="left", size=6.3, color=SOFT, linespacing=1.35)
    return figure


def _panels(
    count: int,
    note: str,
    *,
    size: tuple[float, float],
    across: int = 4,
    extra: float = 0,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels of `size` inches, at most `across` in a row."""
    columns = min(count, across)
    rows = -(-count // columns)
    figure = _figure(max(size[0] * columns + extra, 3.4), size[1] * rows, note)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).ravel()
    for spare in grid[count:]:
        spare.remove()
    return figure, list(grid[:count])


def _arms(frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]] | None = None) -> pd.DataFrame:
    """Return `stats.summary`, refusing two arms of one prior at one latent size."""
    table = stats.summary(frame, loglik or {})
    if table.duplicated(["latent", "prior"]).any():
        varying = [c for c in stats.axes(frame) if c != "latent" and frame[c].nunique() > 1]
        raise ValueError(
            f"Expected one arm a prior and latent size; got several, by {', '.join(varying)}. "
            "Draw one figure for each value."
        )
    return table


def _latent_axis(ax: Axes, latents: Sequence[int]) -> None:
    """Make the x axis logarithmic, with ticks at the latent sizes that were run and no others."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(list(latents)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel("latent size D")


def _dodge(latents: Sequence[int], count: int) -> NDArray[np.float64]:
    """Return `count` factors that set priors apart at one latent size, (count,)."""
    gap = min(np.diff(np.log2(sorted(latents))), default=1.0)
    return 2 ** (np.linspace(-1, 1, count) * min(0.05 * (count - 1), 0.22) * min(gap, 1))


def _spread(wanted: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Return positions at least `gap` apart, in the order of `wanted` and as near as is simple."""
    order = np.argsort(wanted)
    steps = np.arange(len(wanted)) * gap
    placed = np.maximum.accumulate(wanted[order] - steps) + steps
    out = np.empty_like(placed)
    out[order] = placed - (placed - wanted[order]).mean()
    return out


def _direct_labels(
    ax: Axes, ends: Mapping[str, tuple[float, float]], look: Mapping[str, Style]
) -> None:
    """Write each prior's name at the right of the axes, tied to the end of its line."""
    height = ax.get_figure(root=True).get_size_inches()[1] * 0.72  # type: ignore[union-attr]
    low, high = ax.get_ylim()
    heights = np.minimum([y for _, y in ends.values()], low + 0.975 * (high - low))
    spread = _spread((heights - low) / (high - low), 0.145 / height)
    for (label, (x, _)), y, at in zip(ends.items(), heights, spread, strict=True):
        line = {"arrowstyle": "-", "lw": 0.5, "alpha": 0.6, "color": look[label].colour}
        line |= {"shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)}
        ax.annotate(
            label, (x, float(y)), (1.04, float(at)), textcoords="axes fraction", size=8,
            color=look[label].colour, va="center", arrowprops=line,
        )  # fmt: skip


def _crosses(ax: Axes, x: Iterable[float], colours: Iterable[str]) -> None:
    """Mark diverged trials at the upper edge of the axes, where no number can stand."""
    for at, colour in zip(x, colours, strict=True):
        ax.plot(at, 0.975, "x", color=colour, transform=ax.get_xaxis_transform(), **LOST)


def _legend(figure: Figure, look: Mapping[str, Style], latents: Sequence[int] = ()) -> None:
    """Put the key at the right: priors by colour and dash, latent sizes by marker."""
    handles = [Line2D([], [], color=s.colour, ls=s.dash, label=p) for p, s in look.items()]
    for d, marker in zip(latents, MARKERS, strict=False):
        handles.append(Line2D([], [], color=SOFT, ls="", marker=marker, ms=4.5, label=f"D = {d}"))
    figure.legend(handles=handles, loc="outside right upper", handlelength=2.6)


def _forest(ax: Axes, labels: Sequence[str], title: str) -> None:
    """Make a panel of one row a label, values along x."""
    ax.set_title(title)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelbottom=True)
    ax.grid(axis="x")
    sns.despine(ax=ax, left=True)


@theme()
def nll_by_latent(frame: pd.DataFrame) -> Figure:
    """Draw the test NLL by latent size and prior, with t intervals over seeds and every seed."""
    table, look = _arms(frame), styles(stats.priors(frame))
    latents = sorted(int(d) for d in table["latent"].unique())
    if not (table["seeds"] > 0).any():
        raise NoDataError("Expected a complete trial with a test NLL; got none.")
    note = footer(frame) + f"{DOT}bars: 95 % t interval over seeds, test images fixed"
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    figure = _figure(5.4, 3.3, note)
    ax = figure.subplots()
    runs = stats.settle(frame)
    ends: dict[str, tuple[float, float]] = {}
    for (label, style), shift in zip(look.items(), _dodge(latents, len(look)), strict=True):
        rows = table[table["prior"] == label].sort_values("latent")
        x, colour = rows["latent"] * shift, style.colour
        half = np.abs(rows[["nll_low", "nll_high"]].to_numpy().T - rows["nll"].to_numpy())
        each = runs[(runs["prior"] == label) & (runs["status"] == "complete")]
        ax.scatter(each["latent"] * shift, each["test/nll"], s=9, color=colour, alpha=0.3, lw=0)
        ax.errorbar(
            x, rows["nll"], half, color=colour, ls=style.dash, marker=style.marker, ms=4.5,
            mew=0.4, mec="white", elinewidth=1.1, capsize=2, label=label,
        )  # fmt: skip
        lost = x[rows["diverged"] > 0]
        _crosses(ax, lost, [colour] * len(lost))
        if (seen := rows["nll"].dropna()).size:
            ends[label] = (float(x[seen.index[-1]]), float(seen.iloc[-1]))
        elif len(lost):
            ends[label] = (float(lost.iloc[-1]), np.inf)  # its last cross
    _latent_axis(ax, latents)
    room = 2**0.35
    ax.set(xlim=(latents[0] / room, latents[-1] * room), ylabel=NLL)
    ax.margins(y=0.12)
    ax.grid(axis="y")
    sns.despine(ax=ax)
    _direct_labels(ax, ends, look)
    return figure


@theme()
def elbo_curves(frame: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw training and validation ELBO by epoch: faint lines the seeds, and their mean."""
    _arms(frame)
    known = set(curves["metric"]) if len(curves) else set()
    parts = [m for m in ("train/elbo", "valid/elbo") if m in known]
    if not parts:
        raise NoDataError("Expected curves of train/elbo or valid/elbo; got neither.")
    runs, look = stats.settle(frame), styles(stats.priors(frame))
    data = curves.merge(runs[["run_id", "status"]], on="run_id")
    data["value"] = data["value"].where(data["value"].abs() < 1e300)
    latents = sorted(data["latent"].unique())
    across = min(len(latents), 4)
    blocks = [latents[k : k + across] for k in range(0, len(latents), across)]
    order = [
        (d, m) for block in blocks for m in parts for d in [*block, *[None] * across][:across]
    ]
    note = f"{footer(frame)}{DOT}thin: one seed; thick: mean over complete seeds"
    figure, cells = _panels(
        len(order), note, size=(2.05, 1.75), across=across, extra=1.6, sharex=True
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
                ax.plot(one["epoch"], one["value"], color=style.colour, alpha=0.28, lw=0.7)
            mean = sound[sound["prior"] == label].groupby("epoch")["value"].mean()
            ax.plot(mean.index, mean, color=style.colour, ls=style.dash, label=label)
        low, high = _robust(sound if len(sound) else part)
        ax.set_ylim(low, high)
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
    _legend(figure, look)
    return figure


def _robust(curves: pd.DataFrame) -> tuple[float, float]:
    """Return y limits that the last seventy percent of training fill, not its first epochs."""
    begin = curves["epoch"].min() + 0.3 * np.ptp(curves["epoch"])
    late = curves["value"][curves["epoch"] >= begin].dropna()
    low, high = (late.quantile(0.02), late.max()) if len(late) else (-1.0, 0.0)
    pad = 0.08 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


@theme()
def paired_difference(frame: pd.DataFrame, loglik: Mapping[str, NDArray[Any]]) -> Figure:
    """Draw the paired difference in NLL to the reference with its crossed-effects interval."""
    table, first = _arms(frame, loglik), stats.reference(frame)
    look = styles(stats.priors(frame))
    table = table[table["prior"] != first]
    if not (table["pairs"] > 0).any():
        raise NoDataError(f"Expected a prior with complete pairs to {first}; got none.")
    labels = [p for p in look if p != first]
    latents, most = sorted(table["latent"].unique()), table["pairs"].max()
    note = f"{footer(frame)}{DOT}bars: 95 % t interval, not adjusted, seeds and images random"
    note += f"{DOT}filled: resolved (Holm-adjusted p < 0.05); hollow: not resolved"
    note += f"{DOT}{BELOW_THREE}" if (table["pairs"] < 3).any() else ""
    height = 0.85 + 0.25 * max(len(labels), 2)
    figure, cells = _panels(
        len(latents), note, size=(1.75, height), extra=1.2, sharey=True, sharex=True
    )
    for ax, latent in zip(cells, latents, strict=True):
        ax.axvline(0, color=look[first].colour, lw=0.9, zorder=1)
        for _, row in table[table["latent"] == latent].iterrows():
            y, style = labels.index(row["prior"]), look[row["prior"]]
            solid = row["verdict"] in ("better", "worse")
            ax.plot([row["low"], row["high"]], [y, y], color=style.colour, lw=1.3, zorder=2)
            ax.plot(
                row["difference"], y, style.marker, ms=5.5, mec=style.colour, mew=1.2, zorder=3,
                mfc=style.colour if solid else "white", gid="resolved" if solid else "open",
            )  # fmt: skip
            edge = ax.get_yaxis_transform()
            if row["diverged"]:
                ax.plot(0.96, y, "x", color=style.colour, transform=edge, **LOST)
            if row["pairs"] < most:
                n = f"n = {row['pairs']}"
                ax.text(0.92, y, n, size=6.3, color=SOFT, va="center", ha="right", transform=edge)
        _forest(ax, labels, f"D = {latent}")
    low, high = cells[0].get_xlim()
    for ax in cells:
        ax.axvspan(min(low, 0), 0, color="#eef5ee", zorder=0, lw=0)
    room = 0.3 if (table["pairs"] < most).any() else 0.04  # for the cross and n of a lost pair
    cells[0].set_xlim(min(low, 0), max(high, 0) + room * (high - low))
    figure.suptitle(
        f"NLL minus that of {first}, nats per image  (\N{LEFTWARDS ARROW} better)", size=9
    )
    return figure


def _plane(
    table: pd.DataFrame, x: str, y: str, look: Mapping[str, Style], note: str
) -> tuple[Figure, Axes]:
    """Draw each prior as a path through its latent sizes: colour and dash the prior, marker D."""
    entries = len(look) + table["latent"].nunique()
    figure = _figure(5.5, max(3.3, 0.19 * entries), note)
    ax = figure.subplots()
    latents = sorted(table["latent"].unique())
    marker = dict(zip(latents, MARKERS, strict=False))
    for label, style in look.items():
        rows = table[table["prior"] == label].sort_values("latent")
        ax.plot(rows[x], rows[y], color=style.colour, ls=style.dash, lw=1, alpha=0.75)
        for _, row in rows.iterrows():
            sign = marker[row["latent"]]
            ax.plot(row[x], row[y], sign, color=style.colour, ms=6, **EDGED)
    ax.margins(0.12)
    sns.despine(ax=ax)
    _legend(figure, look, latents)
    return figure, ax


@theme()
def throughput_nll(frame: pd.DataFrame) -> Figure:
    """Draw training throughput against test NLL: what a prior costs beside what it brings."""
    table, look = _arms(frame), styles(stats.priors(frame))
    if not table[["images_per_second", "nll"]].notna().all(axis=1).any():
        raise NoDataError("Expected an arm with both throughput and test NLL; got none.")
    note = f"{footer(frame)}{DOT}bars: 95 % t interval of the NLL over seeds"
    note += f"{DOT}{BELOW_THREE}" if (table["seeds"] < 3).any() else ""
    figure, ax = _plane(table, "images_per_second", "nll", look, note)
    colours = table["prior"].map(lambda p: look[p].colour)
    bars = (table["images_per_second"], table["nll_low"], table["nll_high"])
    ax.vlines(*bars, colours.tolist(), lw=1)
    timed = frame["time/images_per_second"].groupby([frame["latent"], frame["prior"]]).mean()
    lost = table[table["diverged"] > 0]
    where = [timed.get((d, p), np.nan) for d, p in zip(lost["latent"], lost["prior"], strict=True)]
    _crosses(ax, where, colours[lost.index].tolist())
    ax.set_xscale("log")
    low, high = float(timed.min()), float(timed.max())
    if high / low < 20:  # a decade's ticks alone would leave the axis without numbers
        near = high / low < 3
        ax.xaxis.set_major_locator(MaxNLocator(4) if near else LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.set(xlim=(low / 1.35, high * 1.35), ylabel=NLL)
    ax.set_xlabel("training images per second and model  (faster \N{RIGHTWARDS ARROW})")
    ax.grid()
    return figure


@theme()
def rate_distortion(frame: pd.DataFrame) -> Figure:
    """Draw the rate-distortion plane of the test set, with lines of equal ELBO.

    References:
        Fixing a Broken ELBO (Alemi et al., 2018)
        https://arxiv.org/abs/1711.00464
    """
    table, look = _arms(frame), styles(stats.priors(frame))
    if not table[["rate", "distortion"]].notna().all(axis=1).any():
        raise NoDataError("Expected an arm with test rate and distortion; got none.")
    note = f"{footer(frame)}{DOT}means over complete seeds"
    figure, ax = _plane(table, "rate", "distortion", look, note)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for total in MaxNLocator(7).tick_values(left + bottom, right + top):
        # from where the line enters the axes at the top or left to where it leaves them
        start, end = max(left, total - top), min(right, total - bottom)
        if end - start < 0.2 * (right - left):
            continue
        ax.plot([start, end], [total - start, total - end], color=FAINT, lw=0.8, zorder=0)
        at = end - 0.02 * (right - left)
        label = f"ELBO {-total:g}".replace("-", "\N{MINUS SIGN}")
        ax.text(
            at, total - at, label, size=6.5, color=SOFT, rotation=-45, va="bottom", ha="right",
            transform_rotates_text=True, rotation_mode="anchor", path_effects=HALO,
        )  # fmt: skip
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set(xlabel="rate, nats per image", ylabel="distortion, nats per image")
    for k, (_, row) in enumerate(table[table["diverged"] > 0].iterrows()):
        tried = row["seeds"] + row["diverged"] + row["failed"]
        note = f"{row['prior']}, D = {row['latent']}: {row['diverged']} of {tried} {CROSS}"
        ax.text(
            0.985, 0.965 - 0.05 * k, note, color=look[row["prior"]].colour, size=7, ha="right",
            va="center", transform=ax.transAxes, path_effects=HALO, gid="diverged",
        )  # fmt: skip
    return figure


def _chosen(
    frame: pd.DataFrame, latent: int, kept: Mapping[str, Any]
) -> dict[str, pd.Series | None]:
    """Return one run a prior: the lowest seed that all have complete, else each prior's lowest."""
    _arms(frame)
    runs = stats.settle(frame)
    runs = runs[(runs["latent"] == latent) & (runs["status"] == "complete")]
    runs = runs[runs["run_id"].isin(list(kept))].sort_values("seed")
    common = runs.groupby("seed")["prior"].nunique()
    seed = next(iter(common.index[common == runs["prior"].nunique()]), None)
    found: dict[str, pd.Series | None] = {}
    for label in stats.priors(frame[frame["latent"] == latent]):
        mine = runs[runs["prior"] == label]
        mine = mine[mine["seed"] == seed] if (mine["seed"] == seed).any() else mine
        found[label] = mine.iloc[0] if len(mine) else None
    return found


def _titled(ax: Axes, label: str, run: pd.Series | None, colour: str) -> None:
    """Title a panel with its prior and seed, or say in it that no seed is complete."""
    ax.set(xticks=[], yticks=[])
    ax.set_title(label, color=colour, weight="bold", pad=4)
    if run is None:
        sns.despine(ax=ax, left=True, bottom=True)
        ax.text(0.5, 0.48, "no complete seed", transform=ax.transAxes, ha="center", color=SOFT)
        ax.plot(0.5, 0.62, "x", color=colour, transform=ax.transAxes, **LOST | {"ms": 14})
        return
    facts = f"seed {run['seed']}, test NLL {run['test/nll']:.1f}"
    ax.set_xlabel(facts, size=7, color=SOFT, loc="left", labelpad=3)


@theme()
def latent_maps(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]], *, points: int = 5000
) -> Figure:
    """Draw, for D = 2, posterior samples by class over the regions where each prior has its mass.

    A contour encloses the smallest region that holds a given share of the prior: priors of any
    shape and scale can be compared by eye, which contours at equal densities do not allow.
    """
    chosen = _chosen(frame, 2, maps)
    shown = {p: maps[r["run_id"]] for p, r in chosen.items() if r is not None}
    if not shown:
        raise NoDataError("Expected a complete run at D = 2 with its map; got none.")
    look, hues = styles(stats.priors(frame)), np.array(CLASSES)
    shares = np.array([0.99, 0.95, 0.8, 0.6, 0.4, 0.2])
    fills = sns.color_palette("blend:#f1f4f9,#93a5c4", len(shares))
    reach = max(float(np.quantile(np.abs(m["codes"]), 0.995)) for m in shown.values()) * 1.05
    note = DOT.join([
        footer(frame[frame["latent"] == 2]),
        "points: one posterior sample a test image, coloured by class",
        f"shades: smallest regions of prior mass {', '.join(f'{s:.2g}' for s in shares[::-1])}",
        f"every panel spans \N{PLUS-MINUS SIGN}{reach:.1f} in both latents",
    ])  # fmt: skip
    figure, cells = _panels(len(chosen), note, size=(2.35, 2.55), across=3)
    for ax, (label, run) in zip(cells, chosen.items(), strict=True):
        _titled(ax, label, run, look[label].colour)
        ax.spines[:].set_color(FAINT)
        ax.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
        if run is None:
            continue
        data = shown[label]
        codes, classes = data["codes"][:points], data["labels"][:points]
        levels = _regions(data["log_density"], shares)
        floor = np.maximum(data["log_density"], levels[0] - 20)  # contours cannot take -inf
        grid = (data["axis_x"], data["axis_y"], floor)
        ax.contourf(*grid, levels, colors=fills, extend="max")
        ax.contour(*grid, levels, colors="white", linewidths=0.7, linestyles="solid")
        ax.scatter(
            codes[:, 0], codes[:, 1], c=hues[classes], s=2.6, lw=0, alpha=0.8, rasterized=True,
            zorder=2,
        )  # fmt: skip
        for digit in np.unique(classes):
            x, y = np.median(codes[classes == digit], axis=0)
            ax.text(
                x, y, str(digit), size=9, weight="bold", color=hues[digit], ha="center",
                va="center", clip_on=True, path_effects=HALO,
            )  # fmt: skip
    return figure


def _regions(log_density: NDArray[Any], shares: NDArray[np.float64]) -> list[float]:
    """Return the log-densities above which lie `shares` of the mass on the grid, increasing."""
    flat = np.sort(log_density[np.isfinite(log_density)].astype(np.float64))[::-1]
    mass = np.cumsum(np.exp(flat - flat[0]))
    levels = flat[np.searchsorted(mass, shares * mass[-1]).clip(max=len(flat) - 1)]
    return sorted(set(levels.tolist()))


@theme()
def sample_sheet(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], *, latent: int | None = None
) -> Figure:
    """Draw samples of each prior side by side, at `latent` or the largest size that has some."""
    some = frame[frame["run_id"].isin(list(samples))]
    if not len(some):
        raise NoDataError("Expected samples of at least one run of the frame; got none.")
    latent = int(some["latent"].max()) if latent is None else latent
    chosen = _chosen(frame, latent, samples)
    if not any(run is not None for run in chosen.values()):
        raise NoDataError(f"Expected samples of a complete run at D = {latent}; got none.")
    look = styles(stats.priors(frame))
    here = frame[frame["latent"] == latent]
    note = f"D = {latent}{DOT}{footer(here)}{DOT}pixel probabilities, first draws, none chosen"
    figure, cells = _panels(len(chosen), note, size=(2.2, 2.35), across=3)
    for ax, (label, run) in zip(cells, chosen.items(), strict=True):
        _titled(ax, label, run, look[label].colour)
        if run is not None:
            ax.imshow(_mosaic(samples[run["run_id"]]), cmap="Greys", vmin=0, vmax=1)
            sns.despine(ax=ax, left=True, bottom=True)
        ax.set_aspect("equal")
    return figure


def _mosaic(images: NDArray[Any], most: int = 8) -> NDArray[Any]:
    """Return the first images (n, H, W) as one square sheet of at most `most` rows."""
    side = max(1, min(most, int(np.sqrt(len(images)))))
    padded = np.pad(images[: side * side], ((0, 0), (1, 1), (1, 1)))
    _, h, w = padded.shape
    return padded[: side * side].reshape(-1, side, h, w).swapaxes(1, 2).reshape(-1, side * w)


@theme()
def speed(benchmarks: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Draw the median time of a step with its interquartile range, prior by prior.

    Arguments:
        benchmarks: Columns prior, latent, what, median_seconds, iqr_seconds, device (one row a
            timing).
        order: The priors of the other figures, in their order, so that colours agree.
    """
    if not len(benchmarks):
        raise NoDataError(
            "Expected at least one benchmark; got none. Run bench/test_elbo_step.py."
        )
    look = styles(list(dict.fromkeys([*order, *benchmarks["prior"]])))
    labels = [p for p in look if (benchmarks["prior"] == p).any()]
    latents, kinds = sorted(benchmarks["latent"].unique()), list(dict.fromkeys(benchmarks["what"]))
    devices = "; ".join(dict.fromkeys(benchmarks["device"].astype(str)))
    note = f"median and interquartile range, by pytest-benchmark{DOT}{devices}"
    rows = max(0.24, 0.11 * len(latents) + 0.08) * len(labels)
    figure, cells = _panels(
        len(kinds), note, size=(1.9, 0.95 + rows), extra=1.2, sharey=True, sharex=True
    )
    shift = np.linspace(-0.3, 0.3, len(latents)) if len(latents) > 1 else np.zeros(1)
    for ax, kind in zip(cells, kinds, strict=True):
        for row in benchmarks[benchmarks["what"] == kind].itertuples(index=False):
            k = latents.index(row.latent)
            ax.errorbar(
                1e3 * row.median_seconds, labels.index(row.prior) + shift[k],
                xerr=1e3 * row.iqr_seconds / 2, color=look[row.prior].colour, marker=MARKERS[k],
                ms=4.5, mew=0.5, mec="white", elinewidth=1.2, capsize=2,
            )  # fmt: skip
        _forest(ax, labels, kind)
        ax.set_xlabel("ms per step  (\N{LEFTWARDS ARROW} faster)")
    cells[0].set_xlim(left=0)
    if len(latents) > 1:
        _legend(figure, {}, latents)
    return figure


LEVEL = ["net", "latent", "prior", "seeds", "diverged", "failed"]
COLUMNS = {
    "nll_by_latent": [*LEVEL, "nll", "nll_low", "nll_high", "rank"],
    "paired_difference": [*LEVEL, "reference", "pairs", "difference", "low", "high"]
    + ["p", "p_holm", "df", "verdict", "seeds_needed", "note"],
    "throughput_nll": [*LEVEL, "images_per_second", "nll", "nll_low", "nll_high", "device"],
    "rate_distortion": [*LEVEL, "rate", "distortion", "elbo"],
}


def _write(figure: Figure, stem: Path, data: pd.DataFrame | None, dpi: int) -> list[Path]:
    """Write PNG, SVG and (where there is a table) CSV; return what was written."""
    written = [stem.with_name(f"{stem.name}.{end}") for end in ("png", "svg")]
    with theme():
        figure.savefig(written[0], dpi=dpi)
        figure.savefig(written[1], dpi=dpi, metadata={"Date": None})
    if data is not None:
        written.append(stem.with_name(f"{stem.name}.csv"))
        data.to_csv(written[-1], index=False)
    return written


def draw_all(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]],
    curves: pd.DataFrame,
    samples: Mapping[str, NDArray[Any]],
    maps: Mapping[str, Mapping[str, NDArray[Any]]],
    folder: Path,
    *,
    benchmarks: pd.DataFrame | None = None,
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
        table = stats.summary(part, loglik)
        mine = curves[curves["run_id"].isin(part["run_id"])] if len(curves) else curves
        for draw, data in (
            (nll_by_latent, ()),
            (elbo_curves, (mine,)),
            (paired_difference, (loglik,)),
            (throughput_nll, ()),
            (rate_distortion, ()),
            (latent_maps, (maps,)),
            (sample_sheet, (samples,)),
        ):
            try:
                figure = draw(part, *data)
            except NoDataError:
                continue
            behind = table[COLUMNS[draw.__name__]] if draw.__name__ in COLUMNS else None
            behind = mine if draw is elbo_curves else behind
            written += _write(figure, folder / f"{draw.__name__}{tail}", behind, dpi)
    if benchmarks is not None and len(benchmarks):
        figure = speed(benchmarks, stats.priors(frame))
        written += _write(figure, folder / "speed", benchmarks, dpi)
    return written
