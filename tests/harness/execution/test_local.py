"""Workers on this machine: the same bits as in one process, and what becomes of those that die."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.fast_commands import fork_workers, hasten_processes, leave_undrawn
from support.fault_injection import start

from bench.execution.executors import base, local
from bench.execution.executors.base import SerialExecutor, WorkerLostError
from bench.execution.executors.local import LocalExecutor, Slot
from bench.execution.scheduler import run_jobs
from bench.execution.waiting import StaleWatch
from bench.grid.grid import make_grid
from bench.grid.job import Event, Job, Notice, UnfinishedError
from bench.run import main
from bench.store.runs import Store
from flowvae.data import load_data
from flowvae.errors import InputError
from flowvae.trial import Evaluation

TINY = {"priors": "gauss,nsf[hidden=8]", "latents": "2", "seeds": "0", "epochs": "2"}

KILLER = '''
import multiprocessing, os, signal
from zuko.lazy import UnconditionalDistribution
from torch.distributions import MultivariateNormal
import torch

def killer(space):
    """Kill the process that builds it."""
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return UnconditionalDistribution(
        MultivariateNormal, torch.zeros(space.features), torch.eye(space.features), buffer=True
    )
'''


def make_jobs(folder: Path) -> list[Job]:
    return [
        Job(
            number=number,
            trials=(trial,),
            evaluation=Evaluation(samples=20),
            data_dir=folder,
            data_hash=load_data("digits").hash,
            device="cpu",
            uri=f"sqlite:///{folder}/mlflow.db",
            experiment="here",
        )
        for number, trial in enumerate(make_grid(TINY).trials)
    ]


def two() -> LocalExecutor:
    return LocalExecutor([Slot(threads=1)] * 2)


@pytest.mark.usefixtures("empty_store")
def test_other_processes_give_the_same_bits_and_tell_what_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = make_jobs(tmp_path)
    with SerialExecutor() as here:
        ours = {job.number: outcomes[0].means for job, outcomes in run_jobs(jobs, here)}
    events: list[Event | Notice] = []
    elsewhere = [replace(job, experiment="there") for job in jobs]
    with two() as there:
        found = run_jobs(elsewhere, there, events.append)
        theirs = {job.number: outcomes[0].means for job, outcomes in found}
    assert None not in ours.values()
    assert theirs == ours
    told = {(event.name, event.phase) for event in events if isinstance(event, Event)}
    assert told == {(job.name, phase) for job in jobs for phase in ("fit", "evaluate")}
    runs = Store(jobs[0].uri, "there").runs([job.trials[0] for job in jobs]).values()
    assert len({run.data.tags["pid"] for run in runs} | {str(os.getpid())}) == 3
    assert {run.data.tags["threads"] for run in runs} == {"1"}


@pytest.mark.usefixtures("empty_store")
def test_a_data_set_that_is_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (job, _) = make_jobs(tmp_path)
    ((_, (outcome,)),) = run_jobs([replace(job, data_hash="other")], SerialExecutor())
    assert outcome.status == "failed"
    assert "planned on other: give every worker the same files" in outcome.reason


@pytest.mark.usefixtures("empty_store")
@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("it broke"), "failed", "RuntimeError: it broke"),
        (WorkerLostError("its worker died"), "failed", "WorkerLostError: its worker died"),
    ],
)
def test_what_befalls_a_worker_is_the_outcome_of_its_job(
    error: Exception,
    status: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    class Broken(SerialExecutor):
        def submit(self, *_: object, **__: object) -> Future:
            future: Future = Future()
            future.set_exception(error)
            return future

    ((_, (outcome,)),) = run_jobs(make_jobs(tmp_path)[:1], Broken())
    assert (outcome.status, outcome.reason) == (status, reason)
    monkeypatch.setattr(Broken, "submit", lambda *_, **__: 1 / 0)
    ((_, (outcome,)),) = run_jobs(make_jobs(tmp_path)[:1], Broken())
    assert outcome.reason == "ZeroDivisionError: division by zero"


def test_what_starts_from_a_model_waits_for_the_other_who_fits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, later = make_jobs(tmp_path)
    first = [base.trials[0].id]
    monkeypatch.setattr(Job, "bases", property(lambda job: first if job == later else []))
    done: list[str] = []

    class Others(SerialExecutor):
        def submit(self, _: object, job: Job, *__: object, waited: bool) -> Future:
            future: Future = Future()
            future.set_result([] if waited else None)  # another process is at it, at first
            done.extend([job.name] if waited else [])
            return future

    monkeypatch.setattr(StaleWatch, "ready", lambda *_: True)
    assert len(list(run_jobs([later, base], Others()))) == 2
    assert done == [base.name, later.name]


@pytest.mark.usefixtures("empty_store")
def test_workers_that_go_away_end_the_grid(tmp_path: Path) -> None:
    class Gone(SerialExecutor):
        def submit(self, *_: object, **__: object) -> Future:
            future: Future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(UnfinishedError, match="once they are back, the same command resumes"):
        list(run_jobs(make_jobs(tmp_path), Gone()))


@pytest.mark.usefixtures("empty_store")
def test_a_trial_that_kills_its_workers_is_given_up_and_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "venom.py").write_text(KILLER)
    monkeypatch.syspath_prepend(tmp_path)
    fork_workers(monkeypatch)
    monkeypatch.setattr(local, "MAX_TRIES", 1)
    argv = ["--priors", "gauss,venom:killer", "--latents", "2", "--seeds", "0:2", "--epochs"]
    argv += ["1", "--nets", "mlp[hidden=16]", "--nll-samples", "5", "--stack", "2"]
    leave_undrawn(monkeypatch)
    assert main([*argv, "--executor", "local", "--workers", "2"]) == 1
    said = capsys.readouterr().out
    assert said.count("test NLL") >= 2
    why = "WorkerLostError: its worker process was killed by SIGKILL (out of memory?), in each "
    assert said.count(f"failed: {why}of 1 tries") == 2
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "digits")
    runs = store.client.search_runs([store.experiment], "tags.trial LIKE '%'")
    last = {run.info.run_name: run.data.tags for run in reversed(runs)}
    ended = sorted(tags.get("status", "") for tags in last.values())
    assert ended == ["complete"] * 2 + ["failed"] * 2, last
    assert all(
        "given up: " in run.data.tags["reason"]
        for run in runs
        if run.data.tags.get("status") == "failed"
    )


def identity(value: object) -> object:
    return value


def fail(error: Exception) -> None:
    raise error


def be_stubborn() -> None:
    raise Stubborn("a", "b")


class Stubborn(Exception):  # noqa: N818
    """An error that cannot be read by another process."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def kill_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def warn_and_wait(job: Job, report: Callable | None = None, *, waited: bool = False) -> list:
    warnings.warn("mind the gap", RuntimeWarning, stacklevel=1)
    return []


