"""What goes wrong is counted, said and drawn; what is fine is not dwelt upon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.synthetic_grids import Made, make

from bench.figures import catalogue
from bench.figures import failures as failures_figure
from bench.figures import style as figure_style
from bench.report.findings import failures as failures_findings
from bench.statistics import failures
from bench.statistics.analysis import Analysis

PRIORS = ("gauss", "nsf", "nsf[affine=true]")


@pytest.fixture(scope="module")
def bad() -> Made:
    """Three arms at two latent sizes, five seeds, with every trouble at D = 16."""
    made = make(PRIORS, seeds=5, diverged=(("nsf", 16, 1), ("nsf", 16, 3)))
    frame = made.frame
    large = frame["latent"] == 16
    arm = {p: large & (frame["prior"] == p) for p in PRIORS}
    frame.loc[frame["status"] == "diverged", "reason"] = "epoch 3: train/elbo is nan"
    (failed,) = frame.index[arm["gauss"] & (frame["seed"] == 4)]
    frame.loc[failed, ["status", "reason"]] = "failed", "RuntimeError: no room\nline 2"
    (absent,) = frame.index[arm["gauss"] & (frame["seed"] == 3)]
    frame.loc[absent, "status"] = "missing"
    for layer, share in ((1, 0.08), (2, 0.18)):
        column = f"test/outside_posterior_l{layer}"
        frame[column] = np.nan
        frame.loc[arm["nsf"], column] = share
        frame.loc[arm["nsf[affine=true]"], column] = share / 100
    frame.loc[arm["gauss"], "test/active_units_relative"] = 3.0
    frame.loc[arm["gauss"], "test/rate"] = 0.02
    frame.loc[arm["nsf"], "test/bad_samples"] = 20.0
    frame.loc[arm["nsf[affine=true]"], "test/log_z_error"] = 0.25
    return made


def arm(found: pd.DataFrame, prior: str, latent: int = 16) -> Any:  # noqa: ANN401
    return found[(found["prior"] == prior) & (found["latent"] == latent)].iloc[0]


def marked(figure: Any, gid: str) -> list[Any]:  # noqa: ANN401
    return [a for a in figure.findobj(include_self=False) if a.get_gid() == gid]


def test_wilsons_interval_is_the_published_one() -> None:
    def written_out(lost: int, tried: int, z: float = 1.959963984540054) -> tuple[float, float]:
        share, more = lost / tried, z**2 / tried
        middle = (share + more / 2) / (1 + more)
        half = z / (1 + more) * (share * (1 - share) / tried + more / (4 * tried)) ** 0.5
        return middle - half, middle + half

    for lost, tried in ((2, 5), (0, 5), (5, 5), (1, 40)):
        low, high = failures._wilson(lost, tried)
        np.testing.assert_allclose((low, high), written_out(lost, tried), atol=1e-9)
    assert np.isnan(failures._wilson(0, 0)).all()


def test_what_went_wrong_in_numbers(bad: Made) -> None:
    found = bad.analysis().failures
    nsf, gauss = arm(found, "nsf"), arm(found, "gauss")
    assert (nsf["tried"], nsf["diverged"], nsf["lost_share"]) == (5, 2, 0.4)
    assert nsf["lost_low"] < 0.4 < nsf["lost_high"]
    assert nsf["reasons"] == "train/elbo is nan, in epoch 3 at seeds 1, 3"
    # a missing seed was not tried
    assert (gauss["tried"], gauss["failed"], gauss["missing"]) == (4, 1, 1)
    assert gauss["reasons"] == "RuntimeError: no room, at seed 4"
    assert nsf["outside_posterior"] == pytest.approx(0.18)
    assert np.isnan(gauss["outside_posterior"])
    assert gauss["active_share"] == pytest.approx(3 / 16)
    assert nsf["bad_share"] == pytest.approx(0.01)  # of as many as were drawn
    assert arm(found, "nsf", 2)["lost_share"] == 0


def test_an_nll_that_is_no_number_is_a_lost_seed() -> None:
    made = make(("gauss",), (2,))
    made.frame.loc[0, "test/nll"] = np.inf
    row = made.analysis().failures.iloc[0]
    assert (row["diverged"], row["reasons"]) == (1, "diverged, at seed 0")


def test_only_what_is_worth_it_is_said(bad: Made) -> None:
    said = failures_findings.failure_sentences(bad.analysis())
    assert all(sentence.startswith("At D = 16, ") for sentence in said)
    expected = (
        "gauss: 1 of 4 seeds failed (RuntimeError: no room, at seed 4)",
        "nsf: 2 of 5 seeds diverged (train/elbo is nan, in epoch 3 at seeds 1, 3)",
        "nsf 18% of the coordinates, at the worst spline; a wider bound or affine=true may",
        "fewer than half of the 16 latent dimensions are active, Var(E[z|x]) above 0.01 Var(z): "
        "gauss 3",
        "collapsed onto the prior, with a rate near zero (nats, in parentheses): "
        "gauss seeds 0 (0.02), 1",
        "prior samples are not finite: nsf 1% of them",
        "nsf[affine=true] 0.25 nats",
    )
    assert len(said) == len(expected)
    for words, sentence in zip(expected, said, strict=True):
        assert words in sentence
    assert not failures_findings.failure_sentences(make().analysis())
    bare = make().frame.drop(columns=["test/active_units_relative", "test/bad_samples"])
    assert not failures_findings.failure_sentences(Analysis(bare))


def test_the_cure_is_one_of_the_priors_options() -> None:
    assert "affine" not in failures_findings._remedy("nsf[affine=true] post-hoc")
    assert "a wider bound" in failures_findings._remedy("nsf[affine=true]")
    assert failures_findings._remedy("maf") == failures_findings._remedy("not_here:mine") == ""


def test_every_trouble_is_drawn_at_its_length(bad: Made) -> None:
    figure = failures_figure.failures(bad.analysis())
    assert len(figure.axes) == 2 * 4
    assert [ax.get_title("left") for ax in figure.axes[:4]] == list(
        failures_figure.TITLES.values()
    )
    (diverged,), (failed,) = marked(figure, "diverged"), marked(figure, "failed")
    assert (diverged.get_width(), failed.get_width()) == (0.4, 0.25)
    (collapsed,) = marked(figure, "collapsed")
    assert collapsed.get_x() == pytest.approx(3 / 16)
    outside = sorted(bar.get_width() for bar in marked(figure, "outside"))
    np.testing.assert_allclose(outside, [0.0018, 0.18])
    texts = [t.get_text() for ax in figure.axes for t in ax.texts]
    assert {"2 of 5", "1 of 4", "0 of 5", "3 of 16, 0.0 nats"} <= set(texts)
    ends = {tuple(np.round(line.get_xdata(), 6)) for line in marked(figure, "interval")}
    assert tuple(np.round(failures._wilson(2, 5), 6)) in ends


def test_arms_of_one_prior_stand_together_and_panels_without_data_are_left_out() -> None:
    made = make(("nsf", "gauss", "nsf[affine=true]"))
    figure = failures_figure.failures(made.analysis())
    assert len(figure.axes) == 2 * 2
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["nsf", "nsf[affine=true]", "gauss"]
    assert "all prior samples are finite" in figure.get_supxlabel()
    bare = made.frame.drop(columns=["test/active_units_relative", "test/bad_samples"])
    with pytest.raises(figure_style.NoDataError, match="lost seed"):
        failures_figure.failures(Analysis(bare))


def test_the_table_behind_it_holds_the_reasons(
    bad: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = failures_figure.failures
    monkeypatch.setattr(catalogue, "FIGURES", {draw.__name__: catalogue.FIGURES[draw.__name__]})
    some = bad.frame[bad.frame["latent"] == 16]
    catalogue.draw_all(Analysis(some), tmp_path)
    table = pd.read_csv(tmp_path / "failures.csv")
    assert len(table) == 3
    assert "train/elbo is nan, in epoch 3 at seeds 1, 3" in set(table["reasons"])
