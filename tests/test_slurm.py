"""The batch script for SLURM: what it asks for, and that it runs, without SLURM's own part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.slurm import main, script

SRUN = """#!/bin/bash
# Two tasks of one allocation, as srun starts them: the same command, twice.
echo "srun $*" >>srun.log
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
    mkdir -p "node-$task"
    (cd "node-$task" && exec "$@" --host 127.0.0.1) &
done
wait
"""
GRID = ["--priors", "gauss", "--latents", "2", "--seeds", "0:2", "--nll-samples", "5"]
GRID += ["--nets", "mlp[hidden=16]"]


def test_a_script_asks_for_a_gpu_a_worker_and_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--workers", "8", "--nodes", "2", "--time", "04:00:00", "--sbatch=--partition=gpu"]
    assert main([*argv, "--", "priors", "--tracking-uri", "http://node:5000"]) == 0
    said = capsys.readouterr().out
    directives = [line for line in said.splitlines() if line.startswith("#SBATCH")]
    assert [line.removeprefix("#SBATCH ") for line in directives] == [
        "--job-name=flowvae",
        "--nodes=2",
        "--ntasks=8",
        "--cpus-per-task=4",
        "--time=04:00:00",
        "--signal=B:USR1@120",
        "--open-mode=append",
        "--gpus-per-task=1",
        "--partition=gpu",
    ]
    assert "--nthreads 1" in said
    assert "--resources GPU=1" in said
    assert "python -m bench.run priors --tracking-uri http://node:5000 --executor dask" in said
    checked = subprocess.run(["bash", "-n"], input=said, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    argv += ["--cpu", "--setup", "source venv/bin/activate"]
    assert main([*argv, "--", "--tracking-uri=http://node:5000"]) == 0
    said = capsys.readouterr().out
    assert "GPU" not in said
    assert "pipefail\nsource venv/bin/activate\nexport OMP" in said


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "required: --workers"),
        (["--workers", "0"], "bad --workers '0': expected"),
        (["--workers", "1", "--time", "soon"], "bad --time 'soon': expected such as 30, 04:00:00"),
        (["--workers", "1", "--sbatch", "x"], "bad --sbatch 'x': expected such as --partition"),
        (
            ["--workers", "1", "--job-name", "a\nb"],
            "an option of sbatch, or of --setup, is one line",
        ),
        (["--workers", "1", "--", "--executor=local"], "gives --executor itself: leave it out"),
        (["--workers", "8", "--nodes", "2", "--", "priors"], "several nodes need an `mlflow serv"),
    ],
)
def test_what_makes_no_script_is_refused(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert expected in capsys.readouterr().err


def launch(folder: Path, grid: list[str]) -> subprocess.Popen[bytes]:
    """Start the script as `sbatch` would, but for `srun`, in a folder."""
    folder.mkdir(exist_ok=True)
    bins = folder / "bin"
    bins.mkdir(exist_ok=True)
    (bins / "srun").write_text(SRUN)
    for name, module in {"dask": "dask", "python": ""}.items():
        call = f'exec {sys.executable} {"-m " + module if module else ""} "$@"'
        (bins / name).write_text(f"#!/bin/bash\n{call}\n")
    for each in bins.iterdir():
        each.chmod(0o755)
    (folder / "job.sh").write_text(script(grid, workers=2, gpus=False))
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            ["bash", "job.sh"],
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={
                **os.environ,
                "PATH": f"{bins}:{os.environ['PATH']}",
                "SLURM_JOB_ID": "7",
                "SLURM_CPUS_PER_TASK": "1",
                "TMPDIR": str(folder / "scratch"),
                "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s",
            },
        )


def test_the_script_warned_by_slurm_saves_and_goes_on_when_it_is_submitted_again(
    tmp_path: Path,
) -> None:
    pytest.importorskip("distributed", reason="needs flowvae[cluster]")
    grid = [*GRID, "--epochs", "3000", "--checkpoint-every", "0.2"]
    output = tmp_path / "output.txt"

    def end(job: subprocess.Popen[bytes]) -> None:
        try:
            os.killpg(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    job = launch(tmp_path, grid)
    try:
        deadline = time.monotonic() + 200
        while len(list(tmp_path.glob("node-*/results/local/digits/checkpoints/*"))) < 2:
            assert job.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        os.kill(job.pid, signal.SIGUSR1)  # --signal=B: the batch shell alone
        assert job.wait(120) == 130, output.read_text()
    finally:
        end(job)
    assert "interrupted by SIGUSR1: the same command goes on where it was" in output.read_text()
    assert not (tmp_path / "scheduler-7.json").exists()
    assert "dask worker --scheduler-file" in (tmp_path / "srun.log").read_text()
