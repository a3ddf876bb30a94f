"""Models side by side, prior by prior: samples, latent maps, manifolds, and the tables of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from . import stats
from .clipping import limit
from .labels import apart
from .levels import UNSCORED
from .look import (
    CLASSES,
    COLUMN,
    DOT,
    FAINT,
    HALO,
    LOST,
    PAGE,
    SOFT,
    NoDataError,
    footer,
    one_arm_each,
    panels,
    styles,
    theme,
)
from .pictures import REAL
from .wording import nats

__all__ = [
    "latent_maps",
    "manifold_table",
    "map_table",
    "prior_manifold",
    "sample_sheet",
    "sample_table",
]

SIDE = 8
"""The most images in a row of a sheet, and rows of them."""
POINTS = 5000
"""The most points in a map."""
SAME = 2.5
"""How many times as far as another a map may reach for both to have one scale."""
NAMED = 12
"""The most classes that are named in a map."""
SHADES, EDGE = "blend:#f2f3f6,#a7b1c4", "#7f899c"
"""The tints of a prior's mass, outermost first, and its outline."""
GUTTER = (226, 229, 235)
"""The colour between images, 0 to 255."""


def _chosen(
    frame: pd.DataFrame, latent: int, kept: Mapping[str, Any]
) -> dict[str, pd.Series | None]:
    """Return one run a prior: the lowest seed that all have complete, else each prior's lowest."""
    one_arm_each(frame)
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


class _Sheet(NamedTuple):
    """Square panels with a title each: their figure, inches, and points of the titles."""

    figure: Figure
    cells: list[Axes]
    width: float
    titles: list[str]
    size: float


def _sheet(labels: Sequence[str], note: str) -> _Sheet:
    """Return a figure of square panels, one a label, whose titles are the labels in lines.

    They fill the width of a page, in rows as even as can be; two or fewer fill that of a column.
    """
    count = len(labels)
    across = min((4, 3, 5), key=lambda k: (-(-count // k) * k - count, k != 4))
    across = count if count <= 4 else (5 if count > 12 else across)
    width = (COLUMN if count <= 2 else PAGE) / across - 0.1
    titles = [_lines(label, int(14 * width)) for label in labels]
    longest = max(len(line) for lines in titles for line in lines)
    rows = [max(map(len, titles[k : k + across])) for k in range(0, count, across)]
    high = width + 0.25 + 0.135 * sum(rows) / len(rows)
    figure, cells = panels(count, note, size=(width + 0.1, high), across=across)
    size = max(6.2, min(9.0, 95 * width / longest))
    return _Sheet(figure, cells, width, ["\n".join(lines) for lines in titles], size)


def _lines(label: str, most: int) -> list[str]:
    """Return a label in lines: where it is long, its options have their own, of `most` letters."""
    if len(label) <= most:
        return [label]
    name, bracket, options = label.partition("[")
    lines = [""]
    for part in (bracket + options).replace(",", ",\n").splitlines():
        if len(lines[-1]) + len(part) <= most:
            lines[-1] += part
        else:
            lines.append(part)
    return [name, *filter(None, lines)]


def _fill(sheet: _Sheet, k: int, run: pd.Series | None, arm: pd.DataFrame, colour: str) -> Axes:
    """Title panel `k` with its prior, and say which run it is of, or why there is none.

    Arguments:
        sheet: The panels.
        k: The number of this one.
        run: The run that is shown, if any.
        arm: All runs of the prior at this latent size.
        colour: The prior's.
    """
    ax = sheet.cells[k]
    ax.set(xticks=[], yticks=[])
    ax.set_title(
        sheet.titles[k], color=colour, weight="bold", pad=4, size=sheet.size, linespacing=1.1
    )
    if run is None:
        sns.despine(ax=ax, left=True, bottom=True)
        lost = arm["status"].value_counts()
        told = [f"{lost[s]} of {len(arm)} {s}" for s in UNSCORED if s in lost]
        words = "\n".join(["no complete seed", *told] if len(told) else ["no pictures kept"])
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "top"}
        ax.text(0.5, 0.52, words, color=SOFT, size=7, linespacing=1.5, gid="absent", **place)
        if "diverged" in lost:
            ax.plot(0.5, 0.64, "x", color=colour, transform=ax.transAxes, **LOST | {"ms": 12})
        return ax
    _fact(ax, f"seed {run['seed']}, test NLL {nats(run['test/nll'], '.1f')}")
    return ax


def _fact(ax: Axes, words: str) -> None:
    """Write a line below a panel."""
    ax.set_xlabel(words, size=6.5, color=SOFT, loc="left", labelpad=3)


def _shown(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]], what: str
) -> tuple[dict[str, pd.Series | None], dict[str, Mapping[str, NDArray[Any]]]]:
    """Return the run of each prior at D = 2, and the maps of those that have `what`."""
    kept = {run: arrays for run, arrays in maps.items() if what in arrays}
    chosen = _chosen(frame, 2, kept)
    shown = {p: kept[r["run_id"]] for p, r in chosen.items() if r is not None}
    if not shown:
        raise NoDataError(f"Expected a complete run at D = 2 with its {what}; got none.")
    return chosen, shown


