"""Style shared by all figures: theme, colours, footer, panels, legends.

A prior has the same colour, marker and dash in every figure. Diverged trials are marked, not
dropped. A footer names data, estimator, seeds and device. Figures are built without pyplot, so
they need no window system; the theme is in force only while a figure is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bench.statistics import frames
from bench.statistics.analysis import Analysis
from bench.statistics.arms import POST_HOC, prior_spec
from bench.statistics.captions import CROSS, DOT, FEW_SEEDS, counted_by_arm, estimator_settings
from bench.statistics.formatting import thousands
from flowvae.trial import Trial, field_info

__all__ = [
    "CLASS_COLOURS",
    "COLOURS",
    "COLUMN_INCHES",
    "GREY",
    "HALO",
    "LIGHT_GREY",
    "LOST_MARK",
    "MARKERS",
    "NLL_LABEL",
    "PAGE_INCHES",
    "WHITE_EDGE",
    "NoDataError",
    "Style",
    "add_legend",
    "add_style_legend",
    "check_one_arm_per_size",
    "few_seeds_note",
    "fit_forest",
    "footer",
    "format_forest",
    "format_latent_axis",
    "format_speed_axis",
    "join_facts",
    "legend_inches",
    "make_figure",
    "make_panels",
    "mark_diverged",
    "mark_lost_seeds",
    "set_log_ticks",
    "styles",
    "summarise_arms",
    "text_inches",
    "theme",
    "with_minus",
    "write_figure",
]


COLUMN_INCHES, PAGE_INCHES = 3.4, 7.0
"""Widths of a figure: one column of a paper, and both."""

GREY, LIGHT_GREY = "#666666", "#d4d4d4"
COLOURS = tuple(
    "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #882255 #332288 "
    "#8F8B22 #9A3FB0 #7A4E2D #5FA62B #E4576C #2FA8A0".split()
)
"""Okabe and Ito (2008) without yellow, which is invisible on white, two colours of Tol's muted
scheme, and colours between these."""
CLASS_COLOURS = (
    "#4477AA #EE6677 #228833 #C9A227 #35B0D6 #AA3377 #EE7733 #009988 #7A1F3D #7B5BD6".split()
)
MARKERS: tuple[Any, ...] = (
    *("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "H", "8"),
    *((4, 1, 0), (6, 1, 0), (3, 1, 0), (8, 1, 0), (7, 1, 0)),  # stars of 4, 6, ... points
)
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (2.4, 1.2)))
POST_HOC_DASH = (0, (0.6, 1.1))
PRIOR_LOOKS = {
    "gauss": ("#3b3b3b", 0, 0),
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
"""Colour, and indices of marker and dash, of each registered prior, so that it looks the same in
all figures. Priors that are often compared differ most."""

HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]
LOST_MARK: dict[str, Any] = {"ms": 5, "mew": 1.5, "clip_on": False, "zorder": 5, "gid": "diverged"}
WHITE_EDGE: dict[str, Any] = {"mec": "white", "mew": 0.6, "zorder": 4}
NLL_LABEL = "test NLL, nats per image\n(lower is better)"
RC_PARAMS = {
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
    "svg.hashsalt": "flowvae",  # equal figures give equal files
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    **{f"{axis}tick.major.{k}": v for axis in "xy" for k, v in (("size", 3), ("width", 0.7))},
}


class NoDataError(ValueError):
    """Raised by a figure that has nothing to show; `draw_all` leaves it out."""


class Style(NamedTuple):
    """Look of a prior in every figure; `face` fills the markers of its line."""

    colour: str
    marker: str
    dash: Any
    face: str


@contextmanager
def theme() -> Iterator[None]:
    """Applies the theme while the block (or the decorated function) runs."""
    settings: Any = {**sns.axes_style("ticks"), **sns.plotting_context("paper"), **RC_PARAMS}
    with mpl.rc_context(settings):
        yield


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Returns a style for each arm; that of a registered prior does not depend on the others.

    Arms of one prior with different options have shades of its colour, and dashes and markers of
    their own. An arm "maf post-hoc" has the colour and marker of "maf", a dotted line and empty
    markers. A prior that is not registered takes colours and markers that are not in use.
    """
    families: dict[str, list[str]] = {}
    for label in dict.fromkeys(label.removesuffix(POST_HOC) for label in labels):
        families.setdefault(prior_spec(label).name, []).append(label)
    registered = [PRIOR_LOOKS[name] for name in families if name in PRIOR_LOOKS]
    colours = _unused(COLOURS, [colour for colour, _, _ in registered])
    markers = _unused(MARKERS, [MARKERS[k] for _, k, _ in registered])
    style_of = {}
    for number, (name, members) in enumerate(families.items()):
        own = name in PRIOR_LOOKS
        colour, first, dash = PRIOR_LOOKS[name] if own else (next(colours), 0, number)
        members.sort(key=lambda label: label != name)  # the prior without options comes first
        for k, label in enumerate(members):
            shade = _vary_colour(colour, k / max(len(members) - 1, 1))
            marker = MARKERS[first] if own and k == 0 else next(markers)
            style_of[label] = Style(shade, marker, DASHES[(dash + k) % len(DASHES)], shade)
    for label in labels:
        if label.endswith(POST_HOC):
            joint = style_of[label.removesuffix(POST_HOC)]
            style_of[label] = joint._replace(dash=POST_HOC_DASH, face="white")
    return {label: style_of[label] for label in labels}


