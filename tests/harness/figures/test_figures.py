"""Figures: what is drawn is what was measured, and what was lost is marked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from support.synthetic_grids import Made, make

from bench.benchmarks import figures
from bench.figures import by_latent, catalogue, differences, latent_maps, learning_curves, scatter
from bench.figures import failures as failures_figure
from bench.figures import samples as figures_samples
from bench.figures import style as figure_style
from bench.statistics import captions, comparison, formatting, frames, intervals
from bench.statistics.analysis import Analysis

SIX = ("gauss", "maf", "nsf", "nsf[bins=16,bound=8]", "vamp[components=500]", "gmm")


def benchmarks(priors: tuple[str, ...], latents: tuple[int, ...]) -> pd.DataFrame:
    """Return timings as the report reads them from pytest-benchmark's JSON."""
    kinds = {"elbo forward": 1.0, "forward + backward": 2.6, "optimiser step": 3.1}
    return pd.DataFrame(
        [
            {
                "prior": prior,
                "latent": latent,
                "what": what,
                "median_seconds": (seconds := 2e-3 * cost * (1 + 0.9 * k) * (1 + latent / 100)),
                "q1_seconds": 0.98 * seconds,
                "q3_seconds": 1.10 * seconds,
                "batch": 256,
                "data": "mnist",
                "images_per_second": 256 / seconds,
                "device": "cpu: Intel Xeon, 2 threads",
            }
            for k, prior in enumerate(priors)
            for latent in latents
            for what, cost in kinds.items()
        ]
    )


@pytest.fixture(scope="module")
def grid() -> Made:
    """Three priors at two latent sizes, three seeds, one of them diverged."""
    return make(("gauss", "maf", "nsf[bins=16,bound=8]"), diverged=(("maf", 16, 1),))


def text(figure: Figure) -> str:
    """Return the footer's text on one line."""
    return figure._supxlabel.get_text().replace("\n", " ")  # type: ignore[attr-defined]


def marked(figure: Figure, gid: str = "diverged") -> list[Any]:
    """Return the artists that carry a mark."""
    return [a for a in figure.findobj(include_self=False) if a.get_gid() == gid]


def bars(ax: Axes) -> list[NDArray[Any]]:
    """Return the ends of every error bar, ((x, low), (x, high))."""
    return [
        segment
        for container in ax.containers
        for collection in container[2]
        for segment in collection.get_segments()
        if len(segment) == 2  # none where there is no interval
    ]


FROM_FRAME = {
    "nll_by_latent": lambda m: by_latent.nll_by_latent(m.analysis()),
    "gain_by_latent": lambda m: by_latent.gain_by_latent(m.analysis()),
    "elbo_curves": lambda m: learning_curves.elbo_curves(m.analysis()),
    "paired_difference": lambda m: differences.paired_difference(m.analysis()),
    "pair_matrix": lambda m: differences.pair_matrix(m.analysis()),
    "interval_widths": lambda m: differences.interval_widths(m.analysis()),
    "throughput_nll": lambda m: scatter.throughput_nll(m.analysis()),
    "rate_distortion": lambda m: scatter.rate_distortion(m.analysis()),
    "latent_maps": lambda m: latent_maps.latent_maps(m.analysis()),
    "prior_manifold": lambda m: figures_samples.prior_manifold(m.analysis()),
    "sample_sheet": lambda m: figures_samples.sample_sheet(m.analysis()),
    "failures": lambda m: failures_figure.failures(m.analysis()),
}
PICTURES = {"latent_maps", "prior_manifold", "sample_sheet"}


@pytest.fixture(scope="module")
def drawn(grid: Made) -> Callable[[str], Figure]:
    """A function that draws a figure of the grid, each once; doing so leaves no trace."""

    @cache
    def draw(name: str) -> Figure:
        before = dict(mpl.rcParams)
        made = FROM_FRAME[name](grid)
        assert dict(mpl.rcParams) == before
        assert not mpl._pylab_helpers.Gcf.figs  # type: ignore[attr-defined]
        return made

    return draw


@pytest.fixture(params=FROM_FRAME)
def figure(request: pytest.FixtureRequest, drawn: Callable[[str], Figure]) -> Figure:
    """Each figure in turn."""
    return drawn(request.param)


@pytest.fixture(scope="module")
def written(grid: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str]]:
    """The files of the grid, and the tables that were computed for them."""
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("summary", "pairs"):
            real = getattr(comparison, name)
            counted = lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k)  # noqa: E731
            patch.setattr(comparison, name, counted)
        return catalogue.draw_all(grid.analysis(), tmp_path_factory.mktemp("drawn"), dpi=80), calls