@theme()
def latent_maps(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]], *, points: int = POINTS
) -> Figure:
    """Draw, for D = 2, posterior samples by class over the regions where each prior has its mass.

    A contour encloses the smallest region that holds a given share of the prior: priors of any
    shape and scale can be compared by eye, which contours at equal densities do not allow.
    """
    chosen, shown = _shown(frame, maps, "codes")
    look, hues = styles(stats.priors(frame)), np.array(CLASSES)
    here = stats.settle(frame[frame["latent"] == 2])
    shares = np.array([0.99, 0.95, 0.8, 0.6, 0.4, 0.2])
    reach, out = _spans(shown)
    alike = len(set(reach.values())) == 1
    classes = {int(c) for m in shown.values() for c in np.unique(m["labels"])}
    told = f"{', coloured by class' if len(classes) > 1 else ''}"
    told += f" ({len(hues)} colours in turn)" if len(classes) > len(hues) else ""
    note = DOT.join([
        footer(here),
        f"points: one posterior sample a test image{told}",
        f"shades: smallest regions of prior mass {', '.join(f'{s:.2g}' for s in shares[::-1])}",
        f"every panel spans \N{PLUS-MINUS SIGN}{max(reach.values()):.1f} in both latents"
        if alike
        else "panels have spans of their own: see the numbers in each",
        *([f"points further out, or no numbers: {', '.join(out)}"] if out else []),
    ])  # fmt: skip
    sheet = _sheet(list(chosen), note)
    for k, (label, run) in enumerate(chosen.items()):
        ax = _fill(sheet, k, run, here[here["prior"] == label], look[label].colour)
        ax.spines[:].set_color(FAINT)
        ax.set_aspect("equal")
        if run is None:
            continue
        far = reach[label]
        ax.set(xlim=(-far, far), ylim=(-far, far))
        data = shown[label]
        known = np.isfinite(data["codes"][:points]).all(axis=1)
        codes, labels = data["codes"][:points][known], data["labels"][:points][known].astype(int)
        _shade(ax, data, shares)
        # the more there are, the smaller: what lies below is to be seen between them
        size = sheet.width * np.clip(60 / np.sqrt(max(len(codes), 1)), 0.5, 1.5)
        ax.scatter(
            codes[:, 0], codes[:, 1], c=hues[labels % len(hues)], s=size, lw=0, alpha=0.75,
            rasterized=True, zorder=2,
        )  # fmt: skip
        letter = float(np.clip(4.8 * sheet.width, 6.2, 8.5))
        named = [c for c in sorted(classes) if (labels == c).any()]
        if 1 < len(classes) <= NAMED:
            medians = [np.median(codes[labels == c], axis=0) for c in named]
            places = np.reshape(medians, (-1, 2))
            places = apart(places, gap=2 * far * 0.115 / sheet.width, most=0.93 * far)
            for c, (x, y) in zip(named, places, strict=True):
                ax.text(
                    x, y, str(c), size=letter, weight="bold", color=hues[c % len(hues)],
                    ha="center", va="center", clip_on=True, path_effects=HALO, zorder=4,
                )  # fmt: skip
        if not alike or label == next(iter(shown)):
            _scale(ax, far)
    return sheet.figure


def _spans(
    shown: Mapping[str, Mapping[str, NDArray[Any]]],
) -> tuple[dict[str, float], list[str]]:
    """Return how far each panel reaches, and the priors with points further out.

    All reach as far as the farthest, unless the nearest would be but a dot then.
    """
    each = {label: _reach(arrays["codes"]) for label, arrays in shown.items()}
    most = limit(list(each.values()), least=1)
    near = [r for r in each.values() if r <= most < np.inf] or [3.0]
    far = 1.05 * max(near)
    out = [label for label, r in each.items() if r > far]
    if max(near) <= SAME * min(near):
        return dict.fromkeys(each, far), out
    return {label: far if label in out else 1.05 * r for label, r in each.items()}, out


def _scale(ax: Axes, reach: float) -> None:
    """Write numbers along the inner edges of a panel: they hold for all."""
    ticks = np.asarray(MaxNLocator(4, symmetric=True).tick_values(-reach, reach))
    ticks = ticks[np.abs(ticks) < 0.9 * reach]
    words = [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks]
    ax.set_axisbelow(False)  # else the shades hide them
    ax.set_xticks(ticks, words, path_effects=HALO)
    ax.set_yticks(ticks, words, path_effects=HALO, ha="left")
    ax.tick_params(direction="in", size=2.5, labelsize=6, color=SOFT, labelcolor=SOFT)
    ax.tick_params(axis="x", pad=-10)
    ax.tick_params(axis="y", pad=-4)