def _unused(choices: Sequence[Any], used: Sequence[Any]) -> Iterator[Any]:
    """Returns the choices that are not used, in a cycle; all choices where every one is used."""
    return cycle([choice for choice in choices if choice not in used] or choices)


def _vary_colour(colour: str, share: float) -> str:
    """Returns a colour that differs more the larger the share, and is never too pale for white."""
    rgb = to_rgb(colour)
    end = 1.0 if np.dot(rgb, (0.299, 0.587, 0.114)) < 0.5 else 0.0  # towards white, or black
    r, g, b = (part + 0.4 * share * (end - part) for part in rgb)
    return to_hex((r, g, b)) if share else colour


def _number_list(values: Iterable[Any]) -> str:
    """Returns numbers as a short list: 0-4 for consecutive ones, else 0, 2, 5."""
    numbers = sorted(set(values))
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}\N{EN DASH}{numbers[-1]}"
    return ", ".join(str(number) for number in numbers)


def join_facts(*facts: str) -> str:
    """Returns the facts of a footer as one text, without the empty ones."""
    return DOT.join(filter(None, facts))


def footer(trials: pd.DataFrame) -> str:
    """Returns the facts that all figures name: data, estimator, recipe, seeds, device, losses."""
    row = trials.iloc[0]
    facts = [f"{row['dataset']}, {row['binarise']} binarisation"]
    facts.append(f"NLL by {estimator_settings(row)}")
    recipe = [
        name for name, info in field_info(Trial).items() if info.in_footer and name in trials
    ]
    facts += [f"{column} {_number_list(trials[column].unique())}" for column in recipe]
    seeds = trials["seed"].unique()
    facts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {_number_list(seeds)}")
    if "device" in trials:
        facts.append("; ".join(dict.fromkeys(trials["device"].dropna().astype(str))))
    for status, sign in (("diverged", f"{CROSS} "), ("failed", ""), ("missing", "")):
        lost = trials[trials["status"] == status]
        if len(lost):
            facts.append(f"{sign}{status}: {counted_by_arm(lost)}")
    return join_facts(*facts)


def few_seeds_note(counts: pd.Series) -> str:
    """Returns the note of a footer where an arm has too few seeds for an interval, else ''."""
    return FEW_SEEDS if (counts < 3).any() else ""


def _wrap_facts(note: str, width: int) -> list[str]:
    """Returns the lines of a footer, broken between facts where possible, at `width` letters."""
    lines = [""]
    for fact in note.split(DOT):
        if len(lines[-1]) + len(fact) + len(DOT) <= width:
            lines[-1] += DOT * bool(lines[-1]) + fact
        else:
            lines += textwrap.wrap(fact, width)
    return [line for line in lines if line]


