"""The simulated study of the intervals: its tables, its reference methods, its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from bench.statistics import intervals
from bench.statistics.intervals import Components
from bench.studies import coverage


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return coverage.simulate_coverage(tables=40, images=30, seeds=(3, 5), draws=200)


@pytest.mark.parametrize("skewed", [False, True])
def test_tables_vary_as_they_should(skewed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MAX_CELLS", 50 * 8 * 20)  # in blocks
    regime = coverage.Regime(Components(1.5, 4.0, 3.0), skewed=skewed)
    rng = np.random.default_rng(0)
    tables = list(coverage.simulate(regime, 1020, 8, 20, rng))
    assert [len(block) for block in tables] == [50] * 20 + [20]
    d = np.concatenate(tables)
    assert d.shape == (1020, 8, 20)
    assert abs(d.mean()) < 0.1
    m = intervals.moments(d)
    np.testing.assert_allclose(m.rest.mean(), 9, rtol=0.05)
    np.testing.assert_allclose((d.mean(1).var(-1, ddof=1)).mean(), 16 + 9 / 8, rtol=0.05)
    np.testing.assert_allclose((d.mean(2).var(-1, ddof=1)).mean(), 1.5**2 + 9 / 20, rtol=0.1)
    seeds = d.mean(2)  # the exponential's lean shows in the seeds' means
    assert (scipy.stats.skew(seeds.ravel()) > 0.2) == skewed


def test_each_method_against_its_own_definition() -> None:
    rng = np.random.default_rng(1)
    d = rng.normal(size=(3, 5, 200)) + rng.normal(size=(3, 5, 1))
    ends = coverage._intervals(d, 20_000, rng)
    assert set(ends) == set(coverage.METHODS)
    for k, table in enumerate(d):
        ours = intervals.crossed(table)
        np.testing.assert_allclose([e[k] for e in ends["crossed effects"]], [ours.low, ours.high])
        t = scipy.stats.ttest_1samp(table.mean(1), 0).confidence_interval(0.95)
        np.testing.assert_allclose([e[k] for e in ends["t over seeds"]], t)
        # bootstraps, resample by resample
        seeds = rng.integers(5, size=(4000, 5))
        alone = table.mean(1)[seeds].mean(1)
        both = [table[rows][:, rng.integers(200, size=200)].mean() for rows in seeds]
        for name, means in (("bootstrap, seeds", alone), ("bootstrap, seeds and images", both)):
            low, high = (e[k] for e in ends[name])
            for share, end in ((0.025, low), (0.975, high)):  # five seeds: means come in lumps
                assert (means < end - 0.01).mean() < share + 0.015
                assert (means < end + 0.01).mean() > share - 0.015


def test_the_study_counts_what_it_covers(found: pd.DataFrame) -> None:
    assert len(found) == len(coverage.REGIMES) * 2 * len(coverage.METHODS)
    assert (found["coverage"] == found["covered"] / 40).all()
    assert found["coverage_low"].le(found["coverage"]).all()
    assert found["coverage_high"].ge(found["coverage"]).all()
    row = found[found["covered"].between(1, 39)].iloc[0]
    known = scipy.stats.binomtest(int(row["covered"]), 40).proportion_ci(method="exact")
    np.testing.assert_allclose([row["coverage_low"], row["coverage_high"]], known)
    again = coverage.simulate_coverage(tables=40, images=30, seeds=(3, 5), draws=200)
    pd.testing.assert_frame_equal(found, again)


def test_verdicts_name_what_is_missed(found: pd.DataFrame) -> None:
    made = found.assign(coverage=0.95)
    assert coverage.verdicts(made) == [
        "crossed effects: the required coverage is met in 5 of 5 settings"
    ]
    ours = made["method"] == coverage.CROSSED
    made.loc[ours & (made["regime"] == "rest dominates"), "coverage"] = 1.0  # allowed there
    made.loc[ours & (made["regime"] == "images dominate"), "coverage"] = 0.98
    made.loc[ours & (made["seeds"] == 3), "coverage"] = 0.5  # nothing is asked of three seeds
    told = coverage.verdicts(made)
    assert told[0].endswith("is met in 4 of 5 settings")
    assert told[1:] == ["missed: images dominate, 5 seeds: 98.0%, required 93% to 97%"]


def test_the_command_writes_a_figure_and_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status = coverage.main(["--tables", "8", "--images", "20", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "the required coverage is met" in printed
    assert status == int("missed" in printed)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"coverage.{end}" for end in ("png", "svg", "csv")
    }
    assert set(pd.read_csv(tmp_path / "coverage.csv")["method"]) == set(coverage.METHODS)
