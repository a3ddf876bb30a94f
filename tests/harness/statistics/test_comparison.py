"""Statistics: against explicit sums, scipy, worked examples and simulated coverage."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from numpy.typing import NDArray
from rich.console import Console

from bench.report import terminal
from bench.report.findings import comparison as comparison_findings
from bench.run import main
from bench.statistics import comparison, frames, intervals
from bench.statistics.analysis import Analysis
from flowvae.evaluation.elbo_surgery import PRIOR_SAMPLES
from flowvae.priors import PRIORS

Loglik = dict[str, NDArray[Any]]


def frame(
    effects: dict[str, float],
    *,
    seeds: int = 5,
    latents: tuple[int, ...] = (16,),
    lost: tuple[tuple[str, int, str], ...] = (),
    images: int = 200,
) -> tuple[pd.DataFrame, Loglik]:
    """Return trials whose NLL is 100 plus the prior's effect, a seed deviates by 0.2 nats."""
    rng = np.random.default_rng(1)
    status = {(p, s): word for p, s, word in lost}
    rows: list[dict[str, Any]] = []
    loglik: Loglik = {}
    base = 20 * rng.normal(size=images)
    for prior, effect in effects.items():
        for latent in latents:
            for seed in range(seeds):
                run = f"{prior}-{latent}-{seed}"
                nll = 100 + effect + base + 0.2 * rng.normal() + 0.5 * rng.normal(size=images)
                word = status.get((prior, seed), "complete")
                row = {"run_id": run, "status": word, "prior": prior, "latent": latent}
                row |= {"seed": seed, "net": "mlp", "lr": 1e-3, "dataset": "mnist"}
                row |= {
                    "binarise": "threshold",
                    "data_hash": "d",
                    "nll_estimator": "fitted",
                    "nll_samples": 1000,
                    "nll_precision": "float32",
                    "device": "cpu",
                }
                if word == "complete":
                    loglik[run] = -nll.astype(np.float32)
                    row |= {"test/nll": nll.mean(), "test/elbo": -nll.mean() - 2}
                rows.append(row)
    return pd.DataFrame(rows), loglik


