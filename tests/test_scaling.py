"""The study of scaling: the model on paper by hand, the command without its processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import coordinator, load, scaling
from bench.bottlenecks import REMEDIES, SERVER, Measured, Setting, draw, full_at, shares, table
from bench.command import COMPLETE, USAGE

COSTS = Measured(
    runs=10.0,
    flushes=100.0,
    beats=200.0,
    bytes=1e8,
    size=1e7,
    events=1000.0,
    jobs=100.0,
    once=0.01,
    each=0.0001,
    outcome=0.002,
)
GPUS, JOB = 100, Setting(seconds=50.0, epochs=25)


def test_shares_are_those_computed_by_hand() -> None:
    # 2 jobs a second; curves and signs of life every 20 s of each of 100 runs: 5 a second
    found = shares(COSTS, JOB, GPUS)
    expected = {
        "runs": 2 / 10,
        "curves": 5 / 100,
        "signs of life": 5 / 200,
        "weights": 2e7 / 1e8,
        "events": 100 * 0.5 / 1000,
        "jobs": 2 / 100,
        "workers read": 0.02 / 3,
        "outcomes": 0.004,
        SERVER: 0.2 + 0.05 + 0.025 + 0.2,
    }
    assert found == pytest.approx(expected)


def test_a_stack_opens_more_runs() -> None:
    one, four = (shares(COSTS, Setting(50.0, stack=stack, epochs=25), GPUS) for stack in (1, 4))
    for name in ("runs", "curves", "signs of life", "weights", "outcomes"):
        assert four[name] == pytest.approx(4 * one[name])
    for name in ("events", "jobs", "workers read"):
        assert four[name] == pytest.approx(one[name])
    assert four[SERVER] == pytest.approx(4 * one[SERVER])


def test_events_are_paced() -> None:
    many = Setting(seconds=50.0, epochs=5000)
    assert shares(COSTS, many, GPUS)["events"] == pytest.approx(100 * 2 / 1000)


def test_a_store_of_one_machine_takes_no_signs_of_life() -> None:
    found = shares(Measured(**{**vars(COSTS), "shared": False}), JOB, GPUS)
    assert "signs of life" not in found
    assert found["curves"] == pytest.approx(100 / 5 / 100)


def test_where_a_resource_is_full() -> None:
    assert full_at(COSTS, JOB, "runs") == pytest.approx(500)
    assert full_at(COSTS, JOB, SERVER) == pytest.approx(100 / 0.475)
    assert full_at(COSTS, JOB, "workers read") == pytest.approx((3 - 0.01) / 0.0001)
    assert full_at(COSTS, JOB, "of no such name") == math.inf


def test_what_was_not_measured_is_left_out() -> None:
    unknown = Measured(**{**vars(COSTS), "events": math.nan, "jobs": math.nan})
    assert shares(COSTS, JOB, GPUS).keys() - shares(unknown, JOB, GPUS).keys() == {
        "events",
        "jobs",
    }


def test_the_table_has_a_row_for_each_setting_and_resource() -> None:
    found = table(COSTS, [JOB, Setting(50.0, stack=8)])
    assert len(found) == 2 * 9
    assert set(found["resource"]) == {*REMEDIES, SERVER}
    runs = found[(found["resource"] == "runs") & (found["stack"] == 1)].iloc[0]
    assert (runs["share_1"], runs["share_1000"]) == pytest.approx((0.002, 2.0))


def test_the_figure_has_a_panel_a_setting_and_a_line_a_resource() -> None:
    figure = draw(COSTS, [JOB, Setting(50.0, stack=8)], ["made up"])
    lines = [len(ax.lines) for ax in figure.axes]
    assert lines == [9 + 1] * 2  # and the line at one
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "jobs of 1 trial, 50 s",
        "jobs of 8 trials, 50 s",
    ]


def test_efficiency_is_paired_within_a_repeat() -> None:
    rows = pd.DataFrame({
        "repeat": [1, 1, 2, 2], "workers": [1, 2, 1, 2],
        "wall_seconds": [10.0, 8.0, 20.0, 10.0], "work_seconds": [8.0, 4.0, 8.0, 5.0],
    })  # fmt: skip
    found = scaling.efficiencies(rows)
    assert list(found["wall_efficiency"]) == pytest.approx([1, 0.625, 1, 1])
    assert list(found["work_efficiency"]) == pytest.approx([1, 1, 1, 0.8])


def test_a_job_is_done_counted_and_its_record_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_store: Callable[[Path], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{make_store(tmp_path)}"
    trial = load.TINY.but(prior="gauss", epochs=2)
    job, data = load.job_of(uri, "here", trial)
    done, counts = load.do_one(job, data, tmp_path / "files")
    assert [outcome.status for outcome in done.outcomes] == ["complete"]
    assert counts.calls["create_run"] == counts.calls["set_terminated"] == 1
    assert counts.calls["set_tag"] == 1  # that it is complete
    assert counts.calls["log_batch"] >= 3  # params, the fit, the scores
    assert counts.requests == 0
    assert {point.step for point in done.curves} == {1, 2}
    sizes = load.file_sizes(done.artifacts)
    assert {"model", "pictures", "evaluations", "trial.json"} <= sizes.keys()

    before = load.rows_and_bytes(tmp_path / "mlflow.db")
    done.write()
    after = load.rows_and_bytes(tmp_path / "mlflow.db")
    assert after[0] > before[0]
    assert load.read_seconds(job)[0] == 2
    store = load.Store(uri, "here")
    first, second = store.client.search_runs([store.experiment])
    assert first.data.metrics == second.data.metrics
    for call in load.CALLS.values():
        call(load._Client(done, tmp_path / "mlflow.db"))
    assert coordinator.outcome_seconds(done, 3) > 0


def test_the_command_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing measured: neither grids nor stores."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scaling.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(scaling.os, "sched_setaffinity", lambda *_: None, raising=False)
    given = []

    def took(argv: list[str], cores: set[int], _: Path) -> float:
        given.append((argv, len(cores)))
        return 10.0 / len(cores)

    alone = {"work_seconds": 8.0, "run_seconds": 1.0, "runs": 4, "threads": "1"}

    stores = ("runs", "flushes", "beats", "bytes", "size", "shared")
    known = {name: value for name, value in vars(COSTS).items() if name in stores}
    rest = {name: value for name, value in vars(COSTS).items() if name not in stores}

    def store(uri: str, _: Path, found: load.Table) -> tuple[None, dict[str, Any]]:
        found.add(uri.partition(":")[0], "nothing", 1.0, "s")
        return None, known

    monkeypatch.setattr(scaling, "_took", took)
    monkeypatch.setattr(scaling, "_work_alone", lambda _: alone)
    monkeypatch.setattr(load, "measure_store", store)
    monkeypatch.setattr(coordinator, "measure_coordinator", lambda *_: rest)
    argv = ["--repeats", "2", "--seconds", "50", "--tracking-uri", "http://127.0.0.1:1"]
    assert scaling.main([*argv, "--", "--priors", "gauss"]) == COMPLETE
    assert given[0] == (["--priors", "gauss", "--dry-run"], 2)
    local = ["--priors", "gauss", "--executor", "local", "--workers"]
    assert given[1:] == [([*local, str(n), "--device", "cpu"], n) for n in (1, 2, 1, 2)]
    folder = tmp_path / "results" / "local" / "scaling"
    assert {path.name for path in folder.iterdir()} == {
        "scaling.csv", "costs.csv", "bottlenecks.csv", "scaling.png", "scaling.svg",
    }  # fmt: skip
    assert list(pd.read_csv(folder / "scaling.csv")["wall_efficiency"]) == [1.0] * 4
    assert set(pd.read_csv(folder / "costs.csv")["where"]) == {"sqlite", "http"}
    told = capsys.readouterr().out
    assert "http, jobs of 1 x 50 s: the server is full at 211 GPUs" in told
    assert told.count("of single resources") == 4  # two stores, two stacks


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workers", "0"], "bad --workers '0': expected a whole number"),
        (["--workers", ""], "bad --workers ''"),
        (["--workers", "1,100000"], "--workers 100000: this machine has"),
        (["--repeats", "1,2"], "bad --repeats '1,2': expected one number"),
        (["--seconds", "-1"], "bad --seconds '-1'"),
        (["--tracking-uri", "sqlite:///x.db"], "expected that of an MLflow server"),
        (["--worker", "2"], "did you mean --workers?"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert scaling.main(argv) == USAGE
    assert message in capsys.readouterr().err
