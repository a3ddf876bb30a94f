"""Metrics: declared once, they reach the store, the tables, the page and the guide."""

from __future__ import annotations

import fnmatch
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

import flowvae
from bench.run import main
from bench.statistics.metrics import METRICS, STORE_ORDER, Evaluated, Metric, numbers_of, scores_in
from flowvae.data import Dataset
from flowvae.evaluation.quadrature import Evidence
from flowvae.trial import Evaluation, Trial

GUIDE = Path(__file__).parents[3] / "bench" / "report" / "README.md"
TINY = ["--latents", "2", "--seeds", "0:2", "--nets", "mlp[hidden=8]", "--epochs", "1"]
TINY += ["--priors", "gauss,maf[hidden=8]", "--nll-samples", "5"]


def shown_name(metric: Metric) -> str:
    return metric.key + metric.suffixes


def test_the_guide_lists_every_metric_as_it_is_declared() -> None:
    lines = GUIDE.read_text().splitlines()
    first = lines.index("| metric | unit | better | meaning |")
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2 :]))
    expected = [
        " | ".join((f"`{shown_name(m)}`", m.unit, m.better, m.meaning.replace("|", r"\|")))
        for m in METRICS.values()
    ]
    assert rows == [f"| {row} |" for row in expected]


def test_every_metric_says_what_it_is_and_has_its_place() -> None:
    assert set(STORE_ORDER) == {m.key for m in METRICS.values() if m.measure is not None}
    columns = [m.summary_column for m in METRICS.values() if m.seeds != "none"]
    assert len(columns) == len(set(columns))
    titles = [m.title for m in METRICS.values() if m.title]
    assert titles[0] == "NLL"
    assert len(titles) == len(set(titles))
    for metric in METRICS.values():
        assert metric.meaning.endswith("."), metric.key


def test_reading_the_declarations_imports_no_torch() -> None:
    code = "import sys, bench.statistics.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def evaluated(digits: Dataset) -> Evaluated:
    trial = Trial(prior="nsf[hidden=8]", latent=2, net="mlp[hidden=8]")
    vae = flowvae.build(trial, digits.shape)
    evaluation = Evaluation(samples=10)
    scores = flowvae.evaluate(vae, digits.test, evaluation, seed=0)
    surgery = flowvae.dissect(vae, digits, seed=0)
    return Evaluated(vae, evaluation, scores, surgery, 2.0, 3.0, 4, peak_since_start=False)


def test_an_evaluation_has_its_numbers_in_the_order_of_the_store(evaluated: Evaluated) -> None:
    numbers = numbers_of(evaluated)
    assert list(numbers) == [
        *("time/evaluation_images_per_second", "time/samples_per_second"),
        "memory/evaluation_peak_bytes",
        *("test/elbo", "test/nll", "test/rate", "test/distortion", "test/ess", "test/khat_high"),
        *("test/nll_bias", "test/nll_se"),
        *("test/marginal_kl", "test/marginal_kl_out", "test/index_code", "test/index_code_out"),
        *("test/log_images", "test/active_units", "test/active_units_relative"),
        *("test/elbo_gap", "test/elbo_of_train", "test/saturated"),
        *(f"test/outside_{of}_l{k}" for of in ("posterior", "prior") for k in (1, 2, 3)),
        "test/bad_samples",
    ]
    assert all(type(value) is float for value in numbers.values())
    assert numbers["test/nll"] == -evaluated.scores.loglik[10].mean()
    variance = 1 / evaluated.scores.ess - 1 / 10
    assert numbers["test/nll_bias"] == pytest.approx(sum(variance) / 2 / 360)
    assert numbers["test/nll_se"] == pytest.approx(sum(variance) ** 0.5 / 360)
    assert numbers["test/marginal_kl"] == evaluated.surgery.marginal_kl
    assert list(scores_in(numbers, "test")) == [
        *("test/elbo", "test/nll", "test/rate", "test/distortion")
    ]


