"""The figure of capacity: arms at their parameters, sweeps joined, labels apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from support.synthetic_grids import Made, make

from bench.figures import by_parameters, catalogue
from bench.figures import style as figure_style
from bench.statistics import comparison
from bench.statistics.analysis import Analysis

ARMS = {
    "gauss": 0,
    "maf": 235_104,
    "maf[transforms=1]": 78_368,
    "maf[transforms=6]": 470_208,
    "maf[hidden=64x64]": 20_000,
    "maf[transforms=1,hidden=64x64]": 7_000,
    "nsf": 800_000,
    "nsf[affine=true]": 800_032,
    "maf post-hoc": 235_104,
}


@pytest.fixture(scope="module")
def made() -> Made:
    made = make(tuple(ARMS), seeds=3, diverged=(("nsf", 2, 0),))
    made.frame["model/prior_parameters"] = made.frame["prior"].map(ARMS).astype(float)
    return made


@pytest.fixture(scope="module")
def figure(made: Made) -> Figure:
    return by_parameters.nll_by_parameters(made.analysis())


def marked(figure: Any, gid: str) -> list[Any]:  # noqa: ANN401
    return [a for a in figure.findobj(include_self=False) if a.get_gid() == gid]


def test_arms_stand_at_their_parameters_with_intervals(made: Made, figure: Figure) -> None:
    table = comparison.summary(made.frame, {})
    for ax, latent in zip(figure.axes, (2, 16), strict=True):
        here = table[table["latent"] == latent]
        dots = [line for line in ax.lines if line.get_gid() == "arm"]
        at = {(float(d.get_xdata()[0]), round(float(d.get_ydata()[0]), 9)) for d in dots}
        (zero,) = {x for x, _ in at if x < 7000}
        for _, row in here.iterrows():
            assert (ARMS[row["prior"]] or zero, round(row["nll"], 9)) in at
        ticks = [t.get_text() for t in ax.get_xticklabels()]
        assert ticks[0] == "0"
        assert ax.get_xticks()[0] == zero
        spans = {tuple(line.get_ydata()) for line in ax.lines if len(line.get_ydata()) == 2}
        assert {tuple(s) for s in here[["nll_low", "nll_high"]].dropna().to_numpy()} <= spans
    assert len(marked(figure, "diverged")) == 1


def test_what_differs_in_one_option_is_joined(figure: Figure) -> None:
    lines = {gid: marked(figure, gid) for gid in ("transforms", "hidden", "affine")}
    found = {gid: [tuple(line.get_xdata()) for line in some] for gid, some in lines.items()}
    depth, width = (78_368, 235_104, 470_208), (20_000, 235_104)
    assert set(found["transforms"]) == {depth, (7_000, 20_000)}
    assert set(found["hidden"]) == {width, (7_000, 78_368)}
    assert set(found["affine"]) == {(800_000, 800_032)}
    own = figure_style.styles(["maf"])["maf"].colour
    assert {to_hex(line.get_color()) for line in lines["hidden"]} == {own.lower()}


def test_labels_are_short_and_lie_apart(figure: Figure) -> None:
    figure.draw_without_rendering()
    for ax in figure.axes:
        said = {t.get_text() for t in ax.texts}
        assert said == {
            *("maf", "transforms=1", "transforms=6", "64x64", "transforms=1, 64x64"),
            *("nsf", "affine=true"),
        }
        boxes = [t.get_window_extent().extents for t in ax.texts]
        for k, a in enumerate(boxes):
            for b in boxes[:k]:
                width = min(a[2], b[2]) - max(a[0], b[0])
                assert width < 2 or min(a[3], b[3]) - max(a[1], b[1]) < 2  # pixels


def test_post_hoc_arms_are_hollow_and_named_in_the_footer(figure: Figure) -> None:
    faces = [line.get_markerfacecolor() for line in marked(figure, "arm")]
    assert faces.count("white") == 2
    assert "hollow: fitted post hoc" in figure.get_supxlabel()


def test_fewer_than_three_arms_with_parameters_are_not_drawn(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = by_parameters.nll_by_parameters
    monkeypatch.setattr(catalogue, "FIGURES", {draw.__name__: catalogue.FIGURES[draw.__name__]})
    few = made.frame[made.frame["prior"].isin(["gauss", "maf", "nsf"])]
    with pytest.raises(figure_style.NoDataError, match="3 arms with parameters"):
        by_parameters.nll_by_parameters(Analysis(few))
    some = made.frame[(made.frame["latent"] == 16) & made.frame["prior"].str.startswith("maf")]
    files = catalogue.draw_all(Analysis(some), tmp_path)
    assert tmp_path / "nll_by_parameters.png" in files
    table = pd.read_csv(tmp_path / "nll_by_parameters.csv")
    np.testing.assert_array_equal(table["prior_parameters"], table["prior"].map(ARMS))


def test_old_frames_without_parameters_are_not_drawn() -> None:
    made = make(("gauss", "maf", "nsf", "gmm"))
    with pytest.raises(figure_style.NoDataError, match="got 0"):
        by_parameters.nll_by_parameters(
            Analysis(made.frame.drop(columns="model/prior_parameters"))
        )