def make_figure(width: float, height: float, note: str) -> Figure:
    """Returns an empty figure of `width` by `height` inches, with `note` as a footer below it."""
    lines = _wrap_facts(note, int(width * 20.5))
    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Figure((width, height + 0.12 * len(lines)), layout=engine)
    figure.supxlabel("\n".join(lines), x=0.012, ha="left", size=6.3, color=GREY, linespacing=1.35)
    return figure


def make_panels(
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
    """Returns a figure with `count` panels of `size` inches, at most `across` in a row.

    Arguments:
        count: The number of panels.
        note: The footer.
        size: Width and height of a panel, inches.
        across: The largest number of panels in a row.
        extra: Width for a legend beside the panels, inches.
        sharex: Whether panels share the x axis.
        sharey: Whether panels share the y axis; "row" for those of one row.
        ratios: Relative widths of the columns; equal by default.
    """
    columns = min(count, across)
    rows = -(-count // columns)
    figure = make_figure(max(size[0] * columns + extra, 3.4), size[1] * rows, note)
    grid = figure.subplots(
        rows, columns, squeeze=False, sharex=sharex, sharey=sharey, width_ratios=ratios
    ).ravel()
    for spare in grid[count:]:
        spare.remove()
    return figure, list(grid[:count])


def check_one_arm_per_size(frame: pd.DataFrame) -> None:
    """Raises a ValueError for two arms of one prior at one latent size: they would coincide."""
    others = [c for c in frames.axes(frame) if c != "latent"]
    settings = frame[["latent", "prior", *others]].drop_duplicates()
    if settings.duplicated(["latent", "prior"]).any():
        varying = [c for c in others if frame[c].nunique(dropna=False) > 1]
        raise ValueError(
            "Expected one arm for each prior and latent size; got several, by "
            f"{', '.join(varying)}. Draw one figure for each value."
        )


def summarise_arms(analysis: Analysis) -> pd.DataFrame:
    """Returns the summary of an analysis, after `check_one_arm_per_size`."""
    check_one_arm_per_size(analysis.trials)
    return analysis.summary


def set_log_ticks(
    axis: Axis, ticks: Sequence[float], write: Callable[[float], str] = "{:g}".format
) -> None:
    """Makes an axis logarithmic, with these ticks and no others.

    Arguments:
        axis: `ax.xaxis` or `ax.yaxis`.
        ticks: The ticks, in data.
        write: Returns the text of a tick.
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def format_speed_axis(axis: Axis) -> None:
    """Makes an axis of speeds logarithmic; the more decades, the fewer ticks in each."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    low, high = axis.get_view_interval()
    ticks = (1, 2, 3, 4, 6, 8) if high < 9 * low else (1, 2, 5) if high < 450 * low else (1,)
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))


def format_latent_axis(ax: Axes, latents: Sequence[int]) -> None:
    """Makes the x axis logarithmic, with ticks at the latent sizes that were run."""
    set_log_ticks(ax.xaxis, latents)
    ax.set_xlabel("latent size D")


def mark_diverged(ax: Axes, x: Iterable[float], colours: Iterable[str]) -> None:
    """Marks diverged trials by crosses at the upper edge of the axes.

    A trial whose position along x is not finite appears in the footer only.
    """
    for place, colour in zip(x, colours, strict=True):
        if np.isfinite(place):
            ax.plot(
                place, 0.975, "x", color=colour, transform=ax.get_xaxis_transform(), **LOST_MARK
            )


def add_style_legend(
    figure: Figure, look: Mapping[str, Style], latents: Sequence[int] = ()
) -> None:
    """Puts a legend above the panels: priors by colour and dash, latent sizes by marker."""
    handles = [Line2D([], [], color=s.colour, ls=s.dash, label=p) for p, s in look.items()]
    for d, marker in zip(latents, MARKERS, strict=False):
        handles.append(Line2D([], [], color=GREY, ls="", marker=marker, ms=4.5, label=f"D = {d}"))
    add_legend(figure, handles)


