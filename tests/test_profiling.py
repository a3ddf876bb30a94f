"""`--profile`, end to end on digits, and the ranking of what a GPU did."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

import flowvae
from bench.profiling import costliest, profile
from bench.run import main
from flowvae.data import Dataset

TINY = ["--latents", "2", "--seeds", "0:2", "--nets", "mlp[hidden=16]", "--nll-samples", "30"]
TINY += ["--device", "cpu"]
ROW = re.compile(r"^  (\S.*?) +(\d+) +([\d,.]+) +([\d.]+)% *$", re.MULTILINE)


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
    monkeypatch.setattr("bench.workers.work", lambda *_, **__: pytest.fail("something was run"))
    assert main([*TINY, "--priors", "maf[hidden=8],gauss", "--profile"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # no store
    folder = Path("results/local/digits/profile")
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"train.json", "train.txt", "evaluate.json", "evaluate.txt"}

    out = capsys.readouterr().out
    assert "maf[hidden=8]-z2-s0, the first; nothing is recorded" in out
    head, train, evaluate = re.split(r"^(?=train: |evaluate: )", out, flags=re.MULTILINE)
    assert not ROW.search(head)
    assert train.startswith("train: 10 steps, 640 images")
    assert evaluate.startswith("evaluate: 100 images, K = 30")
    for name, text in (("train", train), ("evaluate", evaluate)):
        assert str(folder / f"{name}.json") in text
        rows = ROW.findall(text)
        assert len(rows) == 10
        milliseconds = [float(row[2].replace(",", "")) for row in rows]
        assert milliseconds == sorted(milliseconds, reverse=True)
        assert sum(float(row[3]) for row in rows) <= 100.5
        counts = recorded(folder / f"{name}.json")
        for operation, calls, *_ in rows:  # what wraps but its like counts once
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
    assert "gauss-z2-s1, the first" in out
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


def event(key: str, device: DeviceType, time: float, *, note: bool = False) -> SimpleNamespace:
    """An entry of `key_averages` as torch makes it on a CUDA device; time on the device, us."""
    return SimpleNamespace(
        key=key,
        count=2,
        device_type=device,
        is_user_annotation=note,
        self_cpu_time_total=1.0,
        self_device_time_total=time,
    )


def test_device_time_is_that_of_operations_or_of_kernels_that_none_launched() -> None:
    host, device = DeviceType.CPU, DeviceType.CUDA
    kernels = [event("gemm", device, 3000.0), event("add_kernel", device, 1000.0)]
    kernels.append(event("Optimizer.step", device, 9000.0, note=True))  # a span, no kernel
    eager = [event("aten::add", host, 1000.0), event("aten::mm", host, 3000.0), *kernels]
    assert costliest(eager, "cuda") == (
        [("aten::mm", 2, 3.0, 0.75), ("aten::add", 2, 1.0, 0.25)],
        4,
    )
    replayed = [event("cudaGraphLaunch", host, 0.0), event("aten::add", host, 100.0), *kernels]
    assert [row.name for row in costliest(replayed, "cuda")[0]] == ["gemm", "add_kernel"]
    with pytest.raises(flowvae.InputError, match="saw no kernel"):
        costliest(eager[:2], "cuda")
