"""The sweep over sizes: its points, its rule, its table and figure."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.autograd import DeviceType

from bench.benchmarks.step_runner import StepRunner, random_images
from bench.studies.step_time import __main__ as step_time_command
from bench.studies.step_time import figure as step_time_figure
from bench.studies.step_time import measurement
from flowvae.trial import Trial

CPU = torch.device("cpu")
ENDS = ("png", "svg", "csv")
TOY = ["--net", "mlp[hidden=8]", "--priors", "gauss,maf[transforms=1,hidden=8]"]
TOY += ["--latents", "2,16", "--batches", "16,256", "--stacks", "2", "--device", "cpu"]
TOY += ["--seconds-per-point", "0.01"]


def test_a_sweep_writes_a_table_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert step_time_command.main([*TOY, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "bound by" in printed
    assert {file.name for file in out.iterdir()} == {f"sweep.{end}" for end in ENDS}
    table = pd.read_csv(out / "sweep.csv")
    assert len(table) == 2 * 4  # the centre stands on two axes and is measured once
    assert set(table["status"]) == {measurement.MEASURED}
    assert set(table["bound"]) <= set(measurement.LIMITS)
    expected = table["images_per_second_per_model"] * table["stack"]
    pd.testing.assert_series_equal(table["images_per_second"], expected, check_names=False)
    assert (table["device"].str.startswith("cpu: ")).all()
    assert table["launches"].gt(0).all()


def test_a_point_that_does_not_fit_is_recorded_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StepRunner.__init__

    def bounded(self: StepRunner, trials: list[Trial], images: torch.Tensor) -> None:
        if len(trials) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, trials, images)

    monkeypatch.setattr(StepRunner, "__init__", bounded)
    few = ["--latents", "16", "--batches", "256", "--stacks", "1,2"]
    assert step_time_command.main([*TOY, *few, "--out", str(tmp_path)]) == 0
    assert measurement.OUT_OF_MEMORY in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert set(table[table["stack"] == 2]["status"]) == {measurement.OUT_OF_MEMORY}
    figure = step_time_figure.draw_step_times(table)
    crosses = [line for ax in figure.axes for line in ax.lines if line.get_gid() == "diverged"]
    assert len(crosses) == 2


def test_another_error_at_a_point_is_not_taken_for_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(measurement, "_time_point", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        measurement.measure_point(
            measurement.Point("gauss"), random_images(4), (1e-6, 0.0), seconds=0.01
        )


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((10, 6, 1, 1), ("arithmetic", 3)),
        ((10, 2, 1, 1), ("memory", 7)),
        ((10, 2, 1, 7), ("launches", 1)),
        ((10, 2, 9, 7), ("memory", 9)),  # Adam, hidden behind launches
    ],
)
def test_a_step_is_bound_by_the_largest(
    times: tuple[float, ...], expected: tuple[str, float]
) -> None:
    assert measurement.find_bound(*times) == expected


def test_operations_are_counted_in_forward_and_backward() -> None:
    x = torch.ones((), requires_grad=True)
    few, kernels = measurement.count_operations(lambda: (x * x).backward(), CPU)
    many, _ = measurement.count_operations(lambda: (x * x * x * x * x).backward(), CPU)
    assert kernels == 0
    assert many >= few + 3 * 3  # a product forward, two backward


def test_a_span_that_a_user_named_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, kind: DeviceType, note: bool = False) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=kind, is_user_annotation=note)

    cuda = DeviceType.CUDA
    events = [event("cudaGraphLaunch", DeviceType.CPU), event("gemm", cuda), event("add", cuda)]
    events.append(event("Optimizer.step", cuda, note=True))
    seen = SimpleNamespace(events=lambda: events)
    monkeypatch.setattr(measurement, "profiler", lambda _: nullcontext(seen))
    monkeypatch.setattr(measurement, "synchronise", lambda _: None)
    assert measurement.count_operations(lambda: None, torch.device("cuda")) == (1, 2)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--stacks", "0"], "bad --stacks '0': expected a whole number, at least 1"),
        (["--batches", "8,x"], "bad --batches '8,x'"),
        (["--priors", "gaus"], "unknown prior 'gaus'"),
        (["--seconds-per-point", "0"], "bad --seconds-per-point '0'"),
        (["--precision", "tf32", "--device", "cpu"], "needs a CUDA device"),
        (["--bathces", "8"], "did you mean --batches?"),
        (["--device", "tpu"], "bad --device 'tpu'"),
    ],
)
def test_a_bad_flag_is_one_line(
    flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step_time_command.main([*flags, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert step_time_command.main([*TOY, "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot write to --out" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.csv").mkdir()
    assert step_time_command.main([*TOY, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: cannot write to --out {tmp_path}: Is a directory"