def map_table(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]], *, points: int = POINTS
) -> pd.DataFrame:
    """Return the points that `latent_maps` draws: prior, seed, image, x, y, label.

    The density below them is in each run's artifact `pictures/latent_map.npz`.
    """
    chosen, shown = _shown(frame, maps, "codes")
    tables = []
    for label, data in shown.items():
        x, y = np.asarray(data["codes"][:points], np.float64).round(4).T
        rows = {"prior": label, "seed": _seed(chosen[label]), "image": np.arange(len(x))}
        tables.append(pd.DataFrame(rows | {"x": x, "y": y, "label": data["labels"][:points]}))
    return pd.concat(tables, ignore_index=True)


def _seed(run: pd.Series | None) -> int:
    assert run is not None, "A prior that is shown has a run."
    return int(run["seed"])


def _reach(codes: NDArray[Any]) -> float:
    """Return how far from zero nearly all codes, (N, 2), lie; infinity where none is a number."""
    sizes = np.abs(codes[np.isfinite(codes)])
    return float(np.quantile(sizes, 0.995)) if len(sizes) else float("inf")


def _shade(ax: Axes, data: Mapping[str, NDArray[Any]], shares: NDArray[np.float64]) -> None:
    """Shade where a prior has its mass, if the grid shows it."""
    levels = _regions(data["log_density"], shares)
    if len(levels) < 2:  # all mass in one point of the grid, or no density that is a number
        return
    # contours cannot take what is not finite
    floor = np.nan_to_num(data["log_density"], nan=-np.inf).clip(levels[0] - 20, levels[-1] + 20)
    grid = (data["axis_x"], data["axis_y"], floor)
    ax.contourf(*grid, levels, colors=sns.color_palette(SHADES, len(levels)), extend="max")
    ax.contour(*grid, levels, colors="white", linewidths=0.5, linestyles="solid")
    # and the outermost over the points, however many
    ax.contour(*grid, levels[:1], colors=EDGE, linewidths=0.6, linestyles="solid", zorder=3)


def _regions(log_density: NDArray[Any], shares: NDArray[np.float64]) -> list[float]:
    """Return the log-densities above which lie `shares` of the mass on the grid, increasing."""
    flat = np.sort(log_density[np.isfinite(log_density)].astype(np.float64))[::-1]
    if not len(flat):
        return []
    mass = np.cumsum(np.exp(flat - flat[0]))
    levels = flat[np.searchsorted(mass, shares * mass[-1]).clip(max=len(flat) - 1)]
    return sorted(set(levels.tolist()))


def _sampled(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], latent: int | None
) -> tuple[int, dict[str, pd.Series | None]]:
    """Return a latent size with samples, the largest where none is given, and a run a prior."""
    frame = stats.settle(frame)
    some = frame[frame["run_id"].isin(list(samples)) & (frame["status"] == "complete")]
    if not len(some):
        raise NoDataError("Expected samples of a complete run of the frame; got none.")
    latent = int(some["latent"].max()) if latent is None else latent
    chosen = _chosen(frame, latent, samples)
    if not any(run is not None for run in chosen.values()):
        raise NoDataError(f"Expected samples of a complete run at D = {latent}; got none.")
    return latent, chosen


@theme()
def sample_sheet(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], *, latent: int | None = None
) -> Figure:
    """Draw samples of each prior side by side, after test images where there are some.

    They are those at `latent`, or at the largest size that has some.
    """
    latent, chosen = _sampled(frame, samples, latent)
    look, real = styles(stats.priors(frame)), samples.get(REAL)
    frame = stats.settle(frame)
    here = frame[frame["latent"] == latent]
    note = f"D = {latent}{DOT}{footer(here)}{DOT}pixel probabilities, first draws, none chosen"
    before = [REAL] if real is not None else []
    sheet = _sheet([*before, *chosen], note)
    if real is not None:
        first = sheet.cells[0]
        _show(first, _square(real))
        first.set_title(REAL, weight="bold", pad=4, size=sheet.size)
        _fact(first, f"the first {_square(real).shape[0] ** 2}")
    for k, (label, run) in enumerate(chosen.items(), len(before)):
        ax = _fill(sheet, k, run, here[here["prior"] == label], look[label].colour)
        if run is not None:
            _show(ax, _square(samples[run["run_id"]]))
        ax.set_aspect("equal")
    return sheet.figure


