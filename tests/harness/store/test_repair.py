"""A store whose folder was moved or copied finds its artifacts again, and its own only."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, EXIT_USAGE
from bench.repair import main
from bench.store.artifact_paths import moved
from bench.store.runs import load_run
from flowvae.models.saved_model import save
from flowvae.models.vae import build
from flowvae.trial import Trial

Make = Callable[[Path], Path]
Capture = pytest.CaptureFixture[str]
NAMES = ["plain", "with space", "ünï", "a#b", "[x] :smile: a@b:c"]


def address(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(address(folder))


def record(folder: Path, text: str, experiment: str | None = None) -> str:
    """Record a run with an artifact in a folder's store; return the run's id."""
    client = client_of(folder)
    if experiment is None:
        found = client.get_experiment_by_name("e")
        experiment = found.experiment_id if found else client.create_experiment("e")
    run = client.create_run(experiment).info.run_id
    client.log_text(run, text, "note.txt")
    return run


def read(folder: Path, run: str) -> str:
    return Path(client_of(folder).download_artifacts(run, "note.txt")).read_text()


def files(folder: Path) -> dict[Path, bytes]:
    """Return what lies below a folder, by relative path."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "mlflow.db.lock"
    }


def rows(folder: Path, sql: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(folder / "mlflow.db") as connection:
        return connection.execute(sql).fetchall()


def repair(folder: Path, *flags: str) -> int:
    return main(["--tracking-uri", address(folder), *flags])


@pytest.fixture
def project(tmp_path: Path, make_store: Make, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store and two runs, from which it was used."""
    folder = tmp_path / "project"
    make_store(folder)
    monkeypatch.chdir(folder)
    record(folder, "one")
    record(folder, "two")
    monkeypatch.chdir(tmp_path)
    return folder


def runs_of(folder: Path) -> list[str]:
    return [run for (run,) in rows(folder, "SELECT run_uuid FROM runs ORDER BY start_time")]


@pytest.mark.parametrize("name", NAMES)
def test_a_moved_folder_is_repaired_once(
    name: str, project: Path, tmp_path: Path, capsys: Capture
) -> None:
    runs = runs_of(project)
    assert moved(project / "mlflow.db") is None
    there = Path(shutil.move(project, tmp_path / name))
    assert moved(there / "mlflow.db") == (str(project / "mlruns"), str(there / "mlruns"))
    assert repair(there) == EXIT_COMPLETE
    told = f"rewrote {project}/mlruns -> {there}/mlruns: 1 experiment, 2 runs\n"
    assert capsys.readouterr().out == told
    assert moved(there / "mlflow.db") is None
    assert {read(there, run) for run in runs} == {"one", "two"}
    assert read(there, record(there, "three")) == "three"
    assert not project.exists()
    assert repair(there) == EXIT_COMPLETE
    assert capsys.readouterr().out == f"nothing needs repair in {there / 'mlflow.db'}\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_moved_from_an_odd_name_is_repaired(
    name: str, tmp_path: Path, make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    run = record(tmp_path / name, "one")
    there = Path(shutil.move(tmp_path / name, tmp_path / "there"))
    assert repair(there) == EXIT_COMPLETE
    assert read(there, run) == "one"


def test_a_repaired_copy_leaves_the_original_alone(project: Path, tmp_path: Path) -> None:
    (run, _) = runs_of(project)
    twin = Path(shutil.copytree(project, tmp_path / "twin"))
    before = files(project)
    assert repair(twin) == EXIT_COMPLETE
    code = (  # another process: in this one MLflow remembers where the run's artifacts went
        "import sys; from mlflow import MlflowClient; "
        "MlflowClient(sys.argv[1]).log_text(sys.argv[2], 'of the twin', 'note.txt')"
    )
    subprocess.run([sys.executable, "-c", code, address(twin), run], check=True)
    record(twin, "three")
    assert files(project) == before
    assert read(twin, run) == "of the twin"
    assert len(list((twin / "mlruns").rglob("note.txt"))) == 3
    assert moved(project / "mlflow.db") is None
    assert repair(project) == EXIT_COMPLETE
    assert files(project) == before


def test_the_model_of_a_run_is_loaded_after_repair(
    tmp_path: Path, make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_store(tmp_path / "old").parent
    monkeypatch.chdir(old)
    run = record(old, "")
    trial = Trial(prior="gauss", latent=2, net="mlp[hidden=16]")
    vae = build(trial, (8, 8))
    client_of(old).log_artifacts(run, str(save(vae, trial, tmp_path / "model")), "model")
    there = Path(shutil.move(old, tmp_path / "there"))
    assert repair(there) == EXIT_COMPLETE
    again, described = load_run(run, address(there))
    assert described == trial
    assert np.array_equal(again.sample(2, seed=1).numpy(), vae.sample(2, seed=1).numpy())


def test_file_addresses_and_every_table_are_rewritten(
    tmp_path: Path, make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_store(tmp_path / "old name#1").parent
    monkeypatch.chdir(old)
    client = client_of(old)
    root = (old / "mlruns").as_uri()
    assert "%20" in root
    experiment = client.create_experiment("uri", artifact_location=f"{root}/1")
    run = record(old, "one", experiment)
    uri = client.get_run(run).info.artifact_uri
    client.create_registered_model("m")
    client.create_model_version("m", f"{uri}/model", run)
    client.create_model_version("m", f"s3://bucket/mlruns/1/{run}", run)
    rows(
        old,
        "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location, "
        f"creation_timestamp_ms, last_updated_timestamp_ms, status, lifecycle_stage) "
        f"VALUES ('m-1', 1, 'q', '{old}/mlruns/1/models/m-1/artifacts', 0, 0, 1, 'active')",
    )
    rows(
        old,
        "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) "
        "VALUES ('tr-1', 1, 0, 'OK')",
    )
    rows(
        old,
        "INSERT INTO trace_tags (request_id, key, value) VALUES "
        f"('tr-1', 'mlflow.artifactLocation', '{root}/1/traces/tr-1/artifacts'), "
        f"('tr-1', 'note', '{root}/1')",
    )
    there = Path(shutil.move(old, tmp_path / "new näme"))
    assert repair(there) == EXIT_COMPLETE
    assert read(there, run) == "one"
    fresh = (there / "mlruns").as_uri()
    assert rows(there, "SELECT artifact_uri FROM runs") == [(f"{fresh}/1/{run}/artifacts",)]
    assert rows(there, "SELECT source FROM model_versions ORDER BY version") == [
        (f"{fresh}/1/{run}/artifacts/model",),
        (f"s3://bucket/mlruns/1/{run}",),
    ]
    models = rows(there, "SELECT artifact_location FROM logged_models")
    assert models == [(f"{there}/mlruns/1/models/m-1/artifacts",)]
    assert rows(there, "SELECT value FROM trace_tags ORDER BY key") == [
        (f"{fresh}/1/traces/tr-1/artifacts",),
        (f"{root}/1",),  # a tag of a person's own
    ]
    assert old.name.encode() not in b"".join(
        text.encode() for (text,) in rows(there, "SELECT artifact_location FROM experiments")
    )


def test_a_dry_run_changes_nothing(project: Path, tmp_path: Path, capsys: Capture) -> None:
    there = Path(shutil.move(project, tmp_path / "there"))
    before = files(there)
    assert repair(there, "--dry-run") == EXIT_COMPLETE
    assert "would rewrite" in capsys.readouterr().out
    assert files(there) == before
    assert [path.name for path in there.iterdir() if path.is_file()] == ["mlflow.db"]


def test_a_store_that_is_used_from_elsewhere_is_not_moved(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Its artifacts lie where it was used, though an older `mlruns` lies beside the file."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    experiment = client_of(project).create_experiment("other")
    run = record(project, "away", experiment)
    (project / "mlruns" / experiment / "leftover").mkdir(parents=True)
    assert moved(project / "mlflow.db") is None
    assert repair(project) == EXIT_COMPLETE
    assert "nothing needs repair" in capsys.readouterr().out
    assert read(project, run) == "away"


def test_a_second_way_to_the_same_folder_is_no_move(project: Path, tmp_path: Path) -> None:
    """As where a disk is mounted at two places."""
    (tmp_path / "alias").symlink_to(project)
    assert moved(tmp_path / "alias" / "mlflow.db") is None


def test_what_the_original_alone_holds_stays_there(
    project: Path, tmp_path: Path, capsys: Capture
) -> None:
    twin = Path(shutil.copytree(project, tmp_path / "twin"))
    run = record(twin, "strayed")  # before the repair: it went into the original
    assert list((project / "mlruns").rglob(run))
    assert repair(twin) == EXIT_UNFINISHED
    out = capsys.readouterr().out
    assert "1 experiment, 2 runs" in out
    assert f"not rewritten: 1 run with files in {project}/mlruns only" in out
    assert read(twin, run) == "strayed"
    shutil.copytree(project / "mlruns", twin / "mlruns", dirs_exist_ok=True)
    assert repair(twin) == EXIT_COMPLETE
    shutil.rmtree(project)
    assert read(twin, run) == "strayed"


def test_runs_without_artifacts_are_named(project: Path, tmp_path: Path, capsys: Capture) -> None:
    lost, kept = runs_of(project)
    there = Path(shutil.move(project, tmp_path / "there"))
    shutil.rmtree(there / "mlruns" / "1" / lost)
    assert repair(there) == EXIT_UNFINISHED
    out = capsys.readouterr().out
    assert "1 experiment, 2 runs" in out
    assert f"{lost} " in out
    assert kept not in out
    assert read(there, kept)
    shutil.rmtree(there / "mlruns")
    assert repair(there) == EXIT_UNFINISHED
    assert "nothing can be repaired" in capsys.readouterr().out


def test_a_move_can_be_given(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """As where the store's file lies elsewhere than the artifacts."""
    runs = runs_of(project)
    store = Path(shutil.move(project / "mlflow.db", tmp_path / "mlflow.db")).parent
    there = Path(shutil.move(project, tmp_path / "a b"))
    assert moved(store / "mlflow.db") is None
    assert repair(store) == EXIT_UNFINISHED
    assert "--from" in capsys.readouterr().out
    flags = ("--from", str(project), "--to", str(there))
    assert repair(store, *flags) == EXIT_COMPLETE
    told = f"rewrote {project} -> {there}: 1 experiment, 2 runs\n"
    assert capsys.readouterr().out == told
    assert {read(store, run) for run in runs} == {"one", "two"}
    assert repair(store, *flags) == EXIT_COMPLETE
    assert "nothing needs repair" in capsys.readouterr().out


def test_a_move_one_folder_down_is_made_once(project: Path, tmp_path: Path) -> None:
    (run, _) = runs_of(project)
    shutil.move(project, tmp_path / "aside")
    there = Path(shutil.move(tmp_path / "aside", project / "deep"))
    for _ in range(2):
        assert repair(there, "--from", str(project), "--to", str(there)) == EXIT_COMPLETE
        assert read(there, run)
    up = Path(shutil.move(there, tmp_path / "aside"))
    shutil.rmtree(project)
    up = Path(shutil.move(up, project))
    assert repair(up, "--from", str(there), "--to", str(project)) == EXIT_COMPLETE
    assert read(up, run)


@pytest.fixture
def locker(project: Path) -> Iterator[None]:
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(project / "mlflow.db")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


@pytest.mark.usefixtures("locker")
def test_a_store_in_use_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("bench.repair.LOCK_SECONDS", 0.1)
    assert repair(project) == EXIT_USAGE
    assert "is locked by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tracking-uri", "http://127.0.0.1:9"], "cannot repair http://127.0.0.1:9"),
        (["--tracking-uri", "mlruns"], "cannot repair mlruns"),
        (["--tracking-uri", "sqlite:///nowhere.db"], "there is no MLflow store"),
        (["--tracking-uri", "sqlite:///a%20b.db"], "'%'"),
        (["--from", "/a"], "--from and --to go together"),
        (["--to", "/a"], "--from and --to go together"),
        (["--from", "/a", "--to", "/nowhere/b"], "there is no such folder"),
        (["--from", os.fsdecode(b"/a\xff"), "--to", "/"], "is not the name"),
        (["--form", "/a"], "did you mean --from"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    flags: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == EXIT_USAGE
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_many_runs_are_looked_at_quickly(project: Path, tmp_path: Path) -> None:
    with sqlite3.connect(project / "mlflow.db") as connection:
        connection.executemany(
            "INSERT INTO runs (run_uuid, experiment_id, artifact_uri) VALUES (?, 1, ?)",
            [(str(n), f"{project}/mlruns/1/{n}/artifacts") for n in range(5000)],
        )
    asked = []
    held = os.path.exists
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.path.exists", lambda path: asked.append(path) or held(path))
        assert moved(project / "mlflow.db") is None
    assert len(asked) < 10