def test_a_process_answers_raises_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    with LocalExecutor([Slot(threads=1)]) as one:
        assert one.submit(identity, 3).result() == 3
        with pytest.raises(OSError, match="no such"):
            one.submit(fail, OSError("no such thing")).result()
        with pytest.raises(RuntimeError, match="Stubborn: a"):
            one.submit(be_stubborn).result()
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            one.submit(identity, Stubborn("a", "b")).result()  # which it cannot read
        assert one.submit(torch.get_num_threads).result() == 1
        first = one.submit(os.getpid).result()
        assert one.submit(kill_once, tmp_path / "mark").result() == "done"
        assert one.submit(os.getpid).result() != first
        monkeypatch.setattr(local, "MAX_TRIES", 2)
        with pytest.raises(WorkerLostError, match="exited with status 3, in each of 2 tries"):
            one.submit(os._exit, 3).result()


def test_warnings_arrive_as_notices_and_events_in_good_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (job, _) = make_jobs(tmp_path)
    got: list[Event | Notice] = []
    monkeypatch.setattr(base, "run_job", warn_and_wait)
    base.run_task(job, got.append)
    assert got == [Notice(f"{job.name}: mind the gap")]

    got.clear()
    paced = base._Paced(got.append)
    for phase in ("fit", "evaluate"):
        for done in range(1, 101):
            paced(Event(0, "a", phase, done, 100))  # type: ignore[arg-type]
    assert [(e.phase, e.done) for e in got if isinstance(e, Event)] == [
        (phase, done) for phase in ("fit", "evaluate") for done in (1, 100)
    ]


