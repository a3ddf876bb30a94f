"""Simulates whether intervals cover the truth: `python -m bench.studies.coverage [--out DIR]`.

Each simulation draws a table d (S, N) of paired differences, S seeds by N images, with all effects
random,

    d[s, i] = mean + seed[s] + image[i] + rest[s, i].

The truth is `mean`, the expected difference over all possible seeds and images, not over the test
images at hand. It is 0 here, without loss of generality, since every method shifts with the table.
Coverage is the share of tables whose 95 % interval contains it.

`crossed` of `bench.statistics.intervals`, which the harness uses, is compared with alternatives: a
t interval of the seeds' means, and percentile bootstraps over the seeds only, and over seeds and
images (resampled independently: Owen's pigeonhole bootstrap).

References:
    The Pigeonhole Bootstrap (Owen, 2007)
    https://arxiv.org/abs/0712.1111
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from scipy.special import betaincinv, stdtrit

from bench.cli.console import make_console
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, Parser, run_command
from bench.figures.style import COLOURS, MARKERS, join_facts, make_figure, theme, write_figure
from bench.statistics.intervals import ALPHA, Components, half_width, moments
from bench.system.paths import RESULTS_FOLDER, writing

__all__ = [
    "METHODS",
    "REGIMES",
    "Regime",
    "coverage_table",
    "draw_coverage",
    "main",
    "simulate",
    "simulate_coverage",
    "verdicts",
]


Array = NDArray[np.float64]
LOW, HIGH = 0.93, 0.97
"""The required coverage where seeds or images dominate; elsewhere only the lower end is."""
CROSSED = "crossed effects"
METHODS = (CROSSED, "t over seeds", "bootstrap, seeds and images", "bootstrap, seeds")
SEED_COUNTS = (3, 5, 10)
MAX_SIZE = 10**6
"""The largest number of tables, and of images in each."""
MAX_CELLS = 4_000_000
"""The largest number of differences in memory: 32 MB."""


class Regime(NamedTuple):
    """Standard deviations of the effects, and what is required of the coverage.

    Arguments:
        sd: Standard deviations of the effects, nats.
        two_sided: Whether coverage above the band is also a failure.
        skewed: Whether seed effects are exponential (centred) rather than normal.
    """

    sd: Components
    two_sided: bool = False
    skewed: bool = False


REGIMES = {
    "seeds dominate": Regime(Components(1.0, 1.0, 1.0), two_sided=True),
    "images dominate": Regime(Components(0.01, 10.0, 1.0), two_sided=True),
    "rest dominates": Regime(Components(0.01, 1.0, 30.0)),
    "seeds and images alike": Regime(Components(0.1, 3.0, 3.0)),
    "as measured": Regime(Components(1.5, 4.0, 4.0), two_sided=True),
    "as measured, skewed seeds": Regime(Components(1.5, 4.0, 4.0), skewed=True),
}


def simulate(
    regime: Regime, tables: int, seeds: int, images: int, rng: np.random.Generator
) -> Iterator[Array]:
    """Yields simulated tables, in blocks (T, S, N) that fit in memory; nats."""
    block = max(1, MAX_CELLS // (seeds * images))
    for start in range(0, tables, block):
        count = min(block, tables - start)
        shape = (count, seeds, 1)
        by_seed = rng.exponential(size=shape) - 1 if regime.skewed else rng.normal(size=shape)
        d = rng.normal(size=(count, seeds, images))
        d *= regime.sd.rest
        d += regime.sd.image * rng.normal(size=(count, 1, images))
        d += regime.sd.seed * by_seed
        yield d


def _intervals(d: Array, draws: int, rng: np.random.Generator) -> dict[str, tuple[Array, Array]]:
    """Returns the ends of each method's interval for tables (T, S, N): two arrays (T,), nats."""
    count, seeds, images = d.shape
    m = moments(d)
    by_seed = d.mean(-1)
    half = {CROSSED: half_width(m)}
    error = by_seed.std(-1, ddof=1) / np.sqrt(seeds)
    half["t over seeds"] = stdtrit(seeds - 1, 1 - ALPHA / 2) * error
    ends = {name: (m.mean - h, m.mean + h) for name, h in half.items()}
    # Resampling images shifts the seeds' means by a sum of many terms, which is nearly normal with
    # the covariance of the images' columns over N: no resample needs a draw of N images.
    within = d - by_seed[..., None]
    covariance = within @ within.swapaxes(-1, -2) / images**2
    factor = np.linalg.cholesky(covariance)
    moved = rng.normal(size=(count, draws, seeds)) @ factor.swapaxes(-1, -2)
    chosen = rng.integers(seeds, size=(count, draws, seeds))
    both = np.take_along_axis(by_seed[:, None] + moved, chosen, -1).mean(-1)
    alone = np.take_along_axis(np.broadcast_to(by_seed[:, None], moved.shape), chosen, -1).mean(-1)
    for name, means in (("bootstrap, seeds and images", both), ("bootstrap, seeds", alone)):
        low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2], axis=-1)
        ends[name] = low, high
    return ends


