"""How every figure looks, and what all of them carry.

A prior has the same colour, marker and dash everywhere; what diverged is marked, not dropped; a
footer names data, estimator, seeds and device. Figures are built without pyplot: no window system
is needed and none leaks. The theme holds only while a function runs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from bench.statistics import comparison, frames
from bench.statistics.arms import POST_HOC, prior_spec
from bench.statistics.captions import CROSS, DOT, counted_by_arm, estimator
from flowvae.trial import Trial, field_info

__all__ = [
    "BELOW_THREE",
    "CLASSES",
    "COLOURS",
    "COLUMN",
    "EDGED",
    "FAINT",
    "HALO",
    "LOST",
    "MARKERS",
    "NLL",
    "PAGE",
    "SOFT",
    "NoDataError",
    "Style",
    "arms",
    "blank",
    "crosses",
    "footer",
    "forest",
    "inches",
    "key",
    "key_height",
    "latent_axis",
    "legend",
    "losses",
    "one_arm_each",
    "panels",
    "rows_beside",
    "styles",
    "theme",
    "write",
]


COLUMN, PAGE = 3.4, 7.0
"""Inches: how wide a figure may be in one column of a paper, and across both."""
REFERENCE = "#3b3b3b"
# Okabe and Ito (2008) without its yellow, which vanishes on white, two of Tol's muted scheme,
# and what lies between them
COLOURS = tuple(
    "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #882255 #332288 "
    "#8F8B22 #9A3FB0 #7A4E2D #5FA62B #E4576C #2FA8A0".split()
)
MARKERS: tuple[Any, ...] = (
    *("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "H", "8"),
    *((4, 1, 0), (6, 1, 0), (3, 1, 0), (8, 1, 0), (7, 1, 0)),  # stars of 4, 6, ... points
)
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (2.4, 1.2)))
DOTTED = (0, (0.6, 1.1))
# colour, and the numbers of marker and dash: a prior looks the same in all figures, whatever else
# stands in them; priors that are often compared lie far apart
LOOKS = {
    "gauss": (REFERENCE, 0, 0),
    "diagonal": ("#949494", 4, 1),
    "gmm": ("#009E73", 3, 3),
    "vamp": ("#CC79A7", 5, 4),
    "exemplar": ("#E69F00", 6, 0),
    "lars": ("#56B4E9", 9, 2),
    "nice": ("#882255", 7, 0),
    "realnvp": ("#332288", 8, 3),
    "maf": ("#0072B2", 1, 1),
    "iaf": ("#2FA8A0", 10, 4),
    "nsf": ("#D55E00", 2, 2),
    "sospf": ("#8F8B22", 11, 0),
    "bpf": ("#9A3FB0", 12, 1),
    "naf": ("#7A4E2D", 13, 2),
    "unaf": ("#5FA62B", 14, 3),
    "cnf": ("#E4576C", 15, 4),
}
CLASSES = "#4477AA #EE6677 #228833 #C9A227 #35B0D6 #AA3377 #EE7733 #009988 #7A1F3D #7B5BD6".split()
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
    """How a prior looks, in every figure; `face` fills the markers of its own line."""

    colour: str
    marker: str
    dash: Any
    face: str


@contextmanager
def theme() -> Iterator[None]:
    """Apply the look of all figures for as long as the block (or the decorated function) runs."""
    look: Any = {**sns.axes_style("ticks"), **sns.plotting_context("paper"), **RC}
    with mpl.rc_context(look):
        yield


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style for each arm: a registered prior's own, in whatever company it stands.

    Arms of one prior with other options have shades of its colour, and dashes and markers of their
    own; an arm "maf post-hoc" has colour and marker of "maf", a dotted line and empty markers. A
    prior of someone else's takes what is left.
    """
    families: dict[str, list[str]] = {}
    for label in dict.fromkeys(label.removesuffix(POST_HOC) for label in labels):
        families.setdefault(prior_spec(label).name, []).append(label)
    known = [LOOKS[name] for name in families if name in LOOKS]
    colours = _left(COLOURS, [colour for colour, _, _ in known])
    markers = _left(MARKERS, [MARKERS[k] for _, k, _ in known])
    found = {}
    for number, (name, members) in enumerate(families.items()):
        own = name in LOOKS
        colour, first, dash = LOOKS[name] if own else (next(colours), 0, number)
        members.sort(key=lambda label: label != name)  # the prior as it is comes first
        for k, label in enumerate(members):
            shade = _shade(colour, k / max(len(members) - 1, 1))
            marker = MARKERS[first] if own and k == 0 else next(markers)
            found[label] = Style(shade, marker, DASHES[(dash + k) % len(DASHES)], shade)
    for label in labels:
        if label.endswith(POST_HOC):
            joint = found[label.removesuffix(POST_HOC)]
            found[label] = joint._replace(dash=DOTTED, face="white")
    return {label: found[label] for label in labels}