def add_legend(figure: Figure, handles: Sequence[Artist], title: str = "") -> None:
    """Puts a legend above the panels, in as many columns as have room."""
    labels = [str(handle.get_label()) for handle in handles]
    title = textwrap.fill(title, int((figure.get_figwidth() - 0.2) / text_inches(["x"], 9)))
    figure.legend(
        handles=handles, loc="outside upper left", title=title or None, title_fontsize=9,
        alignment="left", ncols=_legend_columns(labels, figure.get_figwidth()), handlelength=2.2,
        columnspacing=1.5, borderpad=0.2,
    )  # fmt: skip


def legend_inches(labels: Iterable[str], width: float) -> float:
    """Returns the height of a legend of these labels in a figure `width` inches wide."""
    labels = list(labels)
    return 0.08 + 0.165 * -(-len(labels) // _legend_columns(labels, width))


def _legend_columns(labels: Sequence[str], width: float) -> int:
    return min(len(labels), max(1, int((width - 0.1) / (0.55 + text_inches(labels, 8)))))


def with_minus(text: str) -> str:
    """Returns a text of numbers with minus signs instead of hyphens."""
    return text.replace("-", "\N{MINUS SIGN}")


def text_inches(labels: Iterable[str], points: float) -> float:
    """Returns the approximate width of the longest label at a font size."""
    return 0.0082 * points * max(map(len, labels), default=0)


def fit_forest(
    labels: Sequence[str], count: int, *, width: float, least: float, more: float = 0.0
) -> tuple[float, int]:
    """Returns the width of a figure of `count` forest panels, inches, and the panels in a row.

    Arguments:
        labels: The names at the left of the rows.
        count: The number of panels.
        width: The width of a panel where there is room, inches.
        least: The smallest legible width of a panel, inches.
        more: Extra width of the figure, inches.
    """
    names = 0.25 + text_inches(labels, _row_label_points(labels)) + more
    across = min(count, 4, max(1, int((PAGE_INCHES - names) / least)))
    return min(PAGE_INCHES, max(COLUMN_INCHES, names + across * width)), across


def _row_label_points(labels: Iterable[str]) -> float:
    """Returns the font size of the names at the left of the rows: smaller for long names."""
    longest = max(map(len, labels), default=0)
    return 8.0 if longest <= 16 else (7.0 if longest <= 26 else 6.3)


def format_forest(
    ax: Axes, labels: Sequence[str], title: str, look: Mapping[str, Style] | None = None
) -> None:
    """Formats a panel with a row for each label and values along x.

    Arguments:
        ax: The panel.
        labels: The names of the rows, from the top.
        title: The title of the panel.
        look: The styles whose colours the names take, if any.
    """
    ax.set_title(title)
    ax.set_yticks(range(len(labels)), labels, size=_row_label_points(labels))
    # of panels that share their rows, only the first has names
    for text, label in zip(ax.get_yticklabels(), labels, strict=False):
        text.set_color(look[label].colour if look and label in look else "black")
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelbottom=True)
    ax.grid(axis="x")
    sns.despine(ax=ax, left=True)


def mark_lost_seeds(ax: Axes, row: pd.Series, y: float, colour: str, pairs: int = 0) -> None:
    """Marks, at the right of its row, an arm with diverged seeds or fewer than `pairs` pairs."""
    edge = ax.get_yaxis_transform()
    if row["diverged"]:
        ax.plot(0.96, y, "x", color=colour, transform=edge, **LOST_MARK)
    if row["pairs"] < pairs:
        n = f"n = {row['pairs']}"
        ax.text(0.92, y, n, size=6.3, color=GREY, va="center", ha="right", transform=edge)


def write_figure(figure: Figure, stem: Path, data: pd.DataFrame | None, dpi: int) -> list[Path]:
    """Writes PNG, SVG and (if there is a table) CSV; returns the paths."""
    written = [stem.with_name(f"{stem.name}.{end}") for end in ("png", "svg")]
    with theme():
        # through the canvases: `savefig` would lay out the figure again for each file
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(written[0])
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(written[1], metadata={"Date": None})
    if data is not None:
        written.append(stem.with_name(f"{stem.name}.csv"))
        data.to_csv(written[-1], index=False)
    return written