def _binomial(hits: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share, hits of n (Clopper and Pearson, 1934)."""
    low = betaincinv(hits, n - hits + 1, ALPHA / 2) if hits else 0.0
    high = betaincinv(hits + 1, n - hits, 1 - ALPHA / 2) if hits < n else 1.0
    return float(low), float(high)


def simulate_coverage(
    *,
    tables: int = 2000,
    images: int = 10_000,
    seeds: Sequence[int] = SEED_COUNTS,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns coverage and width of each method, by regime and number of seeds.

    Arguments:
        tables: Simulated tables for each regime and number of seeds.
        images: Images of each table, N; more than seeds.
        seeds: Numbers of seeds, S.
        draws: Resamples of each bootstrap.
        seed: The seed of the simulation.

    Returns:
        Columns regime, sd_seed, sd_image, sd_rest (nats), seeds, images, tables, method, covered
        (tables), coverage with its Monte Carlo interval coverage_low and coverage_high, width (the
        mean half-width over 1.96 true standard errors), and asked (the requirement, or '').
    """
    rows = []
    for number, (name, regime) in enumerate(REGIMES.items()):
        for s in seeds:
            rng = np.random.default_rng([seed, number, s])
            hits, widths = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0)
            for d in simulate(regime, tables, s, images, rng):
                for method, (low, high) in _intervals(d, draws, rng).items():
                    hits[method] += int(((low <= 0) & (high >= 0)).sum())
                    widths[method] += float((high - low).sum()) / 2
            sd = regime.sd
            variance = sd.seed**2 / s + sd.image**2 / images + sd.rest**2 / (s * images)
            settings = {"regime": name, **{f"sd_{k}": v for k, v in sd._asdict().items()}}
            settings |= {"seeds": s, "images": images, "tables": tables}
            for method in METHODS:
                low_end, high_end = _binomial(hits[method], tables)
                rows.append(
                    settings
                    | {"method": method, "covered": hits[method]}
                    | {"coverage": hits[method] / tables}
                    | {"coverage_low": low_end, "coverage_high": high_end}
                    | {"width": widths[method] / tables / (1.959964 * np.sqrt(variance))}
                    | {"asked": _requirement(regime, s)}
                )
    return pd.DataFrame(rows)


def _requirement(regime: Regime, seeds: int) -> str:
    if regime.skewed or seeds < 5:
        return ""
    return f"{LOW:.0%} to {HIGH:.0%}" if regime.two_sided else f"at least {LOW:.0%}"


def verdicts(table: pd.DataFrame) -> list[str]:
    """Returns, in words, how often our interval meets the requirements and where it does not."""
    ours = table[(table["method"] == CROSSED) & (table["asked"] != "")]
    upper = np.where(ours["asked"].str.contains(" to "), HIGH, 1.0)
    missed = ours[(ours["coverage"] < LOW) | (ours["coverage"] > upper)]
    lines = [
        f"missed: {row['regime']}, {row['seeds']} seeds: {row['coverage']:.1%}, "
        f"required {row['asked']}"
        for _, row in missed.iterrows()
    ]
    met = len(ours) - len(missed)
    return [f"{CROSSED}: the required coverage is met in {met} of {len(ours)} settings", *lines]


