"""What MLflow's own pages show of a grid: its views, its note, and the run with its report."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from support.pages import content
from support.synthetic_grids import make

from bench.figures import catalogue
from bench.report import __main__ as report_command
from bench.report import render, upload
from bench.run import main
from bench.store.runs import Store
from bench.store.views import VIEW_METRICS, views
from flowvae.trial import Trial

TINY = ["--latents", "2", "--epochs", "1", "--nets", "mlp[hidden=4]", "--nll-samples", "2"]
NOTE = "mlflow.note.content"


@pytest.fixture
def store(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(empty_store.parent)
    return Store(f"sqlite:///{empty_store}", "digits")


def state(text: str) -> dict:
    return json.loads(json.loads(text)["state"])


def reports(store: Store) -> list[Run]:
    return store.client.search_runs([store.experiment], "tags.report = 'true'")


def test_a_grid_leaves_one_report_that_no_reader_takes_for_a_trial(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = catalogue.nll_by_latent
    monkeypatch.setattr(catalogue, "FIGURES", {shown.__name__: catalogue.FIGURES[shown.__name__]})
    for seeds in ("0", "0:2", "0:2"):
        assert main(["--priors", "gauss,diagonal", "--seeds", seeds, *TINY]) == 0
    assert "viewStateShareKey=flowvae-means" in capsys.readouterr().out
    (run,) = reports(store)
    assert run.info.status == "FINISHED"
    folder = Path("results/local/digits")
    held = Path(run.info.artifact_uri)
    assert (held / "report.html").read_text() == (folder / "report.html").read_text()
    assert (held / "summary.csv").read_text() == (folder / "summary.csv").read_text()

    tags = store.client.get_experiment(store.experiment).tags
    assert tags[NOTE] == run.data.tags[NOTE]
    assert tags[NOTE].startswith("Does a flow prior help on the bundled 8x8 digits?")
    assert "the test NLL of diagonal minus that of gauss" in tags[NOTE]
    (picture,) = re.findall(r"!\[.*\]\((get-artifact\?.*)\)", tags[NOTE].replace("\\", ""))
    query = parse_qs(urlsplit(picture).query)
    assert query["run_uuid"] == [run.info.run_id]
    assert (held / query["path"][0]).is_file()
    assert f"runs/{run.info.run_id}/artifacts/report.html" in tags[NOTE]

    trials = store.every()
    assert len(trials) == len(store.complete()) == 4
    assert store.close_stale_runs() == []
    for each in trials:
        assert f"seed {each.data.params['seed']}" in each.data.tags[NOTE]
        assert each.data.tags["group"] == f"{each.data.params['prior']}-z2"
        for view in views([Trial(prior="gauss", latent=2)]).values():
            for column in state(view)["selectedColumns"]:
                kind, _, name = column.partition(".")
                assert name.strip("`") in getattr(each.data, kind)
    assert report_command.main(["digits", "--name", "again"]) == 0
    assert len(Path("results/local/again/trials.csv").read_text().splitlines()) == 5


def test_a_view_shows_and_parts_what_varies_among_the_trials_of_a_prior() -> None:
    """A learning rate that each prior has one of is known by the prior."""
    priors, lrs = ("gauss", "maf"), (1e-3, 3e-3)
    each = [Trial(prior=p, latent=2, lr=lr) for p, lr in zip(priors, lrs, strict=True)]
    every = [Trial(prior=p, latent=d, lr=lr) for p in priors for d in (2, 4) for lr in lrs]
    for trials, varied in ((each, []), (every, ["lr"])):
        means, single = (state(text) for text in views(trials).values())
        assert [key["groupByData"] for key in means["groupBy"]["groupByKeys"]] == [
            "group", *varied,
        ]  # fmt: skip
        assert single["groupBy"] is None
        params = [f"params.`{name}`" for name in ("prior", "latent", *varied)]
        assert means["selectedColumns"][len(VIEW_METRICS) :] == [*params, "tags.`status`"]


def test_a_note_is_no_longer_than_mlflow_takes() -> None:
    many = make(("gauss", "maf", "nsf"), tuple(range(2, 16)), seeds=2, images=20)
    page = content(many, question="Why?")
    for each in (page, replace(page, question="Why? " * 2000)):  # without rows, and cut
        text = render.make_note(each, "1", "f00")
        assert text.startswith("Why?")
        assert "| prior |" not in text
        assert len(text) <= render.MAX_NOTE_CHARACTERS
    short = render.make_note(content(make(), question="Why?"), "1", "f00")
    assert "| prior |" in short
    assert r"\<" not in short


def test_of_two_reports_made_at_once_the_older_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: list[str] = []
    create = MlflowClient.create_run

    def late(self: MlflowClient, *args: object, **kwargs: object) -> Run:
        theirs.append(create(self, *args, **kwargs).info.run_id)
        time.sleep(0.01)  # MLflow's clock counts milliseconds
        return create(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", late)
    chosen = upload._run(store)
    assert [run.info.run_id for run in reports(store)] == [chosen] == theirs
    assert upload._run(store) == chosen


@pytest.mark.usefixtures("no_figures")
def test_a_store_that_takes_no_report_costs_the_report_there_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("attempt to write a readonly database")

    monkeypatch.setattr(upload, "_run", refuse)
    assert main(["--priors", "gauss", "--seeds", "0", *TINY]) == 0
    out = capsys.readouterr().out
    assert "did not take the report" in out
    assert "viewStateShareKey" not in out
    assert Path("results/local/digits/report.html").exists()
