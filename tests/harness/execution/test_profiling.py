"""`--profile`, end to end on digits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import flowvae
from bench.execution import profiling
from bench.execution.profiling import profile
from bench.run import main
from flowvae.data import Dataset

TINY = ["--latents", "2", "--seeds", "0:2", "--nets", "mlp[hidden=16]", "--nll-samples", "30"]
TINY += ["--device", "cpu"]
ROW = re.compile(r"^ *(\S.*?) +([\d.]+)% +[\d.]+[mu]?s .* (\d+) *$", re.MULTILINE)
"""A row of torch's table: an operation, its share of the self time, %, and its calls."""


def recorded(trace: Path) -> dict[str, int]:
    """Counts the operations in a trace by name, as a viewer reads them."""
    counts: dict[str, int] = {}
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("cat") == "cpu_op":
            counts[event["name"]] = counts.get(event["name"], 0) + 1
    return counts


def test_a_profile_leaves_traces_and_two_tables_and_records_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "bench.execution.executors.base.run_job", lambda *_, **__: pytest.fail("something was run")
    )
    assert main([*TINY, "--priors", "maf[hidden=8],gauss", "--profile"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # no store
    folder = Path("results/local/digits/profile")
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"train.json", "train.txt", "evaluate.json", "evaluate.txt"}

    out = capsys.readouterr().out
    assert "maf[hidden=8]-z2-s0, the first trial; nothing is recorded" in out
    head, train, evaluate = re.split(r"^(?=train: |evaluate: )", out, flags=re.MULTILINE)
    assert not ROW.search(head)
    assert train.startswith("train: 10 steps, 640 images")
    assert evaluate.startswith("evaluate: 100 images, K = 30")
    for name, text in (("train", train), ("evaluate", evaluate)):
        assert str(folder / f"{name}.json") in text
        rows = ROW.findall(text)
        assert len(rows) == 10
        shares = [float(row[1]) for row in rows]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 100.5
        counts = recorded(folder / f"{name}.json")
        for operation, _, calls in rows:  # what wraps but its like counts once
            if operation.startswith("aten::"):
                assert 0 < int(calls) <= counts[operation], operation
        assert rows[0][0] in (folder / f"{name}.txt").read_text()

    # One epoch of ten steps and nothing else: no warm-up, no validation.
    counts = recorded(folder / "train.json")
    assert counts["aten::_fused_adam_"] == 10
    assert counts["aten::mm"] > counts["aten::addmm"] >= 10
    counts = recorded(folder / "evaluate.json")
    assert counts["aten::addmm"] > 0
    assert "aten::_fused_adam_" not in counts


@pytest.mark.usefixtures("empty_store", "no_figures")
def test_a_finished_grid_is_profiled_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = [*TINY, "--priors", "gauss", "--epochs", "1"]
    assert main([*done, "--seeds", "0"]) == 0
    store = Path("mlflow.db").read_bytes()
    capsys.readouterr()
    assert main([*done, "--seeds", "0", "--profile"]) == 0
    assert "gauss-z2-s0, the first" in capsys.readouterr().out
    assert main([*done, "--seeds", "0:3", "--stack", "2", "--profile"]) == 0
    out = capsys.readouterr().out
    assert "gauss-z2-s1, the first trial" in out
    assert "2 seeds together" in out
    assert Path("mlflow.db").read_bytes() == store


def test_a_post_hoc_fit_is_profiled_with_its_encoder_frozen(
    digits: Dataset, tmp_path: Path
) -> None:
    common = {"prior": "maf[hidden=8]", "latent": 2, "net": "mlp[hidden=16]", "batch": 100}
    calls = {}
    for training in ("joint", "post-hoc"):
        trial = flowvae.Trial(**common, training=training)
        evaluation = flowvae.Evaluation(samples=5)
        profile([trial], digits, evaluation, device="cpu", folder=tmp_path / training)
        calls[training] = recorded(tmp_path / training / "train.json")
    assert calls["post-hoc"]["aten::addmm"] == calls["joint"]["aten::addmm"]
    assert calls["post-hoc"]["aten::mm"] < calls["joint"]["aten::mm"]  # the gradients of fewer


def test_what_cannot_be_profiled_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, "--priors", "gauss", "--profile"]
    assert main([*flags, "--dry-run"]) == 2
    assert "not allowed with" in capsys.readouterr().err
    assert main([*flags, "--lr", "1e30"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gauss-z2-s0 diverged (epoch ")
    assert not list(tmp_path.rglob("*.json"))
    folder = Path("results/local/digits/profile")
    folder.rmdir()
    folder.write_text("a file in the way")
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: cannot write to {folder}: File exists"
    folder.unlink()
    (folder / "evaluate.json").mkdir(parents=True)
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: cannot write to {folder}: Is a directory"


def test_a_gpu_whose_kernels_are_not_seen_is_an_error(tmp_path: Path) -> None:
    with profiling.profiler("cpu") as seen:
        torch.zeros(2) + 1
    with pytest.raises(flowvae.InputError, match="saw no kernel"):
        profiling._write(seen, "train", "cuda", tmp_path / "train.json")
    assert not list(tmp_path.iterdir())