def _left(everything: Sequence[Any], taken: Sequence[Any]) -> Iterator[Any]:
    """Return what is not taken, over and over; all of it where nothing is left."""
    return cycle([one for one in everything if one not in taken] or everything)


def _shade(colour: str, share: float) -> str:
    """Return a colour, the more unlike the larger the share, and never too pale for white."""
    rgb = to_rgb(colour)
    end = 1.0 if np.dot(rgb, (0.299, 0.587, 0.114)) < 0.5 else 0.0  # towards white, or black
    r, g, b = (part + 0.4 * share * (end - part) for part in rgb)
    return to_hex((r, g, b)) if share else colour


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
    facts.append(f"NLL by importance weighting with {estimator(row)}")
    names = [name for name, info in field_info(Trial).items() if info.in_footer and name in frame]
    facts += [f"{name} {_words(frame[name].unique())}" for name in names]
    seeds = frame["seed"].unique()
    facts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {_words(seeds)}")
    if "device" in frame:
        facts.append("; ".join(dict.fromkeys(frame["device"].dropna().astype(str))))
    settled = frames.validate(frame)
    for status, sign in (("diverged", f"{CROSS} "), ("failed", ""), ("missing", "")):
        lost = settled[settled["status"] == status]
        if len(lost):
            facts.append(f"{sign}{status}: {counted_by_arm(lost)}")
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


def blank(width: float, height: float, note: str) -> Figure:
    """Return a figure of that many inches, `note` set small along its foot."""
    lines = _lines(note, int(width * 20.5))
    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Figure((width, height + 0.12 * len(lines)), layout=engine)
    figure.supxlabel("\n".join(lines), x=0.012, ha="left", size=6.3, color=SOFT, linespacing=1.35)
    return figure


