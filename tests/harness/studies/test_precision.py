"""Precisions: the switches of a block, and the study of what they change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.results.read import Results
from bench.studies import precision as study
from bench.studies.precision import measure_changes
from flowvae.numerics.precision import matrix_products


def switches() -> list[str]:
    return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]


def test_tf32_is_off_in_a_block_and_left_as_it_was() -> None:
    before = switches()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with matrix_products("float32", torch.device("cpu")):
            assert switches() == ["ieee", "ieee"]
        assert switches()[0] == "tf32"
        with matrix_products("tf32", torch.device("cuda")):
            assert switches() == ["tf32", "tf32"]
    finally:
        torch.backends.cuda.matmul.fp32_precision = before[0]
    assert switches() == before


def results(shift: dict[tuple[str, str], float], seeds: int = 4) -> Results:
    """Return trials by precision and prior whose NLL is shifted by a number of nats."""
    rows, loglik = [], {}
    for (precision, prior), nats in shift.items():
        for seed in range(seeds):
            rng = np.random.default_rng(seed)  # the same images and noise in each precision
            run = f"{precision}-{prior}-{seed}-{nats}"
            loglik[run] = rng.normal(size=30) - nats - 0.01 * seed * (precision != "float32")
            rows.append({"run_id": run, "precision": precision, "prior": prior} | {"seed": seed})
    frame = pd.DataFrame(rows).assign(latent=8, net="mlp", status="complete")
    return Results(frame, pd.DataFrame(), loglik, {}, {})


def test_changes_are_paired_with_float32_at_the_same_seed() -> None:
    trained = results(
        {
            ("float32", "gauss"): 0,
            ("float32", "maf"): 5,
            ("bf16", "gauss"): 0.3,
            ("bf16", "maf"): 5,
        }
    )
    scored = results({("float32", "gauss"): -0.2, ("float32", "maf"): 5})
    table = measure_changes(trained, {"bf16": scored}).set_index(["stage", "prior"])
    assert (table["precision"] == "bf16").all()
    assert table.loc[("training", "gauss"), "mean"] == pytest.approx(0.3 + 0.015)
    assert table.loc[("training", "maf"), "mean"] == pytest.approx(0.015)
    assert table.loc[("training", "maf"), "sd_seed"] == pytest.approx(
        0.01 * np.std(range(4), ddof=1)
    )
    assert table.loc[("scoring", "gauss"), "mean"] == pytest.approx(-0.2)
    assert (table["seeds"] == 4).all()


def test_a_lost_seed_leaves_its_pair_out_and_is_counted() -> None:
    trained = results({("float32", "gauss"): 0, ("bf16", "gauss"): 0.3})
    lost = (trained.frame["precision"] == "bf16") & (trained.frame["seed"] == 3)
    trained.frame.loc[lost, "status"] = "diverged"
    table = measure_changes(trained, {}).iloc[0]
    assert (table["seeds"], table["diverged"]) == (3, 1)
    assert table["mean"] == pytest.approx(0.3 + 0.01)


@pytest.mark.usefixtures("empty_store", "no_figures")
def test_the_study_runs_from_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["digits", "--priors", "gauss,maf[hidden=8]", "--latents", "2", "--seeds", "0:2"]
    tiny += ["--nets", "mlp[hidden=16]", "--epochs", "2", "--nll-samples", "20"]
    assert study.main(tiny) == 0
    out = capsys.readouterr().out
    assert "4 trials: 4 to score again" in out
    table = pd.read_csv("results/local/precision/precision_changes.csv")
    assert sorted(zip(table["stage"], table["prior"], strict=True)) == [
        (stage, prior) for stage in ("scoring", "training") for prior in ("gauss", "maf[hidden=8]")
    ]
    assert (table["mean"].abs() < 1).all()
    assert (table["mean"] != 0).all()
    assert Path("results/local/precision/precision_changes.png").stat().st_size > 5000
    assert study.main([*tiny, "--lower", "tf32"]) == 2
    assert "tf32 needs a CUDA device" in capsys.readouterr().err
