"""The template of a SLURM batch script, run without SLURM's own part."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXECUTORS = Path(__file__).parents[2] / "bench" / "execution" / "executors"
TEMPLATE = (EXECUTORS / "slurm.sh").read_text()
GPU = "#SBATCH --gpus-per-task=1 ", "    --resources GPU=1 &"
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


def launch(folder: Path, grid: list[str]) -> subprocess.Popen[bytes]:
    """Start the script, edited for CPUs, as `sbatch` would, but for `srun`, in a folder."""
    assert all(TEMPLATE.count(line) == 1 for line in GPU)
    folder.mkdir(exist_ok=True)
    bins = folder / "bin"
    bins.mkdir(exist_ok=True)
    (bins / "srun").write_text(SRUN)
    for name, module in {"dask": "dask", "python": ""}.items():
        call = f'exec {sys.executable} {"-m " + module if module else ""} "$@"'
        (bins / name).write_text(f"#!/bin/bash\n{call}\n")
    for each in bins.iterdir():
        each.chmod(0o755)
    (folder / "job.sh").write_text(TEMPLATE.replace(GPU[0], "# ").replace(GPU[1], "    &"))
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            ["bash", "job.sh", *grid],
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={
                **os.environ,
                "PATH": f"{bins}:{os.environ['PATH']}",
                "SLURM_JOB_ID": "7",
                "SLURM_CPUS_PER_TASK": "1",
                "SLURM_NTASKS": "2",
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
    assert "interrupted by SIGUSR1: the same command resumes" in output.read_text()
    assert not (tmp_path / "scheduler-7.json").exists()
    assert "dask worker --scheduler-file" in (tmp_path / "srun.log").read_text()
