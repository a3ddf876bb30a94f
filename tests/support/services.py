"""Services of a team, started for real: PostgreSQL, an MLflow server, a Dask cluster."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "0",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def service(
    command: Sequence[str], folder: Path, name: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own, which ends with the block; its output in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, **QUIET, **environment},
        )  # fmt: skip
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], how: int = signal.SIGKILL) -> None:
    """End a service with all its processes."""
    try:
        os.killpg(process.pid, how)
    except ProcessLookupError:
        pass
    process.wait(30)


@contextmanager
def postgresql() -> Iterator[str]:
    """Run PostgreSQL on loopback; yield the address of a database for SQLAlchemy."""
    pytest.importorskip("psycopg2", reason="needs flowvae[postgresql]")
    bins = [*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), "/usr/local/bin"]
    home = next((Path(b) for b in bins if (Path(b) / "initdb").exists()), None)
    if home is None:
        pytest.skip("needs PostgreSQL: no initdb in /usr/lib/postgresql/*/bin, /usr/local/bin")
    become: list[str] = []
    if os.geteuid() == 0:  # as which PostgreSQL does not run
        become = ["runuser", "-u", "nobody", "--"]
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    folder, port = Path(tempfile.mkdtemp(prefix="flowvae-postgresql-")), free_port()
    if become:
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    made = subprocess.run(
        [*become, home / "initdb", "-D", folder / "data", "-U", "team", "-A", "trust", "-N"],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*become, str(home / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    try:
        subprocess.run(
            [*control, "-l", str(folder / "log"), "-o", options, "start"],
            check=True, cwd=folder, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        yield f"postgresql+psycopg2://team@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], cwd=folder, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mlflow_server(
    backend: str, folder: Path, port: int | None = None, host: str = "127.0.0.1"
) -> Iterator[str]:
    """Run `mlflow server`, artifacts through it; yield its address."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend]
    command += ["--host", host, "--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with service(command, folder, "mlflow") as process:
        for _ in range(1200):
            assert process.poll() is None, (folder / "mlflow.log").read_text()
            try:
                with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://{host}:{port}"


@contextmanager
def dask_scheduler(folder: Path) -> Iterator[Path]:
    """Run `dask scheduler`; yield the file that it writes its address to."""
    file = folder / "scheduler.json"
    command = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--no-dashboard", "--scheduler-file", str(file)]
    fewer = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}  # a worker's start takes long
    with service(command, folder, "scheduler", **fewer) as process:
        for _ in range(600):
            assert process.poll() is None, (folder / "scheduler.log").read_text()
            if file.exists() and file.stat().st_size:
                break
            time.sleep(0.1)
        yield file


@contextmanager
def dask_worker(
    file: Path, folder: Path, *flags: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dask worker` in a folder of its own."""
    command = [sys.executable, "-m", "dask", "worker", "--scheduler-file", str(file)]
    command += ["--nthreads", "1", "--memory-limit", "0", "--no-dashboard"]
    with service([*command, *flags], folder, "worker", **environment) as process:
        yield process