def panels(
    count: int,
    note: str,
    *,
    size: tuple[float, float],
    across: int = 4,
    extra: float = 0,
    sharex: bool = False,
    sharey: bool | Literal["row"] = False,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels of `size` inches, at most `across` in a row.

    Their widths have `ratios`, if any.
    """
    columns = min(count, across)
    rows = -(-count // columns)
    figure = blank(max(size[0] * columns + extra, 3.4), size[1] * rows, note)
    grid = figure.subplots(
        rows, columns, squeeze=False, sharex=sharex, sharey=sharey, width_ratios=ratios
    ).ravel()
    for spare in grid[count:]:
        spare.remove()
    return figure, list(grid[:count])


def one_arm_each(frame: pd.DataFrame) -> None:
    """Refuse two arms of one prior at one latent size: a figure has one place for both."""
    others = [c for c in frames.axes(frame) if c != "latent"]
    settings = frame[["latent", "prior", *others]].drop_duplicates()
    if settings.duplicated(["latent", "prior"]).any():
        varying = [c for c in others if frame[c].nunique(dropna=False) > 1]
        raise ValueError(
            f"Expected one arm a prior and latent size; got several, by {', '.join(varying)}. "
            "Draw one figure for each value."
        )


def arms(
    frame: pd.DataFrame,
    loglik: Mapping[str, NDArray[Any]] | None = None,
    table: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return `table`, or else `stats.summary`, refusing two arms of one prior at one size."""
    one_arm_each(frame)
    return comparison.summary(frame, loglik or {}) if table is None else table


def latent_axis(ax: Axes, latents: Sequence[int]) -> None:
    """Make the x axis logarithmic, with ticks at the latent sizes that were run and no others."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(list(latents)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel("latent size D")


def crosses(ax: Axes, x: Iterable[float], colours: Iterable[str]) -> None:
    """Mark diverged trials at the upper edge of the axes, where no number can stand.

    One whose place along x is not known is named in the footer alone.
    """
    for at, colour in zip(x, colours, strict=True):
        if np.isfinite(at):
            ax.plot(at, 0.975, "x", color=colour, transform=ax.get_xaxis_transform(), **LOST)


def legend(figure: Figure, look: Mapping[str, Style], latents: Sequence[int] = ()) -> None:
    """Put the key above the panels: priors by colour and dash, latent sizes by marker."""
    handles = [Line2D([], [], color=s.colour, ls=s.dash, label=p) for p, s in look.items()]
    for d, marker in zip(latents, MARKERS, strict=False):
        handles.append(Line2D([], [], color=SOFT, ls="", marker=marker, ms=4.5, label=f"D = {d}"))
    key(figure, handles)


def key(figure: Figure, handles: Sequence[Artist], title: str = "") -> None:
    """Put a key above the panels, in as many columns as have room."""
    labels = [str(handle.get_label()) for handle in handles]
    title = textwrap.fill(title, int((figure.get_figwidth() - 0.2) / inches(["x"], 9)))
    figure.legend(
        handles=handles, loc="outside upper left", title=title or None, title_fontsize=9,
        alignment="left", ncols=_columns(labels, figure.get_figwidth()), handlelength=2.2,
        columnspacing=1.5, borderpad=0.2,
    )  # fmt: skip


def key_height(labels: Iterable[str], width: float) -> float:
    """Return the inches that a key of these labels takes above panels of that many inches."""
    return 0.08 + 0.165 * -(-len(known := list(labels)) // _columns(known, width))


def _columns(labels: Sequence[str], width: float) -> int:
    return min(len(labels), max(1, int((width - 0.1) / (0.55 + inches(labels, 8)))))


def inches(labels: Iterable[str], points: float) -> float:
    """Return how long the longest of some words is at most, nearly."""
    return 0.0082 * points * max(map(len, labels), default=0)


def rows_beside(
    labels: Sequence[str], count: int, *, each: float, least: float, more: float = 0.0
) -> tuple[float, int]:
    """Return the inches of a figure of `count` panels `forest`, and how many have room in a row.

    Arguments:
        labels: The names at the left of a row.
        count: The number of panels.
        each: The inches of a panel where there is room.
        least: The inches of a panel that can be read.
        more: The inches that all take besides.
    """
    names = 0.25 + inches(labels, _small(labels)) + more
    across = min(count, 4, max(1, int((PAGE - names) / least)))
    return min(PAGE, max(COLUMN, names + across * each)), across


def _small(labels: Iterable[str]) -> float:
    """Return the points of the names at the left of a row: smaller where one is long."""
    longest = max(map(len, labels), default=0)
    return 8.0 if longest <= 16 else (7.0 if longest <= 26 else 6.3)


def forest(
    ax: Axes, labels: Sequence[str], title: str, look: Mapping[str, Style] | None = None
) -> None:
    """Make a panel of one row a label, values along x; names have the colours of `look`."""
    ax.set_title(title)
    ax.set_yticks(range(len(labels)), labels, size=_small(labels))
    # where panels share their rows, only the first has names
    for text, label in zip(ax.get_yticklabels(), labels, strict=False):
        text.set_color(look[label].colour if look and label in look else "black")
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelbottom=True)
    ax.grid(axis="x")
    sns.despine(ax=ax, left=True)


def losses(ax: Axes, row: pd.Series, y: float, colour: str, most: int = 0) -> None:
    """Mark at the right of its row an arm that lost seeds, and the pairs left if below `most`."""
    edge = ax.get_yaxis_transform()
    if row["diverged"]:
        ax.plot(0.96, y, "x", color=colour, transform=edge, **LOST)
    if row["pairs"] < most:
        n = f"n = {row['pairs']}"
        ax.text(0.92, y, n, size=6.3, color=SOFT, va="center", ha="right", transform=edge)


def write(figure: Figure, stem: Path, data: pd.DataFrame | None, dpi: int) -> list[Path]:
    """Write PNG, SVG and (where there is a table) CSV; return what was written."""
    written = [stem.with_name(f"{stem.name}.{end}") for end in ("png", "svg")]
    with theme():
        # by the canvases: `savefig` draws twice where it lays out, and lays out each file
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(written[0])
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(written[1], metadata={"Date": None})
    if data is not None:
        written.append(stem.with_name(f"{stem.name}.csv"))
        data.to_csv(written[-1], index=False)
    return written
