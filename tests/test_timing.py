"""Timings on a shared device: marked, compared with none, and taken once more alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made import make
from mlflow.entities import Run
from rich.console import Console

import flowvae
from bench import columns, conclude, levels, look, stats, timing
from bench import work as worker
from bench.begun import checkpoint_path, is_begun
from bench.figures import throughput_nll
from bench.plan import Place
from bench.record import Record
from bench.results import read_results
from bench.run import main
from bench.tracking import SHARED, THREADS, Store
from bench.work import work
from bench.workers import Serial
from flowvae.checkpoint import Checkpoint
from flowvae.data import Dataset
from flowvae.trial import Evaluation, Trial

TINY = ["--latents", "2", "--seeds", "0:2", "--nets", "mlp[hidden=8]", "--epochs", "2"]
TINY += ["--priors", "gauss,maf[hidden=8]", "--nll-samples", "5"]
EVALUATION = Evaluation(samples=5)
STALE = {"time/images_per_second": -1.0, "time/samples_per_second": -2.0}
STALE |= {"time/train_seconds": -3.0, "time/evaluation_images_per_second": -4.0}


@pytest.fixture
def place(
    make_store: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: Dataset,
) -> Place:
    """A place whose device two jobs share."""
    monkeypatch.chdir(tmp_path)
    store = Store(f"sqlite:///{make_store(tmp_path)}", "digits", digits.hash)
    return Place(store, digits, tmp_path, "cpu", 2, True, False, 60.0, shared=2)


def tiny(prior: str = "gauss", seed: int = 0, **changes: object) -> Trial:
    return Trial(prior=prior, latent=2, seed=seed, net="mlp[hidden=8]", epochs=1).but(**changes)


def ran(place: Place, *trials: Trial) -> None:
    """Runs trials, and makes their timings such as no clock would take."""
    for job in place.jobs(trials, EVALUATION):
        done = work(job)
        assert done
        assert {outcome.status for outcome in done} == {"complete"}
    for each in place.store.runs(trials).values():
        record = Record(place.store.client, each.info.run_id)
        record.metrics(STALE)
        record.flush()


def found(place: Place, trial: Trial) -> Run:
    return place.store.runs([trial])[trial.id]


def retimed(place: Place, *trials: Trial) -> list[str]:
    """Times alone what is to be, and returns what is said of it."""
    jobs = place.timings(trials, EVALUATION)
    return [outcome.status for job in jobs for outcome in timing.retime(job)]


def shared(frame: pd.DataFrame, prior: str, *seeds: int) -> pd.DataFrame:
    mine = (frame["prior"] == prior) & frame["seed"].isin(seeds)
    return frame.assign(timing=np.where(mine, "shared", "alone"))


def test_a_run_tells_whether_its_device_was_shared(place: Place) -> None:
    ran(place, tiny())
    ran(replace(place, shared=1), tiny(seed=1))
    old = tiny(seed=2)
    ran(place, old)
    place.store.client.delete_tag(found(place, old).info.run_id, SHARED)
    frame = read_results(place.store, [tiny(seed=s) for s in range(4)], EVALUATION).frame
    assert list(frame["timing"].fillna("")) == ["shared", "alone", "alone", ""]
    assert list(frame["status"]) == ["complete"] * 3 + ["missing"]
    assert (frame["time/images_per_second"][:3] == -1).all()  # what was measured stays


def test_what_is_scored_anew_on_a_shared_device_is_shared(place: Place) -> None:
    trial, alone = tiny(), replace(place, shared=1)
    ran(alone, trial)
    for where, samples, tag in ((alone, 6, "1"), (place, 7, "2"), (alone, 8, "2")):
        (job,) = where.jobs([trial], Evaluation(samples=samples))
        assert work(job)
        assert found(place, trial).data.tags[SHARED] == tag


def test_a_fit_that_goes_on_alone_was_shared_before(place: Place, digits: Dataset) -> None:
    trial = tiny(epochs=2)
    (job,) = place.jobs([trial], EVALUATION)
    stops = iter((False, False, "SIGTERM"))
    checkpoint = Checkpoint(checkpoint_path(job, [trial]), stop=partial(next, stops))
    place.store.start(trial, digits, worker._tags(job, [trial])).finish("killed")
    with pytest.raises(KeyboardInterrupt):
        flowvae.fit([trial], digits, checkpoint=checkpoint)
    (again,) = replace(place, shared=1).jobs([trial], EVALUATION)
    assert is_begun(again)
    assert work(again)
    assert found(place, trial).data.tags[SHARED] == "2"


def test_a_fit_that_goes_on_with_other_threads_is_marked_until_it_is_timed_again(
    place: Place, digits: Dataset
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
        with pytest.warns(RuntimeWarning, match="its timings are of both"):
            assert work(job)
    finally:
        torch.set_num_threads(threads)
    assert found(place, trial).data.tags[THREADS] == f"{threads}, {threads + 1}"
    results = read_results(place.store, [trial], EVALUATION)
    assert list(results.frame["timing"]) == ["resumed"]
    table = stats.summary(results.frame, results.loglik)
    assert list(table["timing"]) == ["resumed"]
    assert table[list(levels.SPEEDS)].isna().all(axis=None)
    assert columns.written(table.iloc[0], "images_per_second") == columns.SHARED
    (note,) = (n for n in columns.footnotes(table, results.frame) if columns.SHARED in n)
    assert "timed in parts, with several numbers of threads and left out: gauss at D = 2" in note
    assert retimed(alone, trial) == ["complete"]
    assert found(place, trial).data.tags[THREADS] == str(threads)
    assert list(read_results(place.store, [trial], EVALUATION).frame["timing"]) == ["alone"]
    assert not alone.timings([trial], EVALUATION)


def test_both_reasons_to_leave_timings_out_are_told() -> None:
    frame = shared(make(latents=(2,)).frame, "maf", 0)
    frame.loc[(frame["prior"] == "gauss") & (frame["seed"] == 1), "timing"] = "resumed"
    told = look.untimed(frame)
    assert "timed on a shared device and left out: maf at D = 2 (1)" in told
    assert "numbers of threads and left out: gauss at D = 2 (1)" in told
    assert told.count("--timing exclusive") == 1


def test_speeds_are_those_of_seeds_that_were_alone() -> None:
    made = make(latents=(2,))
    whole = stats.summary(made.frame, made.loglik).set_index("prior")
    assert list(whole["timed"]) == [3, 3]
    mixed = shared(made.frame, "maf", 0, 2)
    table = stats.summary(mixed, made.loglik).set_index("prior")
    maf = mixed[mixed["prior"] == "maf"].set_index("seed")
    for speed in levels.SPEEDS:
        assert table.loc["maf", speed] == maf.loc[1, f"time/{speed}"]
        assert table.loc["gauss", speed] == whole.loc["gauss", speed]
    assert list(table["timing"]) == ["alone", "alone"]
    assert list(table["timed"]) == [3, 1]
    table = stats.summary(shared(made.frame, "maf", 0, 1, 2), made.loglik).set_index("prior")
    assert list(table["timing"]) == ["alone", "shared"]
    assert table.loc["maf", list(levels.SPEEDS)].isna().all()
    assert table.loc["maf", "nll"] == whole.loc["maf", "nll"]  # a score is no timing
    assert table.loc["maf", "rank"] == whole.loc["maf", "rank"]


def test_the_table_marks_what_is_left_out() -> None:
    made = make(latents=(2,))

    def printed(frame: pd.DataFrame) -> str:
        console = Console(file=StringIO(), width=200)
        console.print(conclude._fitting(console, stats.summary(frame, made.loglik), frame))
        return console.file.getvalue()  # type: ignore[attr-defined]

    text = printed(shared(made.frame, "maf", 0, 1, 2))
    (maf,) = (line for line in text.splitlines() if " maf " in line and "at D" not in line)
    assert maf.split().count(columns.SHARED) == 2
    assert "timed on a shared device and left out: maf at D = 2 (3)" in text
    assert "--timing exclusive" in text
    assert "left out: all" in printed(made.frame.assign(timing="shared"))
    assert columns.SHARED not in printed(made.frame)
    text = printed(shared(made.frame, "maf", 0))
    assert text.count(columns.SHARED) == 1
    assert "maf at D = 2 (1)" in text


def test_the_figure_of_throughput_leaves_out_and_says_so() -> None:
    frame = make(("gauss", "maf", "nsf"), (2,), diverged=(("nsf", 2, 1),)).frame

    def drawn(frame: pd.DataFrame) -> tuple[list[float], str]:
        """Returns the places along x, and the footer."""
        figure = throughput_nll(frame)
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
    assert "`--timing exclusive` times them alone" in foot
    left, foot = drawn(shared(frame, "maf", 0, 1))
    assert len(left) == 3
    assert "left out: maf at D = 2 (2)" in foot
    assert "diverged: nsf at D = 2 (1)" in drawn(shared(frame, "nsf", 0, 1, 2))[1]
    with pytest.raises(look.NoDataError, match="shared device and left out: all .*--timing"):
        throughput_nll(frame.assign(timing="shared"))


def test_a_figure_names_the_device_of_its_timings() -> None:
    frame = make(latents=(2,)).frame.assign(timing="alone", timing_device="cpu: another")
    assert "cpu: another" in throughput_nll(frame).get_supxlabel()
    assert "cpu: another" in stats.summary(frame, {})["timing_device"].to_list()


def test_complete_runs_are_timed_once_more_and_lose_their_mark(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [tiny(seed=0), tiny(seed=1), tiny("maf[hidden=8]", epochs=6, warmup=5)]
    trials.append(tiny("maf[hidden=8]", training="post-hoc"))
    ran(place, *trials)
    monkeypatch.setattr(worker, "fit", lambda *_, **__: pytest.fail("something was trained"))
    fits: list[tuple[list[int], int]] = []
    fit, fit_prior = timing.fit, timing.fit_prior

    def seen(real: Callable, stack: list[Trial], *args: object, **kwargs: object) -> list:
        assert "checkpoint" not in kwargs
        fits.append(([trial.seed for trial in stack], stack[0].epochs))
        return real(stack, *args, **kwargs)

    monkeypatch.setattr(timing, "fit", partial(seen, fit))
    monkeypatch.setattr(timing, "fit_prior", partial(seen, fit_prior))
    before = {trial: found(place, trial) for trial in trials}
    assert retimed(place, *trials) == ["complete"] * 4
    assert sorted(fits) == [([0], 1), ([0], timing.EPOCHS), ([0, 1], 1)]
    for trial in trials:
        now = found(place, trial)
        assert now.info.run_id == before[trial].info.run_id
        for name, value in now.data.metrics.items():
            if name in STALE or name == "time/epoch_seconds":
                assert value > 0
            else:
                np.testing.assert_equal(value, before[trial].data.metrics[name])
        assert (now.data.tags[SHARED], now.data.tags["timing.measured"]) == ("1", "exclusive")
        assert now.data.tags["timing.device"] == now.data.tags["device"]
        assert now.data.tags["stack"] == before[trial].data.tags["stack"]
    long = found(place, trials[2]).data.metrics
    assert long["time/train_seconds"] > 2 * long["time/epoch_seconds"]
    assert not place.timings(trials, EVALUATION)
    assert read_results(place.store, trials, EVALUATION).frame["timing"].eq("alone").all()


def test_a_stack_is_timed_with_as_many_members_as_it_had(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [tiny(seed=0), tiny(seed=1)]
    ran(place, *trials)
    place.store.client.set_tag(found(place, trials[0]).info.run_id, SHARED, "1")
    sizes = []
    real = timing.fit

    def fit(stack: list[Trial], *args: object, **kwargs: object) -> list:
        sizes.append(len(stack))
        return real(stack, *args, **kwargs)

    monkeypatch.setattr(timing, "fit", fit)
    assert retimed(place, *trials) == ["complete"]
    assert sizes == [2]
    assert found(place, trials[0]).data.metrics["time/images_per_second"] == -1  # it was alone


def test_new_timings_win_over_a_clock_that_was_ahead(place: Place) -> None:
    trial = tiny()
    ran(place, trial)
    run_id = found(place, trial).info.run_id
    place.store.client.log_metric(run_id, "time/images_per_second", -5.0, timestamp=2**42)
    assert retimed(place, trial) == ["complete"]
    assert found(place, trial).data.metrics["time/images_per_second"] > 0


def test_without_weights_the_short_fit_is_sampled_and_that_is_kept(place: Place) -> None:
    trial = tiny()
    ran(replace(place, keep_weights=False), trial)
    assert retimed(place, trial) == ["complete"]
    now = found(place, trial)
    assert now.data.tags["timing.measured"] == "exclusive, weights of a short fit"
    assert now.data.metrics["time/samples_per_second"] > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("the disk is full")])
def test_what_was_cut_short_stays_marked(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    trials = [tiny(seed=0), tiny(seed=1)]
    ran(place, *trials)

    def cut(record: Record, **_: str) -> None:
        if record.run_id == found(place, trials[1]).info.run_id:
            raise error

    with monkeypatch.context() as patch:
        tag = Record.tag
        patch.setattr(Record, "tag", lambda r, **tags: cut(r, **tags) or tag(r, **tags))
        if isinstance(error, RuntimeError):
            assert "failed" in retimed(place, *trials)
        else:
            with pytest.raises(KeyboardInterrupt):
                retimed(place, *trials)
    assert [found(place, trial).data.tags[SHARED] for trial in trials] == ["1", "2"]
    assert found(place, trials[1]).data.metrics["time/images_per_second"] > 0  # not unmarked yet
    ((left,),) = (job.trials for job in place.timings(trials, EVALUATION))
    assert left == trials[1]
    assert retimed(place, *trials) == ["complete"]
    assert not place.timings(trials, EVALUATION)


def test_what_diverged_or_failed_is_not_timed(place: Place) -> None:
    trials = [tiny(seed=0), tiny(seed=1), tiny(seed=2)]
    ran(replace(place, stack=1), *trials)
    for trial, tags in zip(trials, ({"status": "diverged"}, {"complete": "false"}), strict=False):
        for name, value in tags.items():
            place.store.client.set_tag(found(place, trial).info.run_id, name, value)
    (job,) = place.timings(trials, EVALUATION)
    assert job.trials == (trials[2],)


@pytest.mark.usefixtures("empty_store", "no_figures")
def test_the_command_times_alone_what_was_shared_and_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Serial, "shared", 3)
        assert main(TINY) == 0
    results = Path("results/local/digits")
    assert "left out: all" in capsys.readouterr().out
    assert (pd.read_csv(results / "trials.csv")["timing"] == "shared").all()
    assert pd.read_csv(results / "summary.csv")["images_per_second"].isna().all()
    assert main([*TINY, "--timing", "exclusive", "--dry-run"]) == 0
    assert "4 trials not timed whole and alone" in capsys.readouterr().out
    assert main([*TINY, "--timing", "exclusive"]) == 0
    out = capsys.readouterr().out
    assert "timing     4 trials not timed whole and alone" in out
    assert out.count(" training images/s, ") == 4
    assert "left out" not in out
    assert (pd.read_csv(results / "trials.csv")["timing"] == "alone").all()
    assert (pd.read_csv(results / "summary.csv")["images_per_second"] > 0).all()
    monkeypatch.setattr(timing, "retime", lambda *_: pytest.fail("something was timed"))
    assert main([*TINY, "--timing", "exclusive"]) == 0
    assert "shared" not in capsys.readouterr().out
    assert main([*TINY, "--timing", "exclusive", "--figures-only"]) == 2
    assert "--figures-only runs nothing" in capsys.readouterr().err


def test_a_worker_that_dies_leaves_the_mark_and_a_line(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [tiny(seed=0), tiny(seed=1)]
    ran(place, *trials)
    console = Console(highlight=False, width=200)
    gone = ThreadPoolExecutor(1)
    gone.shutdown()
    timing.retime_each(console, place.timings(trials, EVALUATION), gone)
    assert capsys.readouterr().out.count("failed: RuntimeError: cannot schedule") == 2
    with ThreadPoolExecutor(1) as pool:
        timing.retime_each(console, place.timings(trials, EVALUATION), pool)
        assert capsys.readouterr().out.count("training images/s") == 2
        timing.retime_each(console, place.timings(trials, EVALUATION), pool)
    assert capsys.readouterr().out == ""