def normal(
    rng: np.random.Generator, seed: float, image: float, rest: float, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return one table of differences with mean zero and the given deviations, (S, N)."""
    s, n = shape
    return (
        seed * rng.normal(size=(s, 1))
        + image * rng.normal(size=(1, n))
        + rest * rng.normal(size=(s, n))
    )


def test_crossed_is_the_two_way_analysis_of_variance_written_out() -> None:
    d = np.array([[1.0, 2.0, 4.0, 1.0], [2.0, 5.0, 6.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    s, n = d.shape
    grand = sum(d[i, j] for i in range(s) for j in range(n)) / (s * n)
    row = [sum(d[i, j] for j in range(n)) / n for i in range(s)]
    col = [sum(d[i, j] for i in range(s)) / s for j in range(n)]
    ms_seed = n * sum((r - grand) ** 2 for r in row) / (s - 1)
    ms_image = s * sum((c - grand) ** 2 for c in col) / (n - 1)
    residuals = [d[i, j] - row[i] - col[j] + grand for i in range(s) for j in range(n)]
    ms_rest = sum(r**2 for r in residuals) / ((s - 1) * (n - 1))
    assert ms_rest < min(ms_seed, ms_image)  # no component is truncated here
    v_seed, v_image = (ms_seed - ms_rest) / n, (ms_image - ms_rest) / s
    variance = v_seed / s + v_image / n + ms_rest / (s * n)
    df = (ms_seed + ms_image - ms_rest) ** 2 / (
        ms_seed**2 / (s - 1) + ms_image**2 / (n - 1) + ms_rest**2 / ((s - 1) * (n - 1))
    )
    half = scipy.stats.t.ppf(0.975, df) * variance**0.5
    p = 2 * scipy.stats.t.sf(abs(grand) / variance**0.5, df)
    found = intervals.crossed(d)
    np.testing.assert_allclose(
        [found.mean, found.low, found.high, found.p, found.df],
        [grand, grand - half, grand + half, p, df],
        rtol=1e-12,
    )
    assert (found.seeds, found.images, found.note) == (3, 4, "indicative")


@pytest.mark.parametrize("images", [1, 7])
def test_crossed_is_the_one_sample_t_test_where_only_seeds_vary(images: int) -> None:
    values = np.array([0.3, -1.0, 2.0, 0.7, 1.1])
    found = intervals.crossed(np.repeat(values[:, None], images, axis=1))
    known = scipy.stats.ttest_1samp(values, 0)
    low, high = known.confidence_interval(0.95)
    np.testing.assert_allclose(
        [found.low, found.high, found.p, found.df], [low, high, known.pvalue, 4], rtol=1e-9
    )
    level = intervals.over_seeds(values, images=images)
    np.testing.assert_allclose([level.low, level.high], [low, high])
    assert level.images == images


@pytest.mark.parametrize(
    ("deviations", "low", "high"),
    [
        pytest.param((1.5, 4.0, 4.0), 0.93, 0.98, id="as measured: seeds dominate"),
        pytest.param((1.0, 0.0, 0.1), 0.93, 0.98, id="seeds alone"),
        pytest.param((0.1, 4.0, 1.0), 0.93, 0.98, id="images dominate"),
        pytest.param(
            (0.1, 0.0, 1.0), 0.94, 1.00, id="on the edge of truncation: wide, not narrow"
        ),
    ],
)
def test_the_interval_covers_the_truth(
    deviations: tuple[float, float, float], low: float, high: float
) -> None:
    rng = np.random.default_rng(2)
    found = [intervals.crossed(normal(rng, *deviations, (5, 100))) for _ in range(1500)]
    assert low <= np.mean([i.low <= 0 <= i.high for i in found]) <= high
    # the p-value comes from the same pivot, so the two always say the same
    assert all((i.p < 0.05) == (not i.low <= 0 <= i.high) for i in found)


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_fewer_than_three_seeds_get_no_interval(seeds: int) -> None:
    found = intervals.crossed(np.ones((seeds, 10)))
    assert np.isnan([found.low, found.high, found.p]).all()
    assert "too few seeds" in found.note
    assert np.isnan(found.mean) if seeds == 0 else found.mean == 1


def test_degenerate_differences() -> None:
    nothing = intervals.crossed(np.zeros((5, 100)))
    assert (nothing.mean, nothing.low, nothing.high, nothing.p) == (0, 0, 0, 1)
    always = intervals.crossed(np.full((5, 100), 2.0))
    assert (always.low, always.high, always.p) == (2, 2, 0)
    with pytest.raises(ValueError, match="1 that are not"):
        intervals.crossed([[1.0, np.inf], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"shape \(seeds, images\)"):
        intervals.crossed([1.0, 2.0])


def test_holm_against_a_worked_example() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, then never decreasing
    np.testing.assert_allclose(intervals.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(intervals.holm([0.9, 0.8]), [1, 1])
    np.testing.assert_array_equal(intervals.holm([0.02, np.nan]), [0.02, np.nan])
    assert intervals.holm([]).size == 0


def test_seeds_needed_would_just_resolve_the_observed_difference() -> None:
    rng = np.random.default_rng(3)
    d = normal(rng, 1.0, 0.0, 1e-6, (5, 50))
    d += 0.4 - d.mean()
    v_seed = d.mean(1).var(ddof=1)
    more = np.arange(6, 500)
    half = scipy.stats.t.ppf(0.975, more - 1) * np.sqrt(v_seed / more)
    assert intervals.seeds_needed(d) == more[half < 0.4][0]
    assert intervals.seeds_needed(d, alpha=0.01) > intervals.seeds_needed(d)
    assert intervals.seeds_needed(d - d.mean()) == np.inf
    assert np.isnan(intervals.seeds_needed(d[:2]))


def test_components_are_those_that_made_the_table() -> None:
    rng = np.random.default_rng(4)
    found = intervals.components(normal(rng, 1.5, 4.0, 3.0, (400, 500)))
    np.testing.assert_allclose(found, (1.5, 4.0, 3.0), rtol=0.1)
    # the interval's variance is theirs
    d = normal(rng, 0.3, 2.0, 3.0, (5, 200))
    m, (seed, image, rest) = intervals.moments(d), intervals.components(d)
    variance = seed**2 / 5 + image**2 / 200 + rest**2 / 1000
    half = scipy.stats.t.ppf(0.975, intervals.crossed(d).df) * variance**0.5
    np.testing.assert_allclose(intervals.half_width(d), half)
    assert intervals.components(m) == intervals.components(d)
    assert np.isnan(intervals.components(d[:2])).all()
    one = intervals.components(d[:, :1])  # one image: all that varies is the seeds'
    assert one == (pytest.approx(d[:, 0].std(ddof=1)), 0, 0)


def test_tables_side_by_side_are_the_tables_one_by_one() -> None:
    rng = np.random.default_rng(5)
    tables = rng.normal(size=(7, 4, 30)) + rng.normal(size=(7, 4, 1))
    m, half = intervals.moments(tables), intervals.half_width(tables)
    for k, table in enumerate(tables):
        one = intervals.crossed(table)
        np.testing.assert_allclose([m.mean[k] - half[k], m.mean[k] + half[k]], [one.low, one.high])
    with pytest.raises(ValueError, match="many such tables"):
        intervals.crossed(tables)


def test_seeds_for_a_half_width() -> None:
    rng = np.random.default_rng(6)
    d = normal(rng, 1.5, 4.0, 4.0, (5, 2000))
    seed, image, rest = intervals.components(d)
    limit = intervals.half_width_limit(d)
    assert limit == pytest.approx(scipy.stats.t.ppf(0.975, 1999) * image / 2000**0.5)
    wanted = 0.5
    assert limit < wanted
    found = int(intervals.seeds_for(d, wanted))
    before, at = intervals.half_width(d, [found - 1, found])
    assert at < wanted <= before
    # at so many seeds the quantile is nearly the normal one
    variance = (seed**2 + rest**2 / 2000) / found + image**2 / 2000
    assert at == pytest.approx(1.96 * variance**0.5, rel=0.1)
    assert intervals.seeds_for(d, 100) == 3
    assert intervals.seeds_for(d, 0.99 * limit) == np.inf
    assert np.isnan(intervals.seeds_for(d[:2], wanted))
    assert np.isnan(intervals.half_width_limit(d[:2]))


def test_more_seeds_reach_the_half_width_that_was_said() -> None:
    rng = np.random.default_rng(7)
    known = intervals.Moments(  # the mean squares to expect from these deviations, 5 x 100
        mean=0.0,
        seed=100 * 1.0**2 + 2.0**2,
        image=5 * 0.5**2 + 2.0**2,
        rest=2.0**2,
        seeds=5,
        images=100,
    )
    said = int(intervals.seeds_for(known, 0.5))
    got = [intervals.half_width(normal(rng, 1.0, 0.5, 2.0, (said, 100))) for _ in range(300)]
    assert np.mean(got) == pytest.approx(0.5, rel=0.03)


def test_the_reference_is_gauss_where_present() -> None:
    assert frames.reference(pd.DataFrame({"prior": ["maf", "gauss"]})) == "gauss"
    assert frames.reference(pd.DataFrame({"prior": ["maf", "nsf", "gauss[x=1]"]})) == "maf"


def test_summary_pairs_seeds_and_images_with_the_reference() -> None:
    trials, loglik = frame({"maf": -3.0, "gauss": 0.0, "nsf": 0.0, "gmm": 4.0}, latents=(2, 16))
    table = comparison.summary(trials, loglik)
    assert table["latent"].tolist() == [2] * 4 + [16] * 4
    assert table["prior"].tolist() == ["maf", "gauss", "nsf", "gmm"] * 2
    assert table["verdict"].tolist() == ["better", "reference", "not resolved", "worse"] * 2
    row = table.iloc[4]
    d = [loglik[f"gauss-16-{s}"].astype(float) - loglik[f"maf-16-{s}"] for s in range(5)]
    found = intervals.crossed(d)
    assert (row["difference"], row["low"], row["p"]) == (found.mean, found.low, found.p)
    assert row["difference"] == pytest.approx(-3, abs=0.6)
    assert row["p_holm"] >= row["p"]
    # the family is the priors compared within one latent size
    np.testing.assert_array_equal(
        table["p_holm"].iloc[[4, 6, 7]], intervals.holm(table["p"].iloc[[4, 6, 7]])
    )
    assert table["seeds_needed"].notna().tolist() == [False, False, True, False] * 2
    assert row["nll_low"] < row["nll"] < row["nll_high"]
    assert row["rank"] == 1


def test_summary_tells_what_a_prior_costs_and_what_to_know_of_it() -> None:
    lost = (("nsf", 0, "diverged"),)
    effects = {"gauss": 0.0, "nsf": -3.0, "lars post-hoc": 1.0, "not_here:mine[width=3]": 0.0}
    trials, loglik = frame(effects, lost=lost)
    nsf, lars = trials["prior"] == "nsf", trials["prior"].str.startswith("lars")
    trials["time/samples_per_second"], trials["time/train_seconds"] = 2000.0, 60.0
    trials["model/prior_parameters"] = np.where(nsf, 7.0, 0.0)
    trials.loc[lars, "test/log_z_error"] = 0.02
    trials["test/bad_samples"] = np.where(nsf, 20.0, 0.0)
    trials.loc[nsf, "test/outside_posterior_l1"] = 0.1
    trials.loc[nsf, "test/outside_posterior_l2"] = trials["seed"] / 10
    table = comparison.summary(trials, loglik).set_index("prior")
    row = table.loc["nsf"]
    assert (row["samples_per_second"], row["train_seconds"]) == (2000, 60)
    assert row["prior_parameters"] == 7
    assert row["bad_share"] == 20 / PRIOR_SAMPLES
    assert row["outside_posterior"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.4) / 4)  # worst layers
    assert table["outside_posterior"].notna().sum() == 1
    assert table["log_z_error"].dropna().to_dict() == {"lars post-hoc": pytest.approx(0.02)}
    assert table.loc["lars post-hoc", "caveat"] == PRIORS["lars"].caveat != ""
    # a prior that cannot be imported here breaks nothing
    assert table["caveat"].drop("lars post-hoc").eq("").all()
    assert table.loc["not_here:mine[width=3]", "seeds"] == 5


@pytest.mark.parametrize("width", [80, 100, 250])
def test_the_table_fits_its_terminal_and_tells_caveats_once(width: int) -> None:
    effects = {"gauss": 0.0, "lars": -2.0, "sospf": -3.0, "bpf": 1.0, f"nsf[{'b' * 30}=1]": 2.0}
    trials, loglik = frame(effects, latents=(2, 16), lost=(("lars", 1, "diverged"),))
    trials["time/samples_per_second"] = 1234567.0
    console = Console(width=width, file=io.StringIO())
    console.print(terminal.fit_table(console, comparison.summary(trials, loglik), trials))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, said.splitlines())) <= width
    for caveat in (f"* lars: {PRIORS['lars'].caveat}", f"* sospf, bpf: {PRIORS['bpf'].caveat}"):
        assert said.count(caveat) == 1
    assert said.count("lars*") == 2
    assert all(word in said for word in ("reference", "better", "worse"))
    assert ("samples/s" in said, "prior par." in said) == (width == 250,) * 2
    assert said.count("1,234,567") == (10 if width == 250 else 0)


def test_a_diverged_seed_takes_its_pair_out_and_its_arm_out_of_the_ranking() -> None:
    lost = (("maf", 1, "diverged"), ("nsf", 0, "failed"))
    trials, loglik = frame({"gauss": 0.0, "maf": -3.0, "nsf": 1.0}, lost=lost)
    # MLflow returns infinity as 1.8e308: complete in name, diverged in fact
    trials.loc[trials["run_id"] == "maf-16-2", "test/nll"] = 1.8e308
    table = Analysis(trials, loglik).summary.set_index("prior")
    maf = table.loc["maf"]
    assert (maf["seeds"], maf["diverged"], maf["pairs"]) == (3, 2, 3)
    assert maf["mark"] == "2 of 5 seeds diverged"
    assert maf["note"] == "indicative"
    assert np.isnan(maf["rank"])
    assert table.loc["nsf", "failed"] == 1
    assert table.loc["nsf", "pairs"] == 4


def test_two_seeds_are_too_few() -> None:
    table = comparison.summary(*frame({"gauss": 0.0, "maf": -3.0}, seeds=2))
    assert table["verdict"].tolist() == ["reference", "too few seeds"]
    assert np.isnan(table["low"].iloc[1])
    assert np.isnan(table["nll_low"].iloc[1])


@pytest.mark.parametrize("column", ["dataset", "binarise", "data_hash", "nll_samples"])
def test_what_cannot_be_compared_is_never_pooled(column: str) -> None:
    trials, loglik = frame({"gauss": 0.0, "maf": -1.0})
    trials.loc[0, column] = 5 if column == "nll_samples" else "other"
    with pytest.raises(ValueError, match=f"Expected one {column}"):
        Analysis(trials, loglik)


def test_another_number_of_validation_images_is_no_other_data() -> None:
    trials, loglik = frame({"gauss": 0.0, "maf": -1.0})
    trials = trials.assign(valid=10, test_hash="t")
    trials.loc[trials["prior"] == "maf", ["valid", "data_hash"]] = 0, "e"
    assert frames.conflicting_columns(trials) == []
    assert set(comparison.summary(trials, loglik)["data_hash"]) == {"d, e"}
    trained = trials.assign(valid=10)
    unknown = trials.assign(test_hash=["t"] * 9 + [None])
    others = trials.assign(test_hash=["t"] * 5 + ["u"] * 5)
    for each in (trained, unknown, others):
        assert frames.conflicting_columns(each) == ["data_hash"]


def test_the_order_of_rows_changes_no_number() -> None:
    trials, loglik = frame({"gauss": 0.0, "maf": -1.0, "nsf": -1.0}, seeds=60, images=4)
    arms = (rows.sample(frac=1, random_state=4) for _, rows in trials.groupby("prior"))
    shuffled = pd.concat(arms)
    sums = (
        rows["test/nll"][rows["prior"] == "maf"].to_numpy().sum() for rows in (trials, shuffled)
    )
    assert next(sums) != next(sums)
    same = comparison.summary(shuffled, loglik)
    pd.testing.assert_frame_equal(same, comparison.summary(trials, loglik), check_exact=True)


def test_without_scores_of_images_the_interval_is_over_seeds() -> None:
    trials, loglik = frame({"gauss": 0.0, "maf": -3.0})
    assert comparison.sampled_over(comparison.summary(trials, loglik)) == comparison.OVER_BOTH
    table = comparison.summary(trials, comparison.mean_loglik(trials))
    each = trials.pivot(index="seed", columns="prior", values="test/nll")
    found = intervals.over_seeds(each["maf"] - each["gauss"])
    assert table.loc[1, ["low", "high"]].tolist() == pytest.approx([found.low, found.high])
    assert comparison.sampled_over(table) == comparison.OVER_SEEDS
    (said,) = comparison_findings.precision_sentences(table)
    assert "between seeds" in said
    assert "images" not in said


def test_a_trial_counts_once() -> None:
    trials, loglik = frame({"gauss": 0.0})
    with pytest.raises(ValueError, match="one row per trial"):
        Analysis(pd.concat([trials, trials]), loglik)


def test_an_axis_is_what_was_crossed_and_not_what_was_tuned() -> None:
    trials, loglik = frame({"gauss": 0.0, "maf": -3.0})
    trials.loc[trials["prior"] == "maf", "lr"] = 5e-4  # tuned for each prior: still compared
    assert frames.axes(trials) == ["net", "latent"]
    assert comparison.summary(trials, loglik)["verdict"].tolist() == ["reference", "better"]
    twice = trials.assign(run_id=trials["run_id"] + "x", lr=trials["lr"] * 10)
    both = pd.concat([trials.assign(lr=1e-3), twice.assign(lr=1e-2)])
    assert frames.axes(both) == ["net", "latent", "lr"]
    all_loglik = loglik | {f"{run}x": values for run, values in loglik.items()}
    table = comparison.summary(both, all_loglik)
    assert table["lr"].tolist() == [1e-3, 1e-3, 1e-2, 1e-2]
    assert table["pairs"].tolist() == [0, 5, 0, 5]


def test_how_a_prior_was_trained_is_no_axis() -> None:
    trials, loglik = frame({"gauss": 0.0, "maf": -3.0, "maf post-hoc": -1.0})
    how = trials["prior"].str.endswith("post-hoc").map({True: "post-hoc", False: "joint"})
    trials = trials.assign(training=how)
    assert frames.axes(trials) == ["net", "latent"]
    table = comparison.summary(trials, loglik)
    assert table["verdict"].tolist() == ["reference", "better", "better"]


def test_summary_and_pairs_tell_the_components_and_the_seeds_they_ask_for() -> None:
    trials, loglik = frame({"maf": -3.0, "gauss": 0.0}, seeds=4)
    both = comparison.summary(trials, loglik, resolution=0.3), comparison.pairs(trials, loglik)
    d = [loglik[f"gauss-16-{s}"].astype(float) - loglik[f"maf-16-{s}"] for s in range(4)]
    for table in both:
        row = table.iloc[0]
        assert tuple(row[["sd_seed", "sd_image", "sd_rest"]]) == intervals.components(d)
        assert row["seeds_for_resolution"] == intervals.seeds_for(d, row["resolution"])
        assert row["half_width_limit"] == intervals.half_width_limit(d)
    assert [table["resolution"].iloc[0] for table in both] == [0.3, comparison.RESOLUTION]
    assert np.isnan(both[0]["sd_seed"].iloc[1])  # the reference


def test_resolutions_say_what_more_seeds_bring() -> None:
    trials = frame({"gauss": 0.0, "maf": -3.0, "nsf": 0.0})
    (said,) = comparison_findings.precision_sentences(comparison.summary(*trials, resolution=0.2))
    table = comparison.summary(*trials, resolution=0.2)
    maf, nsf = table["seeds_for_resolution"].iloc[1:]
    assert f"needs about {maf:.0f} seeds for maf, {nsf:.0f} for nsf" in said
    assert "standard deviations of" in said
    assert "(maf, nsf)" in said
    (little,) = comparison_findings.precision_sentences(
        comparison.summary(*trials, resolution=1e-9)
    )
    assert "cannot be reached with any number of seeds for maf" in little
    assert "more than 1000 seeds" in little or "cannot be reached" in little
    (much,) = comparison_findings.precision_sentences(comparison.summary(*trials, resolution=50))
    assert much.endswith("A 95 % interval of ±50 nats is reached for maf, nsf.")
    (many,) = comparison_findings.precision_sentences(
        comparison.summary(*frame({f"p{i}": float(i) for i in range(6)}))
    )
    assert " to " in many
    (rough,) = comparison_findings.precision_sentences(
        comparison.summary(*frame({"gauss": 0.0, "maf": 0.0}, seeds=3))
    )
    assert "(rough: 3 seeds)" in rough
    assert not comparison_findings.precision_sentences(
        comparison.summary(*frame({"gauss": 0.0, "maf": 0.0}, seeds=2))
    )


@pytest.mark.parametrize("text", ["0", "-1", "little"])
def test_a_resolution_is_a_number_above_zero(text: str, capsys: pytest.CaptureFixture) -> None:
    assert main([f"--resolution={text}", "--dry-run"]) == 2
    assert f"bad --resolution '{text}': expected a number" in capsys.readouterr().err


def test_pairs_holds_every_pair_once() -> None:
    table = comparison.pairs(*frame({"gauss": 0.0, "maf": -3.0, "nsf": -3.0}))
    names = list(zip(table["prior"], table["against"], strict=True))
    assert names == [("maf", "gauss"), ("nsf", "gauss"), ("nsf", "maf")]
    assert table["verdict"].tolist() == ["better", "better", "not resolved"]


def test_a_pair_counts_the_seeds_that_either_lost_and_uses_the_others() -> None:
    lost = (("gauss", 0, "diverged"), ("maf", 1, "diverged"), ("maf", 2, "failed"))
    trials, loglik = frame({"gauss": 0.0, "maf": -3.0, "nsf": -3.0}, lost=lost, seeds=7)
    table = comparison.pairs(trials, loglik).set_index(["prior", "against"])
    assert table["diverged"].tolist() == [2, 1, 1]
    assert table["pairs"].tolist() == [4, 6, 5]
    kept = range(3, 7)
    d = [loglik[f"gauss-16-{s}"].astype(float) - loglik[f"maf-16-{s}"] for s in kept]
    assert table.loc[("maf", "gauss"), "high"] == intervals.crossed(d).high


def test_sentences_say_what_was_found() -> None:
    lost = (("gmm", 1, "diverged"),)
    effects = {"gauss": 0.0, "maf": -3.0, "nsf": 0.02, "gmm": 4.0}
    said = comparison_findings.comparison_sentences(comparison.summary(*frame(effects, lost=lost)))
    assert len(said) == 3
    assert said[0].startswith("At D = 16, maf lowers the test NLL by ")
    assert "against gauss (5 seeds, Holm p" in said[0]
    assert "the test NLL of nsf minus that of gauss is " in said[1]
    assert ", which is not resolved; " in said[1]
    assert said[1].endswith("seeds would resolve it.")
    assert "gmm raises the test NLL" in said[2]
    assert said[2].endswith("; 1 of 5 seeds diverged.")
    low, high = (float(v) for v in said[0].split("[")[1].split("]")[0].split(", "))
    assert 0 < low < 3.5 > high - low


def test_sentences_about_few_seeds_and_a_prior_alone() -> None:
    (two,) = comparison_findings.comparison_sentences(
        comparison.summary(*frame({"gauss": 0.0, "maf": -3.0}, seeds=2))
    )
    assert "2 seeds: too few seeds for an interval over seeds" in two
    (three,) = comparison_findings.comparison_sentences(
        comparison.summary(*frame({"gauss": 0.0, "maf": -3.0}, seeds=3))
    )
    assert "indicative" in three
    (alone,) = comparison_findings.comparison_sentences(
        comparison.summary(*frame({"maf": -3.0}, seeds=1))
    )
    assert alone.startswith("At D = 16, maf has a test NLL of")


def test_fifteen_priors_take_well_under_a_second() -> None:
    trials, loglik = frame({f"p{i}": float(i) for i in range(15)}, images=10_000)
    start = time.perf_counter()
    comparison.summary(trials, loglik)
    assert len(comparison.pairs(trials, loglik)) == 105
    assert time.perf_counter() - start < 3  # about 0.3 s on two idle cores


def test_a_difference_tells_what_the_estimator_adds_to_it() -> None:
    """Over the seeds at which both priors are complete."""
    trials, loglik = frame({"gauss": 0.0, "maf": -3.0}, seeds=4, lost=(("maf", 1, "diverged"),))
    assert (
        comparison.summary(trials, loglik)[[*comparison.ESTIMATOR_COLUMNS]].isna().all(axis=None)
    )
    for prior, bias, se in (("gauss", 0.5, 0.03), ("maf", 0.1, 0.04)):
        mine = trials["prior"] == prior
        trials.loc[mine, "test/nll_bias"] = bias + 0.01 * trials["seed"][mine]
        trials.loc[mine, "test/nll_se"] = se
    trials.loc[(trials["prior"] == "gauss") & (trials["seed"] == 1), "test/nll_se"] = 9.0
    summary = comparison.summary(trials, loglik).set_index("prior")
    (pair,) = comparison.pairs(trials, loglik).to_dict("records")
    for row in (summary.loc["maf"], pair):
        assert row["bias_difference"] == pytest.approx(-0.4)
        assert row["monte_carlo_se"] == pytest.approx(0.05 / 3**0.5)
    assert np.isnan(summary.loc["gauss", "bias_difference"])
