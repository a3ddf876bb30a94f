"""Timings on a shared device: marked, and compared with none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities import Run
from rich.console import Console
from support.claimed_runs import start
from support.synthetic_grids import make

import flowvae
from bench.execution import worker
from bench.execution.checkpoints import checkpoint_path
from bench.execution.executors.base import SerialExecutor
from bench.execution.plan import Placement
from bench.execution.worker import run_job
from bench.figures import style as figure_style
from bench.figures.catalogue import throughput_nll
from bench.report import columns, terminal
from bench.results.read import read_results
from bench.run import main
from bench.statistics import arms, captions, comparison
from bench.statistics.analysis import Analysis
from bench.statistics.metrics import METRICS
from bench.store.run_writer import RunWriter
from bench.store.runs import SHARED_TAG, THREADS_TAG, Store
from flowvae.checkpoint import Checkpoint
from flowvae.data import Dataset
from flowvae.trial import Evaluation, Trial

TINY = ["--latents", "2", "--seeds", "0:2", "--nets", "mlp[hidden=8]", "--epochs", "2"]
TINY += ["--priors", "gauss,maf[hidden=8]", "--nll-samples", "5"]
EVALUATION = Evaluation(samples=5)
SPEEDS = ["images_per_second", "samples_per_second", "train_seconds"]
STALE = {"time/images_per_second": -1.0}


@pytest.fixture
def place(
    make_store: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: Dataset,
) -> Placement:
    """A place whose device two jobs share."""
    monkeypatch.chdir(tmp_path)
    store = Store(f"sqlite:///{make_store(tmp_path)}", "digits", digits.hash)
    return Placement(store, digits, tmp_path, "cpu", 2, True, False, 60.0, shared=2)


def tiny(prior: str = "gauss", seed: int = 0, **changes: object) -> Trial:
    return Trial(prior=prior, latent=2, seed=seed, net="mlp[hidden=8]", epochs=1).but(**changes)


def ran(place: Placement, *trials: Trial) -> None:
    """Runs trials, and makes their timings such as no clock would take."""
    for job in place.jobs(trials, EVALUATION):
        done = run_job(job)
        assert done
        assert {outcome.status for outcome in done} == {"complete"}
    for each in place.store.runs(trials).values():
        record = RunWriter(place.store.client, each.info.run_id)
        record.metrics(STALE)
        record.flush()


def found(place: Placement, trial: Trial) -> Run:
    return place.store.runs([trial])[trial.id]


def shared(frame: pd.DataFrame, prior: str, *seeds: int) -> pd.DataFrame:
    mine = (frame["prior"] == prior) & frame["seed"].isin(seeds)
    return frame.assign(timing=np.where(mine, "shared", "alone"))


def test_a_run_tells_whether_its_device_was_shared(place: Placement) -> None:
    ran(place, tiny())
    ran(replace(place, shared=1), tiny(seed=1))
    old = tiny(seed=2)
    ran(place, old)
    place.store.client.delete_tag(found(place, old).info.run_id, SHARED_TAG)
    again = tiny(seed=3)  # an earlier version measured it once more
    ran(place, again)
    measured = {SHARED_TAG: "1", THREADS_TAG: "1", "timing.device": "cpu: another"}
    for name, value in measured.items():
        place.store.client.set_tag(found(place, again).info.run_id, name, value)
    frame = read_results(place.store, [tiny(seed=s) for s in range(5)], EVALUATION).frame
    assert list(frame["timing"].fillna("")) == ["shared", "alone", "alone", "alone", ""]
    assert frame["timing_device"][3] == "cpu: another"
    assert list(frame["status"]) == ["complete"] * 4 + ["missing"]
    assert (frame["time/images_per_second"][:4] == -1).all()  # what was measured stays


def test_what_is_scored_anew_on_a_shared_device_is_shared(place: Placement) -> None:
    trial, alone = tiny(), replace(place, shared=1)
    ran(alone, trial)
    for where, samples, tag in ((alone, 6, "1"), (place, 7, "2"), (alone, 8, "2")):
        (job,) = where.jobs([trial], Evaluation(samples=samples))
        assert run_job(job)
        assert found(place, trial).data.tags[SHARED_TAG] == tag


def test_a_fit_that_goes_on_alone_was_shared_before(place: Placement, digits: Dataset) -> None:
    trial = tiny(epochs=2)
    (job,) = place.jobs([trial], EVALUATION)
    stops = iter((False, False, "SIGTERM"))
    checkpoint = Checkpoint(checkpoint_path(job, [trial]), stop=partial(next, stops))
    start(place.store, trial, digits, worker._tags(job, [trial], [])).finish("killed")
    with pytest.raises(KeyboardInterrupt):
        flowvae.fit([trial], digits, checkpoint=checkpoint)
    (again,) = replace(place, shared=1).jobs([trial], EVALUATION)
    assert again.resumed
    assert run_job(again)
    assert found(place, trial).data.tags[SHARED_TAG] == "2"


def test_a_fit_that_goes_on_with_other_threads_is_marked(
    place: Placement, digits: Dataset
) -> None:
    trial, alone = tiny(epochs=2), replace(place, shared=1)
    (job,) = alone.jobs([trial], EVALUATION)
    stops = iter((False, False, "SIGTERM"))
    checkpoint = Checkpoint(checkpoint_path(job, [trial]), stop=partial(next, stops))
    with pytest.raises(KeyboardInterrupt):
        flowvae.fit([trial], digits, checkpoint=checkpoint)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(RuntimeWarning, match="its timings cover all of them"):
            assert run_job(job)
    finally:
        torch.set_num_threads(threads)
    assert found(place, trial).data.tags[THREADS_TAG] == f"{threads}, {threads + 1}"
    results = read_results(place.store, [trial], EVALUATION)
    assert list(results.frame["timing"]) == ["resumed"]
    table = comparison.summary(results.frame, results.loglik)
    assert list(table["timing"]) == ["resumed"]
    assert table[SPEEDS].isna().all(axis=None)
    assert columns.format_metric(table.iloc[0], METRICS[arms.THROUGHPUT]) == columns.SHARED_MARK
    (note,) = (n for n in columns.footnotes(table, results.frame) if columns.SHARED_MARK in n)
    assert "timed in parts, with several numbers of threads and left out: gauss at D = 2" in note


def test_both_reasons_to_leave_timings_out_are_told() -> None:
    frame = shared(make(latents=(2,)).frame, "maf", 0)
    frame.loc[(frame["prior"] == "gauss") & (frame["seed"] == 1), "timing"] = "resumed"
    told = captions.untimed(frame)
    assert "timed on a shared device and left out: maf at D = 2 (1)" in told
    assert "numbers of threads and left out: gauss at D = 2 (1)" in told
    assert told.count("--executor serial") == 1


def test_speeds_are_those_of_seeds_that_were_alone() -> None:
    made = make(latents=(2,))
    whole = comparison.summary(made.frame, made.loglik).set_index("prior")
    assert list(whole["timed"]) == [3, 3]
    mixed = shared(made.frame, "maf", 0, 2)
    table = comparison.summary(mixed, made.loglik).set_index("prior")
    maf = mixed[mixed["prior"] == "maf"].set_index("seed")
    for speed in SPEEDS:
        assert table.loc["maf", speed] == maf.loc[1, f"time/{speed}"]
        assert table.loc["gauss", speed] == whole.loc["gauss", speed]
    assert list(table["timing"]) == ["alone", "alone"]
    assert list(table["timed"]) == [3, 1]
    table = comparison.summary(shared(made.frame, "maf", 0, 1, 2), made.loglik).set_index("prior")
    assert list(table["timing"]) == ["alone", "shared"]
    assert table.loc["maf", SPEEDS].isna().all()
    assert table.loc["maf", "nll"] == whole.loc["maf", "nll"]  # a score is no timing
    assert table.loc["maf", "rank"] == whole.loc["maf", "rank"]


def test_the_table_marks_what_is_left_out() -> None:
    made = make(latents=(2,))

    def printed(frame: pd.DataFrame) -> str:
        console = Console(file=StringIO(), width=200)
        console.print(terminal.fit_table(console, comparison.summary(frame, made.loglik), frame))
        return console.file.getvalue()  # type: ignore[attr-defined]

    text = printed(shared(made.frame, "maf", 0, 1, 2))
    (maf,) = (line for line in text.splitlines() if " maf " in line and "at D" not in line)
    assert maf.split().count(columns.SHARED_MARK) == 2
    assert "timed on a shared device and left out: maf at D = 2 (3)" in text
    assert "--executor serial" in text
    assert "left out: all" in printed(made.frame.assign(timing="shared"))
    assert columns.SHARED_MARK not in printed(made.frame)
    text = printed(shared(made.frame, "maf", 0))
    assert text.count(columns.SHARED_MARK) == 1
    assert "maf at D = 2 (1)" in text


def test_the_figure_of_throughput_leaves_out_and_says_so() -> None:
    frame = make(("gauss", "maf", "nsf"), (2,), diverged=(("nsf", 2, 1),)).frame

    def drawn(frame: pd.DataFrame) -> tuple[list[float], str]:
        """Returns the places along x, and the footer."""
        figure = throughput_nll(Analysis(frame))
        figure.draw_without_rendering()
        lines = figure.axes[0].lines
        points = [x for line in lines if line.get_marker() == "o" for x in line.get_xdata()]
        places = sorted(float(x) for x in points if np.isfinite(x))
        return places, figure.get_supxlabel().replace("\n", " ")

    places, foot = drawn(frame)
    assert len(places) == 3
    assert "left out" not in foot
    left, foot = drawn(shared(frame, "maf", 0, 1, 2))
    assert left == [x for x in places if x in left]
    assert len(left) == 2
    assert "left out: maf at D = 2 (3)" in foot
    assert "`--executor serial` measures speeds, one job at a time" in foot
    left, foot = drawn(shared(frame, "maf", 0, 1))
    assert len(left) == 3
    assert "left out: maf at D = 2 (2)" in foot
    assert "diverged: nsf at D = 2 (1)" in drawn(shared(frame, "nsf", 0, 1, 2))[1]
    with pytest.raises(
        figure_style.NoDataError, match="shared device and left out: all .*--executor serial"
    ):
        throughput_nll(Analysis(frame.assign(timing="shared")))


def test_a_figure_names_the_device_of_its_timings() -> None:
    frame = make(latents=(2,)).frame.assign(timing="alone", timing_device="cpu: another")
    assert "cpu: another" in throughput_nll(Analysis(frame)).get_supxlabel()
    assert "cpu: another" in comparison.summary(frame, {})["timing_device"].to_list()


@pytest.mark.usefixtures("empty_store", "no_figures")
def test_the_command_leaves_out_what_was_shared_and_measures_alone_by_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(SerialExecutor, "shared", 3)
        assert main(TINY) == 0
    results = Path("results/local/digits")
    assert "left out: all" in capsys.readouterr().out
    assert (pd.read_csv(results / "trials.csv")["timing"] == "shared").all()
    assert pd.read_csv(results / "summary.csv")["images_per_second"].isna().all()
    assert main([*TINY, "--executor", "serial", "--force"]) == 0
    assert "left out" not in capsys.readouterr().out
    assert (pd.read_csv(results / "trials.csv")["timing"] == "alone").all()
    assert (pd.read_csv(results / "summary.csv")["images_per_second"] > 0).all()