def test_leaving_by_an_error_asks_the_workers_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_workers(monkeypatch)
    futures: list[Future] = []

    def leave() -> None:
        with two() as both:
            futures.extend(both.submit(time.sleep, 600) for _ in range(3))
            deadline = time.monotonic() + 60
            while any(each._process is None for each in both._workers):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    for future in futures:
        with pytest.raises((CancelledError, WorkerLostError)):
            future.result(timeout=60)


BUSY = ["--priors", "gauss", "--latents", "2", "--seeds", "0:2", "--nll-samples", "60"]
BUSY += ["--nets", "mlp[hidden=16]", "--epochs", "4000", "--checkpoint-every", "0.2"]
BUSY += ["--executor", "local", "--workers", "2"]


@pytest.mark.usefixtures("empty_store")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_workers_save_their_state_when_their_command_ends(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten_processes(monkeypatch)
    process = start(BUSY, tmp_path)
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "digits")

    def wait_for(there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not there():
            assert time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
            time.sleep(0.2)

    checkpoints = tmp_path / "results" / "local" / "digits" / "checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("*.safetensors"))) == 2)
    assert process.pid is not None
    os.kill(process.pid, signal.Signals[name])
    process.join(60)
    assert process.exitcode == (130 if name == "SIGTERM" else -signal.SIGKILL)

    def statuses() -> list[tuple[str, str]]:
        runs = store.client.search_runs([store.experiment], "tags.trial LIKE '%'")
        return [(run.info.status, run.data.tags.get("reason", "")) for run in runs]

    wait_for(lambda: all(status == "KILLED" for status, _ in statuses()))
    why = "the end of its parent process" if name == "SIGKILL" else "SIGTERM"
    assert statuses() == [("KILLED", f"interrupted by {why}")] * 2
    assert len(list(checkpoints.glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--workers", "2"], "--workers goes with --executor local or dask"),
        (["--scheduler", "x"], "--scheduler goes with --executor dask"),
        (["--executor", "local", "--scheduler-file", "x"], "--scheduler-file goes with --exec"),
        (["--executor", "local", "--workers", "0"], "bad --workers '0': expected"),
        (["--executor", "local", "--workers", "9999"], "--workers 9999: expected at most "),
        (["--executor", "local", "--per-gpu", "2"], "--per-gpu needs a CUDA device"),
        (["--executor", "dask"], "needs --scheduler ADDRESS or --scheduler-file FILE"),
        (["--executor", "dask", "--scheduler-file", "no"], "--scheduler-file no: No such file"),
        (["--executor", "ray"], "invalid choice: 'ray'"),
        (["--executor", "local", "--profile"], "--profile traces this process"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    flags: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "dask" in flags:
        pytest.importorskip("distributed", reason="needs flowvae[cluster]")
    monkeypatch.chdir(tmp_path)
    assert main(["--priors", "gauss", "--device", "cpu", *flags]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "workers", "each", "visible", "expected"),
    [
        ("cuda", None, None, "", ["0", "1", "2"]),
        ("cuda", None, 2, "", ["0", "1", "2", "0", "1", "2"]),
        ("cuda", 2, None, "", ["0", "1"]),
        ("cuda", None, None, "GPU-a,GPU-b, GPU-c", ["GPU-a", "GPU-b", "GPU-c"]),
        ("cuda:1", None, 2, "5,6,7", ["6", "6"]),
        ("cuda:1", None, None, "", ["1"]),
    ],
)
def test_each_worker_is_given_a_gpu(
    device: str,
    workers: int | None,
    each: int | None,
    visible: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = local.slots(device, workers, each)
    assert [slot.cuda for slot in found] == expected
    with pytest.raises(InputError, match="several workers share one, give --per-gpu"):
        local.slots(device, 9, each)
    assert LocalExecutor(found, device).shared == (each or 1)


def test_a_worker_sees_its_own_gpu_only() -> None:
    with LocalExecutor([Slot(threads=1, cuda="7")]) as one:
        assert one.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "7"


def test_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert local.slots("cpu", 2, None) == [Slot(3)] * 2
    assert local.slots("cpu", None, None) == [Slot(1)] * 6