def test_every_figure_says_what_it_stands_on(figure: Figure) -> None:
    footer = text(figure)
    for fact in ("digits", "threshold", "K = 1000", "seeds 0\N{EN DASH}2", "cpu: Intel Xeon"):
        assert fact in footer


@pytest.mark.parametrize("name", sorted(FROM_FRAME.keys() - PICTURES))
def test_every_plot_marks_what_diverged(drawn: Callable[[str], Figure], name: str) -> None:
    figure = drawn(name)
    assert marked(figure)
    assert "diverged: maf at D = 16 (1)" in text(figure)
    assert not marked(FROM_FRAME[name](make(("gauss", "maf", "gmm"))))


def test_text_stays_inside_the_figure(figure: Figure) -> None:
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= figure.get_size_inches()[0] + 0.01
    assert box.y1 <= figure.get_size_inches()[1] + 0.01


def test_error_bars_are_the_intervals_over_seeds(
    grid: Made, drawn: Callable[[str], Figure]
) -> None:
    ends = {tuple(s[:, 1].round(6)) for s in bars(drawn("nll_by_latent").axes[0])}
    for prior, latent in (("gauss", 2), ("nsf[bins=16,bound=8]", 16)):
        rows = grid.frame[(grid.frame["prior"] == prior) & (grid.frame["latent"] == latent)]
        level = intervals.over_seeds(rows["test/nll"])
        assert (round(level.low, 6), round(level.high, 6)) in ends


def test_two_seeds_have_no_interval_and_the_footer_says_so(
    drawn: Callable[[str], Figure],
) -> None:
    figure = drawn("nll_by_latent")
    # maf at D = 16 has lost one of its three seeds
    assert len(bars(figure.axes[0])) == 5
    assert figure_style.FEW_SEEDS in text(figure)
    assert figure_style.FEW_SEEDS not in text(by_latent.nll_by_latent(make().analysis()))


def test_paired_difference_draws_the_crossed_interval_and_fills_what_is_resolved() -> None:
    made = make(("gauss", "maf", "gmm"), seeds=5)
    table = comparison.summary(made.frame, made.loglik).query("prior != 'gauss'")
    figure = differences.paired_difference(made.analysis())
    assert [ax.get_title("left") for ax in figure.axes] == ["D = 2", "D = 16"]
    drawn = [tuple(np.asarray(line.get_xdata())) for ax in figure.axes for line in ax.lines]
    for _, row in table.iterrows():
        assert (row["low"], row["high"]) in drawn
    resolved = int(table["verdict"].isin(["better", "worse"]).sum())
    assert len(marked(figure, "resolved")) == resolved
    assert len(marked(figure, "open")) == len(table) - resolved
    assert all(a.get_markerfacecolor() == "white" for a in marked(figure, "open"))


def test_gain_by_latent_draws_the_same_intervals_over_the_latent_sizes() -> None:
    made = make(("gauss", "maf", "gmm"), seeds=5)
    table = comparison.summary(made.frame, made.loglik).query("prior != 'gauss'")
    figure = by_latent.gain_by_latent(made.analysis())
    drawn = [tuple(np.asarray(line.get_ydata())) for line in figure.axes[0].lines]
    for prior, rows in table.groupby("prior"):
        assert tuple(rows.sort_values("latent")["difference"]) in drawn, prior
    for _, row in table.iterrows():
        assert (row["low"], row["high"]) in drawn
    assert len(marked(figure, "resolved")) == table["verdict"].isin(["better", "worse"]).sum()
    with pytest.raises(figure_style.NoDataError, match="two latent sizes"):
        by_latent.gain_by_latent(make(latents=(16,)).analysis())