def coverage_table(table: pd.DataFrame) -> Table:
    """Returns the table of the terminal, a row for each regime and number of seeds."""
    first = table.iloc[0]
    shown = Table(
        title=f"Coverage of 95 % intervals in % (half-width over that at known variance); "
        f"{first['tables']} tables, {first['images']} images",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("regime")
    for column in ("seeds", *METHODS):
        shown.add_column(column, justify="right")
    shown.add_column("required")
    last = None
    for (name, s), rows in table.groupby(["regime", "seeds"], sort=False):
        if last not in (None, name):
            shown.add_section()
        cells = [f"{100 * r['coverage']:.1f} ({r['width']:.2f})" for _, r in rows.iterrows()]
        shown.add_row("" if name == last else str(name), str(s), *cells, rows["asked"].iloc[0])
        last = name
    return shown


@theme()
def draw_coverage(table: pd.DataFrame) -> Figure:
    """Draws coverage and width of each method, a row of panels a regime.

    Arguments:
        table: The coverage, as `simulate_coverage` returns it.
    """
    regimes, seeds = list(dict.fromkeys(table["regime"])), sorted(table["seeds"].unique())
    first = table.iloc[0]
    note = join_facts(
        f"{first['tables']} simulated tables each, {first['images']} images",
        "bars: 95 % Monte Carlo interval (Clopper and Pearson)",
        f"shaded: {LOW:.0%} to {HIGH:.0%}; line: 95 %",
        "standard deviations of seeds, images, rest in brackets, nats",
        "arrows: coverage below the axis",
    )
    figure = make_figure(6.2, 1.15 * len(regimes) + 0.7, note)
    cells = figure.subplots(len(regimes), 2, squeeze=False, sharex="col", sharey=True)
    left, shifts = 0.65, np.linspace(-0.3, 0.3, len(METHODS))
    for (coverage_ax, width_ax), name in zip(cells, regimes, strict=True):
        coverage_ax.axvspan(LOW, HIGH, color="#e3efe3", lw=0, zorder=0)
        coverage_ax.axvline(0.95, color="#7aa37a", lw=0.8, zorder=1)
        width_ax.axvline(1, color="#7aa37a", lw=0.8, zorder=1)
        rows = table[table["regime"] == name]
        for _, row in rows.iterrows():
            k = METHODS.index(row["method"])
            y = seeds.index(row["seeds"]) + shifts[k]
            style = {"color": COLOURS[k], "ms": 3.8, "zorder": 3, "clip_on": False, "ls": ""}
            if row["coverage"] < left:
                coverage_ax.plot(left, y, marker="<", **style)
            else:
                coverage_ax.plot(row["coverage"], y, marker=MARKERS[k], **style)
                interval = [max(row["coverage_low"], left), row["coverage_high"]]
                coverage_ax.plot(interval, [y, y], color=COLOURS[k], lw=1.1, zorder=2)
            width_ax.plot(row["width"], y, marker=MARKERS[k], **style)
        sd = ", ".join(f"{rows[c].iloc[0]:g}" for c in ("sd_seed", "sd_image", "sd_rest"))
        coverage_ax.set_title(f"{name} ({sd})")
        for ax in (coverage_ax, width_ax):
            ax.set_yticks(range(len(seeds)), [f"{s} seeds" for s in seeds])
            ax.set_ylim(len(seeds) - 0.45, -0.55)
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="x")
            sns.despine(ax=ax, left=True)
        width_ax.tick_params(labelleft=False)
    coverage_ax, width_ax = cells[-1]
    coverage_ax.set(xlim=(left, 1.0), xlabel="coverage")
    coverage_ax.xaxis.set_major_formatter(PercentFormatter(1, 0))
    width_ax.set(xlim=(0, None), xlabel="half-width over that at known variance")
    width_ax.xaxis.set_major_locator(MaxNLocator(5))
    handles = [
        Line2D([], [], color=COLOURS[k], marker=MARKERS[k], ls="", ms=4.5, label=method)
        for k, method in enumerate(METHODS)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, handletextpad=0.1)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status, 1 if our interval misses a requirement."""
    return run_command(_run, argv, resumes=False)


def _run(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m bench.studies.coverage",
        description="Simulates whether intervals cover the truth.",
    )
    add = parser.add_argument
    add(
        "--tables",
        type=int,
        default=2000,
        metavar="N",
        help="tables each (default: 2000)",
    )
    add(
        "--images",
        type=int,
        default=10_000,
        metavar="N",
        help="images each (default: 10000)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the simulation (default: 0)")
    add(
        "--out", type=Path, metavar="DIR", default=RESULTS_FOLDER / "coverage",
        help="folder of the figure and its table (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse(argv)
    least = {"tables": 1, "images": max(SEED_COUNTS) + 1, "seed": 0}
    for name, bound in least.items():
        if not bound <= vars(arguments)[name] <= MAX_SIZE:
            parser.error(f"argument --{name}: expected a whole number in {bound}..{MAX_SIZE}")
    with writing(f"--out {arguments.out}"):
        arguments.out.mkdir(parents=True, exist_ok=True)
    console, start = make_console(), time.perf_counter()
    with console.status("simulating"):
        table = simulate_coverage(
            tables=arguments.tables, images=arguments.images, seed=arguments.seed
        )
    console.print(coverage_table(table))
    lines = verdicts(table)
    print(*lines, f"{time.perf_counter() - start:.0f} s", sep="\n")
    with writing(f"--out {arguments.out}"):
        written = write_figure(draw_coverage(table), arguments.out / "coverage", table, 200)
    print(*written, sep="\n")
    return EXIT_COMPLETE if len(lines) == 1 else EXIT_UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