def sample_table(
    frame: pd.DataFrame, samples: Mapping[str, NDArray[Any]], *, latent: int | None = None
) -> pd.DataFrame:
    """Return what `sample_sheet` draws: prior, seed, image, and pixels `p0` on.

    Pixels are probabilities in percent, row by row; test images have no seed.
    """
    _, chosen = _sampled(frame, samples, latent)
    real = {REAL: (pd.NA, samples[REAL])} if REAL in samples else {}
    drawn = {p: (_seed(r), samples[r["run_id"]]) for p, r in chosen.items() if r is not None}
    tables = []
    for label, (seed, images) in (real | drawn).items():
        flat = _square(images).reshape(-1, images[0].size)
        rows = {"prior": label, "seed": seed, "image": np.arange(len(flat))}
        tables.append(pd.concat([pd.DataFrame(rows), _pixels(flat)], axis=1))
    return pd.concat(tables, ignore_index=True).astype({"seed": "Int64"})


@theme()
def prior_manifold(frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]]) -> Figure:
    """Draw, for D = 2, what the decoder makes of points that part each prior into equal masses.

    References:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), figure 4
        https://arxiv.org/abs/1312.6114
    """
    chosen, shown = _shown(frame, maps, "manifold")
    look, here = styles(stats.priors(frame)), stats.settle(frame[frame["latent"] == 2])
    side = len(next(iter(shown.values()))["manifold"])
    note = DOT.join([
        footer(here),
        f"pixel probabilities at {side} by {side} points of equal prior mass",
        "to the right: quantiles of the first latent; upwards: of the second, given the first",
    ])  # fmt: skip
    sheet = _sheet(list(chosen), note)
    for k, (label, run) in enumerate(chosen.items()):
        ax = _fill(sheet, k, run, here[here["prior"] == label], look[label].colour)
        if run is not None:
            _show(ax, shown[label]["manifold"][::-1] / 255, gutter=0)
        ax.set_aspect("equal")
    return sheet.figure


def manifold_table(
    frame: pd.DataFrame, maps: Mapping[str, Mapping[str, NDArray[Any]]]
) -> pd.DataFrame:
    """Return what `prior_manifold` draws: prior, seed, quantiles u and v, x and y, pixels."""
    chosen, shown = _shown(frame, maps, "manifold")
    tables = []
    for label, data in shown.items():
        side = len(data["manifold"])
        v, u = ((np.indices((side, side)) + 0.5) / side).round(4).reshape(2, -1)
        x, y = data["places"].reshape(-1, 2).astype(np.float64).round(4).T
        rows = {"prior": label, "seed": _seed(chosen[label]), "u": u, "v": v, "x": x, "y": y}
        pixels = _pixels(data["manifold"].reshape(side * side, -1) / 255)
        tables.append(pd.concat([pd.DataFrame(rows), pixels], axis=1))
    return pd.concat(tables, ignore_index=True)


def _pixels(flat: NDArray[Any]) -> pd.DataFrame:
    """Return a column a pixel, its probability in percent: a print tells no more apart."""
    percent = (100 * np.nan_to_num(flat)).round().astype(int)
    return pd.DataFrame(percent, columns=[f"p{k}" for k in range(flat.shape[1])])


def _square(images: NDArray[Any]) -> NDArray[Any]:
    """Return the first images (n, H, W) in rows of a square of at most `SIDE`, (s, s, H, W)."""
    side = max(1, min(SIDE, int(np.sqrt(len(images)))))
    return images[: side * side].reshape(side, -1, *images.shape[1:])


def _show(ax: Axes, images: NDArray[Any], gutter: float = 0.07) -> None:
    """Show rows of images, and nothing of the axes around them."""
    ax.imshow(_mosaic(images, gutter), interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _mosaic(images: NDArray[Any], gutter: float) -> NDArray[np.uint8]:
    """Return rows of images (r, c, H, W) in [0, 1] as one, black on white, (h, w, 3).

    Pixels are magnified to squares that stay sharp when the sheet is scaled to its place, with
    gutters of that share of an image.
    """
    rows, columns, height, width = images.shape
    factor = max(2, -(-96 // max(height, width)))
    big = images.repeat(factor, axis=2).repeat(factor, axis=3)
    gap = round(gutter * factor * max(height, width))
    grey = (255 * (1 - np.nan_to_num(big).clip(0, 1))).astype(np.uint8)
    h, w = factor * height + gap, factor * width + gap
    page = np.empty((rows, h, columns, w, 3), np.uint8)
    page[:] = GUTTER
    page[:, gap:, :, gap:] = grey.swapaxes(1, 2)[..., None]
    whole = np.empty((rows * h + gap, columns * w + gap, 3), np.uint8)
    whole[:] = GUTTER
    whole[: rows * h, : columns * w] = page.reshape(rows * h, columns * w, 3)
    return whole