@pytest.mark.parametrize("count", [3, 15])
def test_the_matrix_writes_each_pair_in_its_cell(count: int) -> None:
    made = make(("gauss", *(f"p{i}" for i in range(1, count))), (16,), seeds=5, images=20)
    for k, run in enumerate(made.loglik):  # in twos, far from the others
        made.loglik[run] += 8.0 * (k // 10)
    table = comparison.pairs(made.frame, made.loglik)
    figure = differences.pair_matrix(made.analysis())
    solid = table["verdict"].isin(["better", "worse"])
    assert 0 < solid.sum() < len(table)
    assert len(marked(figure, "resolved")) == solid.sum()
    assert len(marked(figure, "open")) == len(table) - solid.sum()
    assert {to_hex(a.get_facecolor()) for a in marked(figure, "open")} == {"#ffffff"}
    texts = figure.axes[0].texts
    said = {tuple(np.round(t.get_position(), 2)): t.get_text() for t in texts}  # by place
    labels = frames.priors(made.frame)
    for _, row in table.iterrows():
        x, y = labels.index(row["against"]), labels.index(row["prior"])
        value = said[x, round(y - 0.14, 2)].replace("\N{MINUS SIGN}", "-")
        half = (row["high"] - row["low"]) / 2
        assert float(value) == pytest.approx(row["difference"], abs=0.051)
        assert float(said[x, round(y + 0.19, 2)][1:]) == pytest.approx(half, abs=0.051)


def test_the_matrix_marks_a_prior_without_a_pair_and_needs_three(grid: Made) -> None:
    lost = make(("gauss", "maf", "gmm"), (16,), diverged=tuple(("maf", 16, s) for s in range(3)))
    figure = differences.pair_matrix(lost.analysis())
    assert len(marked(figure)) == 2
    assert [t.get_text() for t in figure.axes[0].texts].count("n=0") == 2
    with pytest.raises(figure_style.NoDataError, match="at least 3 priors"):
        differences.pair_matrix(make().analysis())
    with pytest.raises(figure_style.NoDataError, match="common complete seed"):
        differences.pair_matrix(grid.analysis(loglik={}))


def test_widths_are_parted_as_the_variance_is() -> None:
    made = make(("gauss", "maf"), (16,), seeds=5)
    row = made.analysis(resolution=2.0).summary.iloc[1]
    figure = differences.interval_widths(made.analysis(resolution=2.0))
    parts = {name: marked(figure, name)[0].get_width() for name in differences.VARIANCE_PARTS}
    half = (row["high"] - row["low"]) / 2
    assert sum(parts.values()) == pytest.approx(half)
    variance = row["sd_seed"] ** 2 / 5
    total = variance + row["sd_image"] ** 2 / 60 + row["sd_rest"] ** 2 / 300
    assert parts["sd_seed"] == pytest.approx(half * variance / total)
    (told,) = figure.axes[0].texts
    assert told.get_text() == f"{row['seeds_for_resolution']:.0f} seeds"
    two = make(seeds=2)
    with pytest.raises(figure_style.NoDataError, match="at least 3 pairs"):
        differences.interval_widths(two.analysis())


def test_a_prior_has_one_colour_everywhere(grid: Made, drawn: Callable[[str], Figure]) -> None:
    found = figure_style.styles(frames.priors(grid.frame))
    assert len({s.colour for s in found.values()}) == len(found)
    for name in ("nll_by_latent", "elbo_curves", "throughput_nll", "rate_distortion"):
        figure = drawn(name)
        used = {to_hex(line.get_color()) for ax in figure.axes for line in ax.lines}
        assert {to_hex(s.colour) for s in found.values()} <= used
    for name in sorted(PICTURES):
        for ax in drawn(name).axes:
            title = ax._left_title  # type: ignore[attr-defined]  # no public way to its colour
            assert to_hex(title.get_color()) == to_hex(found[title.get_text()].colour)


def test_fifteen_priors_stay_apart() -> None:
    found = figure_style.styles(["gauss", *(f"p{i}" for i in range(14))])
    assert len(set(found.values())) == 15
    assert len({(s.colour, s.dash) for s in found.values()}) == 15
    assert len({s.marker for s in found.values()}) == 15


def test_a_registered_prior_looks_the_same_in_any_company() -> None:
    names = list(figure_style.PRIOR_LOOKS)
    alone = {name: figure_style.styles([name])[name] for name in names}
    assert alone == figure_style.styles(names) == figure_style.styles(names[::-1])
    for part in ("colour", "marker"):
        assert len({getattr(style, part) for style in alone.values()}) == len(names)
    shown = [alone[name].colour for name in ("gauss", "maf", "nsf")]
    assert shown == ["#3b3b3b", "#0072B2", "#D55E00"]  # of the figures that were published


def test_options_shade_the_colour_of_their_prior() -> None:
    some = ["maf[hidden=8]", "maf", "nsf[bins=4]", "maf[transforms=9]", "gauss", "mine:prior"]
    found = figure_style.styles([*some, "maf[hidden=8] post-hoc"])
    assert found["maf"] == figure_style.styles(["maf"])["maf"]
    assert found["nsf[bins=4]"].colour == figure_style.styles(["nsf"])["nsf"].colour
    assert len({style.colour for style in found.values()}) == len(some)
    assert len({style.marker for style in found.values()}) == len(some)
    assert found["maf[hidden=8] post-hoc"].colour == found["maf[hidden=8]"].colour


def test_a_post_hoc_prior_looks_like_its_joint_one_but_hollow() -> None:
    found = figure_style.styles(["gauss", "maf", "maf post-hoc", "nsf"])
    joint, after = found["maf"], found["maf post-hoc"]
    assert after.colour == joint.colour == joint.face
    assert after.dash not in (joint.dash, found["nsf"].dash)
    assert after.face == "white"
    assert found["nsf"].colour == figure_style.styles(["gauss", "maf", "nsf"])["nsf"].colour


def test_elbo_limits_ignore_the_first_epochs(grid: Made, drawn: Callable[[str], Figure]) -> None:
    figure = drawn("elbo_curves")
    assert len(figure.axes) == 4  # two latent sizes, training and validation
    first = grid.curves.query("epoch == 1")["value"].max()
    assert all(ax.get_ylim()[0] > first for ax in figure.axes)


def test_curves_without_a_validation_set_draw_training_alone(grid: Made) -> None:
    curves = grid.curves[grid.curves["metric"] == "train/elbo"]
    assert len(learning_curves.elbo_curves(grid.analysis(curves=curves)).axes) == 2


def test_the_ticks_of_small_shares_are_told_apart() -> None:
    assert [formatting.percent(v) for v in (0, 0.005, 0.01, 0.5, 1)] == [
        "0%",
        "0.5%",
        "1%",
        "50%",
        "100%",
    ]


def test_speed_keeps_the_colours_of_the_other_figures() -> None:
    order = ("gauss", "maf", "gmm")
    figure = figures.draw_speed(benchmarks(("gmm", "gauss"), (16,)), order)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["gauss", "gmm"]
    found = figure_style.styles(order)
    used = {to_hex(line.get_color()) for line in figure.axes[0].lines}
    assert used == {to_hex(found[p].colour) for p in ("gauss", "gmm")}
    assert "batch 256" in text(figure)
    low, high = bars(figure.axes[0])[1][:, 0]
    assert high - low == pytest.approx(0.12 * 2.0 * 1.9 * 1.16)  # ms, of gauss


def test_draw_all_writes_what_has_data(written: tuple[list[Path], list[str]]) -> None:
    files = written[0]
    assert all(file.stat().st_size > 0 for file in files)
    names = {file.name for file in files}
    assert {f"{n}.{e}" for n in FROM_FRAME for e in ("png", "svg")} <= names
    table = pd.read_csv(files[0].with_name("paired_difference.csv"))
    assert {"difference", "low", "high", "p_holm", "verdict", "pairs"} <= set(table.columns)


def test_draw_all_summarises_a_setting_once(written: tuple[list[Path], list[str]]) -> None:
    assert sorted(written[1]) == ["pairs", "summary"]


def test_draw_all_leaves_out_what_has_none(tmp_path: Path) -> None:
    made = make(("maf",), (16,), seeds=1)
    empty = pd.DataFrame()
    files = catalogue.draw_all(made.analysis(curves=empty, samples={}, maps={}), tmp_path)
    known = {"nll_by_latent", "throughput_nll", "rate_distortion", "failures"}
    assert {file.stem for file in files} == known


def test_each_net_gets_its_own_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = by_latent.nll_by_latent
    monkeypatch.setattr(catalogue, "FIGURES", {draw.__name__: catalogue.FIGURES[draw.__name__]})
    made = make(latents=(16,))
    other = made.frame.assign(run_id=made.frame["run_id"] + "-conv", net="conv")
    both = pd.concat([made.frame, other], ignore_index=True)
    with pytest.raises(ValueError, match="several, by net"):
        by_latent.nll_by_latent(Analysis(both))
    files = catalogue.draw_all(Analysis(both), tmp_path)
    assert {"nll_by_latent-net=mlp.svg", "nll_by_latent-net=conv.svg"} <= {f.name for f in files}


def test_a_prior_that_only_diverged_is_named_beside_its_cross() -> None:
    made = make(diverged=tuple(("maf", d, s) for d in (2, 16) for s in range(3)))
    figure = by_latent.nll_by_latent(made.analysis())
    assert {t.get_text() for t in figure.axes[0].texts} == {"gauss", "maf"}
    assert len(marked(figure)) == 2


def test_a_grid_in_which_all_diverged_is_refused() -> None:
    made = make(("gauss",), (2,), seeds=1, diverged=(("gauss", 2, 0),))
    with pytest.raises(figure_style.NoDataError, match="complete trial"):
        by_latent.nll_by_latent(made.analysis())


ARMS = (
    *(
        "gauss",
        "gmm[components=32,covariance=diagonal]",
        "vamp[components=500]",
        "realnvp",
        "lars",
    ),
    *("maf", "maf[transforms=5,hidden=128x128]", "maf post-hoc", "iaf", "diagonal", "naf"),
    *("nsf", "nsf[bins=16,bound=8,affine=true]", "cnf[hidden=64x64]"),
)


@pytest.fixture(scope="module")
def crowd() -> Made:
    """Fourteen arms, some with long names, with every number that any figure takes."""
    made = make(ARMS, (2, 8, 16), diverged=(("nsf", 2, 1),), images=20)
    frame, done = made.frame, made.frame["status"] == "complete"
    numbers: dict[str, Any] = {f"test/nll_k{k}": frame["test/nll"] + 3 / k for k in (1, 10, 1000)}
    numbers |= {"test/khat_high": 0.1, "test/log_images": 5.9, "test/index_code": 3.0}
    numbers |= {"test/marginal_kl": frame["test/rate"] - 3.0}
    for name, values in numbers.items():
        frame[name] = pd.Series(values, frame.index).where(done)
    made.samples[captions.TEST_IMAGES] = np.ones((64, 16, 16), np.uint8)
    return made


@pytest.fixture(
    scope="module",
    params=[
        (ARMS, (2, 8, 16)),
        (("gauss", "maf", "maf post-hoc", "nsf"), (2, 8, 16)),
        (("gauss", "maf"), (2,)),
    ],
    ids=["many", "few", "two"],
)
def company(request: pytest.FixtureRequest, crowd: Made) -> Analysis:
    """All of these arms, four, or two at one latent size, with the tables of figures."""
    priors, latents = request.param
    frame = crowd.frame[crowd.frame["prior"].isin(priors) & crowd.frame["latent"].isin(latents)]
    return crowd.analysis(frame=frame)


WANT_MORE = ("gain_by_latent", "nll_by_parameters", "pair_matrix", "joint_post_hoc")
"""Figures that two priors at one latent size do not have."""


@pytest.mark.parametrize("name", catalogue.FIGURES)
def test_every_figure_fits_a_page_with_words_that_can_be_read(
    company: Analysis, name: str
) -> None:
    try:
        figure = catalogue.FIGURES[name].draw(company)
    except figure_style.NoDataError:
        few = len(company.trials[["prior", "latent"]].drop_duplicates()) == 2
        assert few
        assert name in WANT_MORE
        return
    figure.draw_without_rendering()  # a layout that fails is a warning, and an error here
    width = figure.get_figwidth()
    assert width <= 1.04 * figure_style.PAGE_INCHES
    words = [t for t in figure.findobj(mpl.text.Text) if t.get_visible() and t.get_text()]
    assert min(t.get_fontsize() for t in words) >= 6
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) >= -0.02
    assert box.x1 <= width + 0.02
    for ax in figure.axes:  # names of rows stand above each other
        names = [t.get_window_extent() for t in ax.get_yticklabels() if t.get_text()]
        ends = sorted((name.y0, name.y1) for name in names)
        for (low, high), (above, _) in itertools.pairwise(ends):
            assert above > high - 0.35 * (high - low)


def test_every_figure_has_its_table(written: tuple[list[Path], list[str]]) -> None:
    pictures = {file.stem for file in written[0] if file.suffix == ".png"}
    assert pictures == {file.stem for file in written[0] if file.suffix == ".csv"}


def test_intervals_of_rate_and_distortion_are_over_seeds(
    grid: Made, drawn: Callable[[str], Figure]
) -> None:
    rows = grid.frame[(grid.frame["prior"] == "gauss") & (grid.frame["latent"] == 2)]
    figure = drawn("rate_distortion")
    ends = [line.get_xydata() for line in marked(figure, "span")]
    for axis, name in enumerate(("rate", "distortion")):
        level = intervals.over_seeds(rows[f"test/{name}"])
        assert any(np.allclose(e[:, axis], (level.low, level.high)) for e in ends)
