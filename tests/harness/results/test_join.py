"""Reports across experiments, stores and tables: joined as one grid, or refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from support.fast_commands import leave_undrawn

from bench import run
from bench.report import __main__ as report_command
from bench.results.trials_csv import REQUIRED_COLUMNS, read_table
from bench.statistics.analysis import Analysis
from bench.statistics.captions import TEST_IMAGES
from bench.statistics.frames import COMPARABLE_COLUMNS
from flowvae.estimator import ESTIMATORS

ROOT = Path(__file__).parents[3]
TINY = ["--latents", "2", "--seeds", "0:3", "--nets", "mlp[hidden=8]", "--epochs", "1"]
TINY += ["--nll-samples", "5"]
MAF = "maf[transforms=1,hidden=8]"
# what is measured anew in every run, and what only a joined table has
MEASURED = r"second|timing|source"
Report = Callable[..., str]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], Path]) -> Path:
    """A folder with two stores: a whole grid, its two halves, and what is unlike them."""
    folder = tmp_path_factory.mktemp("stores")
    make_store(folder)
    make_store(folder / "far")
    far = "--tracking-uri sqlite:///far/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        leave_undrawn(patch)
        for more in (
            f"whole --priors gauss,{MAF}",
            f"maf --priors {MAF}",
            f"gauss --priors gauss {far}",
            f"fast --priors gauss,{MAF} --lr 0.01 --seeds 0 {far}",
            "drawn --priors gauss --binarise stochastic --seeds 0",
            "order --priors diagonal --seeds 0",
            f"order --priors {MAF},diagonal --seeds 0",
            "held --priors gauss --valid 100 --seeds 0",
            "twice --priors gauss --seeds 0",
            "twice --priors gauss --seeds 0 --nll-samples 6",
            "both --priors gauss --seeds 0",
            "both --priors gauss --seeds 0 --estimator encoder",
            "tuned --priors gauss --seeds 0 --tune-lr 1e-3,1e-2",
        ):
            assert run.main([*TINY, "--name", *more.split()]) == 0
        assert run.main([*TINY, *"--name lost --priors gauss --seeds 0 --lr 1e9".split()]) == 1
    return folder


@pytest.fixture
def reported(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Report:  # fmt: skip
    """Runs the command where the stores lie, its results elsewhere; returns what was said."""
    monkeypatch.chdir(stores)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    leave_undrawn(monkeypatch)
    for module in ("build", "__main__"):
        monkeypatch.setattr(f"bench.report.{module}.RESULTS_FOLDER", tmp_path)

    def call(*argv: str, status: int = 0) -> str:
        capsys.readouterr()
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert report_command.main(argv) == status
        said = capsys.readouterr()
        if status == 2:
            assert said.err.startswith("error: ")
            assert said.err.count("\n") == 1
            after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
            assert after == before  # nothing was written
        return said.err if status == 2 else said.out

    return call


def grids(stores: Path, name: str) -> Path:
    return stores / "results" / "local" / name


def unmeasured(path: Path) -> pd.DataFrame:
    """Returns a table without times and sources, by prior."""
    frame = pd.read_csv(path, dtype=str)
    kept = frame[[c for c in frame if not pd.Series([c]).str.contains(MEASURED)[0]]]
    return kept.sort_values(["latent", "prior"], ignore_index=True)


def test_one_experiment_is_reported_again_to_the_bit(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    said = reported("whole")
    for table in ("summary", "pairs", "trials"):
        again, first = (f / f"{table}.csv" for f in (tmp_path / "whole", grids(stores, "whole")))
        assert again.read_bytes() == first.read_bytes()
    first = (grids(stores, "whole") / "report.md").read_text()
    again = (tmp_path / "whole" / "report.md").read_text()
    question = "A first look that needs no download."
    assert question in first
    assert question in again
    assert "last run of whole: python -m bench.run --latents 2" in said
    assert "from" not in pd.read_csv(tmp_path / "whole" / "summary.csv")


def test_an_experiment_whose_every_trial_diverged_is_reported(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    said = reported("lost", status=1)
    assert "diverged" in said
    (row,) = pd.read_csv(tmp_path / "lost" / "summary.csv").to_dict("records")
    assert (row["diverged"], row["nll_samples"]) == (1, 5)
    assert "paired difference" not in (tmp_path / "lost" / "report.md").read_text()
    beside = reported("lost", "whole", status=1)
    assert "gauss at lr" in beside or "lr = 1000000000.0" in beside


def test_pictures_of_the_runs_and_the_test_images_come_along(
    reported: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, set[str]]] = []

    def draw(analysis: Analysis, folder: Path) -> list[Path]:
        assert folder.name == "pictures"
        drawn.append({"runs": set(analysis.frame["run_id"]), "samples": set(analysis.samples)})
        return []

    monkeypatch.setattr("bench.report.build.draw_all", draw)
    reported("maf", "--name", "pictures")
    (one,) = drawn
    assert one["samples"] == one["runs"] | {TEST_IMAGES}


def test_priors_stand_as_they_were_typed_not_as_they_were_started(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    reported("order")
    again, first = (f / "summary.csv" for f in (tmp_path / "order", grids(stores, "order")))
    assert again.read_bytes() == first.read_bytes()
    assert set(pd.read_csv(again)["reference"]) == {MAF}


@pytest.mark.parametrize("names", [(0, 1), (1, 0)])
def test_two_halves_are_the_whole_to_the_bit(
    names: tuple[int, int], reported: Report, stores: Path, tmp_path: Path
) -> None:
    halves = "sqlite:///far/mlflow.db#gauss", "maf"
    said = reported(*(halves[k] for k in names), "--name", "joined")
    for table in ("summary", "pairs"):
        joined, whole = (
            unmeasured(folder / f"{table}.csv")
            for folder in (tmp_path / "joined", grids(stores, "whole"))
        )
        if table == "pairs" and names == (1, 0):
            continue  # the other way round
        pd.testing.assert_frame_equal(joined, whole, check_exact=True, check_like=True)
    summary = pd.read_csv(tmp_path / "joined" / "summary.csv")
    assert dict(zip(summary["prior"], summary["source"], strict=True)) == {
        "gauss": "gauss",
        MAF: "maf",
    }
    assert set(summary["covers"].dropna()) == {"seeds and images"}
    assert "differs:" not in said
    page = (tmp_path / "joined" / "report.html").read_text()
    for trial in pd.read_csv(tmp_path / "joined" / "trials.csv")["run_id"]:
        assert f"/runs/{trial}" in page
    assert "far/mlflow.db" in said


def test_a_table_of_several_sources_still_tells_them(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    reported("sqlite:///far/mlflow.db#gauss", "maf", "--name", "joined")
    said = reported(f"{tmp_path}/joined/", "--name", "again")
    first, again = (pd.read_csv(tmp_path / name / "trials.csv") for name in ("joined", "again"))
    assert set(first["source"]) == {"gauss", "maf"}
    assert again["source"].equals(first["source"])
    assert pd.read_csv(tmp_path / "again" / "summary.csv")["source"].to_list() == ["gauss", "maf"]
    assert "no scores of single images, curves or pictures of gauss, maf" in " ".join(said.split())
    assert "| from |" in (tmp_path / "again" / "report.md").read_text()
    reported(f"{tmp_path}/joined/", "held", "--name", "more", "--only", "prior=gauss")
    more = pd.read_csv(tmp_path / "more" / "trials.csv")
    assert set(more["source"]) == {"joined: gauss", "held"}


def test_the_folder_is_named_after_the_sources(reported: Report, tmp_path: Path) -> None:
    reported("maf", "sqlite:///far/mlflow.db#gauss")
    assert (tmp_path / "maf+gauss" / "report.html").exists()


def test_what_differs_is_told_and_sets_arms_apart(reported: Report, tmp_path: Path) -> None:
    said = reported("whole", "sqlite:///far/mlflow.db#fast")
    assert "differs: lr: 0.002 in whole; 0.01 in fast" in said
    assert "differs: epochs" not in said
    summary = pd.read_csv(tmp_path / "whole+fast" / "summary.csv")
    assert sorted(zip(summary["lr"], summary["prior"], strict=True)) == [
        (lr, prior) for lr in (0.002, 0.01) for prior in ("gauss", MAF)
    ]
    assert f"At D = 2, lr = 0.01, the test NLL of {MAF} minus that of gauss" in said
    assert "| differs: lr |" in (tmp_path / "whole+fast" / "report.md").read_text()


def test_another_validation_set_of_the_same_test_images_is_told(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    said = reported("maf", "held")
    assert "differs: valid: 237 in maf; 100 in held" in said
    summary = pd.read_csv(tmp_path / "maf+held" / "summary.csv", index_col="prior")
    assert summary.loc[MAF, "pairs"] == 1
    assert summary.loc[MAF, "images"] == 360
    assert ", " in summary.loc[MAF, "data_hash"]
    table = pd.read_csv(grids(stores, "held") / "trials.csv")
    table.drop(columns="test_hash").to_csv(tmp_path / "old.csv", index=False)
    for names in (("maf", f"{tmp_path}/old.csv"), (f"{tmp_path}/old.csv", "maf")):
        said = reported(*names, status=2)
        assert "(data_hash)" in said
        assert "Their validation sets differ (images held out of the training images: " in said
        assert "237 in maf" in said
        assert "100 in old" in said
    table.assign(test_hash="another").to_csv(tmp_path / "other.csv", index=False)
    said = reported("maf", str(tmp_path / "other.csv"), status=2)
    assert "(data_hash)" in said
    assert "validation" not in said
    table.assign(valid=237).drop(columns="test_hash").to_csv(tmp_path / "old.csv", index=False)
    assert "validation" not in reported("maf", str(tmp_path / "old.csv"), status=2)


def test_a_trial_of_two_sources_is_taken_once(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    said = reported("whole", "maf", "--name", "once")
    assert "taken once: 3 of whole that are also in maf\n" in said
    pd.testing.assert_frame_equal(
        unmeasured(tmp_path / "once" / "summary.csv"),
        unmeasured(grids(stores, "whole") / "summary.csv"),
        check_exact=True,
    )


def test_a_store_goes_before_a_table_and_says_where_they_differ(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(grids(stores, "whole") / "trials.csv")
    table.loc[0, "test/nll"] += 0.5
    table.to_csv(tmp_path / "old.csv", index=False)
    said = reported(str(tmp_path / "old.csv"), "whole", "--name", "both")
    assert (
        "taken once: 6 of whole that are also in old (test NLLs differ by up to 0.5 nats)" in said
    )
    summary = pd.read_csv(tmp_path / "both" / "summary.csv")
    assert set(summary["covers"].dropna()) == {"seeds and images"}


def test_without_scores_of_images_intervals_are_over_seeds(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    said = reported("results/local/whole", "--name", "seeds")
    summary = pd.read_csv(tmp_path / "seeds" / "summary.csv", index_col="prior")
    row = summary.loc[MAF]
    trials = pd.read_csv(grids(stores, "whole") / "trials.csv").pivot(
        index="seed", columns="prior", values="test/nll"
    )
    d = trials[MAF] - trials["gauss"]
    half = scipy_stats.t.ppf(0.975, 2) * d.std(ddof=1) / np.sqrt(3)
    assert row["difference"] == pytest.approx(d.mean())
    assert (row["low"], row["high"]) == pytest.approx((d.mean() - half, d.mean() + half))
    assert row["covers"] == "seeds"
    assert "to gauss over seeds alone, on the test images as they are" in said
    assert "between images" not in said
    page = (tmp_path / "seeds" / "report.md").read_text()
    assert "over seeds alone" in page
    assert "test images\n" not in page


def test_both_kinds_of_intervals_never_stand_in_one_table(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    said = reported("whole", "results/local/drawn", "--only", "binarise=fixed", status=2)
    assert "no trial has binarise=fixed: the values of binarise are threshold, stochastic" in said
    said = reported("whole", "results/local/drawn", "--only", "binarise=threshold")
    assert "left out results/local/drawn: no trial has binarise=threshold" in " ".join(
        said.split()
    )
    table = pd.read_csv(grids(stores, "whole") / "trials.csv")
    other = table[table["prior"] == MAF].assign(prior="nsf")
    other["trial"], other["run_id"] = other["trial"] + "x", other["run_id"] + "x"
    other.to_csv(tmp_path / "other.csv", index=False)
    said = reported("whole", str(tmp_path / "other.csv"))
    assert "no scores of single images, curves or pictures of other" in " ".join(said.split())
    summary = pd.read_csv(tmp_path / "whole+other" / "summary.csv")
    assert list(summary["covers"].dropna()) == ["seeds", "seeds"]
    pairs = pd.read_csv(tmp_path / "whole+other" / "pairs.csv")
    assert list(pairs["covers"]) == ["seeds"] * 3


OTHER = {
    "dataset": "mnist", "binarise": "fixed", "data_hash": "0123456789012345", "nll_samples": "7",
    "nll_estimator": "encoder", "nll_precision": "bf16", "nll_images": "100",
}  # fmt: skip


@pytest.mark.parametrize("column", COMPARABLE_COLUMNS)
def test_numbers_that_cannot_be_compared_are_refused(
    column: str, reported: Report, stores: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(grids(stores, "whole") / "trials.csv", dtype=str)
    was = table[column].iloc[0]
    table.assign(**{column: OTHER[column]}).to_csv(tmp_path / "other.csv", index=False)
    said = reported("whole", str(tmp_path / "other.csv"), status=2)
    assert f"{was} in whole; {OTHER[column]} in other" in said
    assert COMPARABLE_COLUMNS[column] in said


def test_other_binarisations_and_evaluations_of_stores_are_refused(reported: Report) -> None:
    said = reported("whole", "drawn", status=2)
    assert "differ in the binarisation: threshold in whole; stochastic in drawn" in said
    said = reported("twice", status=2)
    fitted = "fitted: importance sampling, fitted proposal, K = "
    assert f"several evaluations ({fitted}5; {fitted}6)" in said
    assert "K = 6" in reported("twice", "--nll-samples", "6")
    said = reported("twice", "maf", "--nll-samples", "6", status=2)
    assert "experiment maf in sqlite:///" in said
    assert f"has no such evaluation: it has {fitted}5" in said


def test_estimators_of_stores_are_never_mixed(reported: Report, tmp_path: Path) -> None:
    said = reported("both", status=2)
    assert "encoder: importance weighting, K = 5; fitted: importance sampling" in said
    assert "choose one by --estimator" in said
    for estimator in ("fitted", "encoder"):
        said = reported("both", "--estimator", estimator)
        assert ESTIMATORS[estimator].describe(5) in " ".join(said.split())
        table = pd.read_csv(tmp_path / "both" / "trials.csv")
        assert list(table["nll_estimator"]) == [estimator]
    shutil.copytree(tmp_path / "both", tmp_path / "older")  # of the encoder
    said = reported("whole", f"{tmp_path}/older", status=2)
    assert "differ in the estimator of the NLL (nll_estimator): fitted in whole; encoder" in said
    assert "scores fitted models again" in said
    assert "has no such evaluation" in reported(
        "whole", "both", "--estimator", "encoder", status=2
    )


def test_two_trials_in_one_place_are_refused(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(grids(stores, "maf") / "trials.csv")
    table.assign(trial="0123456789ab").head(1).to_csv(tmp_path / "older.csv", index=False)
    said = reported("maf", str(tmp_path / "older.csv"), status=2)
    assert f"{MAF}, D = 2, seed 0 is {table['trial'][0]} and 0123456789ab in maf, older" in said
    assert "they differ in the code that ran them" in said
    table.assign(trial="0123456789ab", commit="older").to_csv(tmp_path / "older.csv", index=False)
    assert "they differ in commit" in reported("maf", str(tmp_path / "older.csv"), status=2)
    cured = reported("maf", str(tmp_path / "older.csv"), "--only", "commit=older", "--name", "o")
    assert "left out maf" in cured


def test_the_trials_of_a_tuning_are_not_reported(reported: Report, tmp_path: Path) -> None:
    reported("tuned")
    assert len(pd.read_csv(tmp_path / "tuned" / "trials.csv")) == 1


def test_nothing_of_another_command_is_written_over(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    (tmp_path / "maf").mkdir()
    (tmp_path / "maf" / "command.txt").write_text("python -m bench.run maf\n")
    said = reported("whole", "--name", "maf", status=2)
    assert "holds the results of another command" in said
    for far in (f"sqlite:///{stores}/mlflow.db#maf", "maf"):  # not this store's, and not all
        only = ["--only", "seed=0"] if far == "maf" else []
        said = reported(far, *only, "--name", "maf", status=2)
        assert "holds the results of another command" in said
    reported("maf")  # takes the place of its own
    assert "another command" in reported("whole", "--name", "maf", status=2)
    reported("maf")
    shutil.copy(grids(stores, "whole") / "trials.csv", tmp_path / "maf")
    said = reported(str(tmp_path / "maf"), status=2)
    assert "the report would be written over" in said


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["hole"], "did you mean 'whole'?"),
        (["./whole"], "cannot read the trials whole/trials.csv"),
        (["sqlite:///far/mlflow.db"], "expected STORE#EXPERIMENT"),
        (["sqlite:///none.db#whole"], "there is no MLflow store at"),
        (["whole", "whole"], "'whole' is named twice"),
        (["whole", "--only", "prior"], "expected COLUMN=LIST"),
        (["whole", "--only", "pior=maf"], "did you mean 'prior'?"),
        (["whole", "--nll-samples", "0"], "bad --nll-samples '0'"),
        (["whole", "--name", "../x"], "bad --name"),
    ],
)
def test_what_is_not_there_is_refused(
    argv: list[str], told: str, reported: Report, stores: Path
) -> None:
    before = sorted(stores.rglob("*.db"))
    assert told in reported(*argv, status=2)
    assert sorted(stores.rglob("*.db")) == before


@pytest.mark.parametrize("name", ["digits", "gated", "priors", "tutorial", "two-stage"])
def test_committed_tables_are_read_as_they_are(name: str, reported: Report) -> None:
    path = ROOT / "results" / name / "trials.csv"
    frame = read_table(path)
    written = pd.read_csv(path, dtype=str)
    for column, kind in (("test/nll", float), ("nll_samples", int), ("trial", str)):
        assert frame[column].tolist() == [kind(text) for text in written[column]]
    assert "over seeds alone" in reported(
        str(path), status=int((frame["status"] != "complete").any())
    )


def test_a_table_of_the_required_columns_is_enough(
    reported: Report, stores: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(grids(stores, "whole") / "trials.csv", dtype=str)
    table[list(REQUIRED_COLUMNS)].to_csv(tmp_path / "few.csv", index=False)
    assert "Test NLL" in reported(str(tmp_path / "few.csv"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is not a table of trials"),
        ("a,b\n1,2\n", "run_id, status"),
        ("\x00\n", "is not a table of trials"),
    ],
)
def test_what_is_no_table_is_refused(
    content: str, told: str, reported: Report, tmp_path: Path
) -> None:
    (tmp_path / "bad.csv").write_text(content)
    assert told in reported(str(tmp_path / "bad.csv"), status=2)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("status", "done", "bad status 'done'"),
        ("seed", "-1", "line 2: bad seed '-1'"),
        ("test/nll", "low", "line 2: bad test/nll 'low': expected a number"),
        ("test/nll", "", "a complete trial has no test/nll"),
        ("data_hash", "", "a complete trial has no data_hash"),
    ],
)
def test_a_damaged_table_is_refused(
    column: str, value: str, told: str, reported: Report, stores: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(grids(stores, "whole") / "trials.csv", dtype=str)
    table.loc[0, column] = value
    table.to_csv(tmp_path / "bad.csv", index=False)
    assert told in reported(str(tmp_path / "bad.csv"), status=2)