def test_smaller_numbers_of_samples_are_estimates_of_the_encoder_alone(
    evaluated: Evaluated, digits: Dataset
) -> None:
    encoder = Evaluation(samples=10, estimator="encoder")
    scores = flowvae.evaluate(evaluated.vae, digits.test, encoder, seed=0)
    numbers = numbers_of(replace(evaluated, evaluation=encoder, scores=scores))
    ladder = {name: value for name, value in numbers.items() if name.startswith("test/nll_k")}
    assert ladder == {f"test/nll_k{k}": -scores.loglik[k].mean() for k in (1, 10)}


def test_the_error_of_the_estimate_is_what_it_varies_by(
    evaluated: Evaluated, digits: Dataset
) -> None:
    """Bias and standard error, as estimated from one scoring, against a hundred of them."""
    images, encoder = digits.test[:50], Evaluation(samples=100, estimator="encoder")
    scores = [flowvae.evaluate(evaluated.vae, images, encoder, seed=seed) for seed in range(100)]
    told = numbers_of(replace(evaluated, evaluation=encoder, scores=scores[0]))
    nlls = [-each.loglik[100].mean() for each in scores]
    exact = -flowvae.evidence(evaluated.vae, images).log_p.mean()
    assert np.std(nlls) == pytest.approx(told["test/nll_se"], rel=0.3)
    error = np.std(nlls) / 10
    assert np.mean(nlls) - exact == pytest.approx(told["test/nll_bias"], abs=3 * error + 1e-4)


def test_what_is_optional_is_left_out_where_it_is_not_known(evaluated: Evaluated) -> None:
    estimated = replace(evaluated.surgery, log_z_error=0.25)
    numbers = numbers_of(replace(evaluated, surgery=estimated, peak_since_start=True))
    assert numbers["test/log_z_error"] == 0.25
    assert numbers["memory/evaluation_peak_since_start_bytes"] == 4
    assert "memory/evaluation_peak_bytes" not in numbers
    assert "test/nll_exact" not in numbers
    exact = Evidence(np.array([-3.0, -4.0]), np.array([0.001, 0.002]))
    numbers = numbers_of(replace(evaluated, exact=exact))
    assert (numbers["test/nll_exact"], numbers["test/nll_exact_error"]) == (3.5, 0.002)


def test_the_numbers_of_another_split_carry_its_name(evaluated: Evaluated) -> None:
    valid = replace(evaluated, evaluation=Evaluation(samples=10, split="valid"))
    numbers = numbers_of(valid)
    assert scores_in(numbers, "valid")["valid/nll"] == numbers_of(evaluated)["test/nll"]
    assert not any(name.startswith("test/") for name in numbers)


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_a_new_metric_reaches_store_tables_and_page_by_its_declaration_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spread(evaluated: Evaluated) -> float:
        return evaluated.scores.rate.std()

    def threads(_: object) -> float:
        return float(torch.get_num_threads())

    declared = [
        Metric("test", "nats", "rate_spread", "Spread of the rate.", spread, title="spread"),
        Metric("time", "", "torch_threads", "Threads.", threads, "fit", title="threads"),
    ]
    for metric in declared:
        monkeypatch.setitem(METRICS, metric.key, metric)
    monkeypatch.chdir(tmp_path)
    assert main(TINY) == 0
    results = Path("results/local/digits")
    trials = pd.read_csv(results / "trials.csv").set_index("run_id")
    summary = pd.read_csv(results / "summary.csv").set_index("prior")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for metric in declared:
        for run_id, row in trials.iterrows():
            assert client.get_run(run_id).data.metrics[metric.key] == row[metric.key]
        means = trials.groupby("prior")[metric.key].mean()
        assert summary[metric.name].to_dict() == pytest.approx(means.to_dict())
        page = (results / "report.html").read_text()
        assert f'title="{metric.brief}">{metric.title}</th>' in page
        for mean in means:
            assert f">{mean:.2f}</td>" in page
    patterns = [shown_name(metric) for metric in METRICS.values()]
    run = client.get_run(trials.index[0])
    for name in run.data.metrics:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
