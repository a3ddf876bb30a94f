"""What is wrong with an sqlite store is told in a line, before MLflow meets it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from bench.store import sqlite
from bench.store.sqlite import check_path, check_readable, check_writable, create, explain
from flowvae.errors import InputError

Make = Callable[[Path], Path]
LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


def refusal(check: Callable[..., None], path: Path, *rest: float) -> str:
    """Return the one line that a check refuses a path with; the path stands in it."""
    with pytest.raises(InputError) as caught:
        check(path, *rest)
    text = str(caught.value)
    assert str(path)[:60] in text  # of a long word the middle is left out
    assert "\n" not in text
    return text


@pytest.fixture
def locker(tmp_path: Path, make_store: Make) -> Iterator[Path]:
    """A store that another process locks."""
    path = make_store(tmp_path)
    words = [sys.executable, "-c", LOCKER, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield path
        process.communicate()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that belongs to whoever the test then runs as, which is never root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        root = os.geteuid() == 0  # to whom nothing is read-only
        if root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.parametrize("name", ["plain", "a b", "ü", "a#b", "a@b:c", "a;b&c=d", "[x]~$'\""])
def test_a_good_store_passes_and_stays_as_it_is(
    name: str, tmp_path: Path, make_store: Make
) -> None:
    path = make_store(tmp_path / name)
    before = path.read_bytes()
    for check in (check_path, check_readable, check_writable):
        check(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]


def test_a_missing_store_passes_and_stays_missing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"
    for check in (check_path, check_readable, check_writable):
        check(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("50%/mlflow.db", "'%'"),
        ("what?/mlflow.db", "'?'"),
        ("folder", "is a folder"),
        ("file/mlflow.db", "is a file, not a folder"),
        ("file/below/mlflow.db", "is a file, not a folder"),
        ("n" * 250, "too long"),  # without a journal it would fit
        ("/".join(["n" * 100] * 5), "at most 504 bytes"),
        (os.fsdecode(b"\xff/mlflow.db"), "not UTF-8"),
        ("pipe", "no regular file"),
    ],
)
def test_a_path_that_mlflow_cannot_use_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert reason in refusal(check_path, tmp_path / name)


def test_the_longest_path_is_one_that_sqlite_still_opens(tmp_path: Path) -> None:
    folder = tmp_path
    while len(str(folder)) < 390:
        folder /= "d" * 90
    folder.mkdir(parents=True)
    path = folder / ("n" * (sqlite.MAX_PATH_BYTES - len(str(folder)) - 1))
    check_path(path)
    sqlite3.connect(path).execute("CREATE TABLE t (x)")
    longer = path.with_name(path.name + "n")
    refusal(check_path, longer)
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(longer).execute("CREATE TABLE t (x)")


def test_an_empty_file_is_one_for_mlflow_to_fill(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.touch()
    check_readable(path)
    check_writable(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda whole: b"to be or not to be, " * 300, "no sqlite database"),
        (lambda whole: whole[:50], "damaged"),
        (lambda whole: whole[: len(whole) // 2], "damaged"),
        (lambda whole: whole[:8192] + b"\xa5" * 200_000 + whole[208_192:], "damaged"),
    ],
)
def test_a_damaged_file_is_refused(
    damage: Callable[[bytes], bytes], reason: str, tmp_path: Path, make_store: Make
) -> None:
    path = make_store(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert reason in refusal(check_readable, path)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipes.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name)")
        connection.execute("CREATE TABLE alembic_version (version_num)")
    assert "another program, with the table 'recipes'" in refusal(check_readable, path)


@pytest.mark.parametrize("revision", ["fedcba987654", "75868b020152"])  # a newer, an older one
def test_a_store_of_another_schema_is_refused(
    revision: str, tmp_path: Path, make_store: Make
) -> None:
    path = make_store(tmp_path / "a b")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    text = refusal(check_readable, path)
    assert f"another version of MLflow (schema {revision}; the installed" in text
    assert f"`mlflow db upgrade 'sqlite:///{path}'`" in text


@pytest.mark.parametrize("tables", [["experiments"], sorted(sqlite.FIRST_TABLES)])
def test_tables_that_were_begun_are_left_to_mlflow(tables: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        for name in (*tables, "alembic_version"):  # stopped before the first migration
            connection.execute(f"CREATE TABLE {name} (version_num)")
    check_readable(path)


def test_looking_is_quick(tmp_path: Path, make_store: Make) -> None:
    path = make_store(tmp_path)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        check_readable(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


@pytest.mark.parametrize("check", [check_readable, check_writable])
def test_a_locked_store_is_waited_for_then_refused(
    check: Callable[..., None], locker: Path
) -> None:
    start = time.perf_counter()
    text = refusal(check, locker, 0.5)
    assert time.perf_counter() - start > 0.4
    assert "is locked by another program" in text
    assert "close it, then try again" in text


def test_a_lock_that_is_let_go_in_time_does_no_harm(tmp_path: Path, make_store: Make) -> None:
    path = make_store(tmp_path)
    code = LOCKER.replace("sys.stdin.read()", "import time; time.sleep(0.5)")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        check_writable(path, 30.0)


def test_a_file_that_is_read_only_is_refused(public: Path) -> None:
    path = public / "mlflow.db"
    sqlite3.connect(path).execute("CREATE TABLE t (x)")
    check_writable(path)
    path.chmod(0o444)
    assert "read-only" in refusal(check_writable, path)


def test_a_folder_that_is_read_only_is_refused(public: Path) -> None:
    path = public / "mlflow.db"
    sqlite3.connect(path).execute("CREATE TABLE t (x)")
    public.chmod(0o555)
    assert "journal" in refusal(check_writable, path)
    assert "Permission denied" in refusal(check_writable, public / "below" / "mlflow.db")


def test_a_store_that_cannot_be_created_is_refused_at_once(public: Path) -> None:
    public.chmod(0o555)
    assert "Permission denied" in refusal(create, public / "mlflow.db")


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2**30, 2**30 - 5, 5))
    assert "5 bytes left" in refusal(check_writable, tmp_path / "mlflow.db")


def _raised(path: Path, sql: str, *before: str) -> Exception:
    """Return SQLAlchemy's error of a statement, in MLflow's coat as its store raises it."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.1})
    with engine.connect() as connection:
        for line in before:
            connection.exec_driver_sql(line)
        with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
            connection.exec_driver_sql(sql)
    assert "Background on this error" in str(caught.value)
    return MlflowException(message=caught.value)


def test_what_sqlalchemy_says_becomes_a_line(
    tmp_path: Path, make_store: Make, locker: Path
) -> None:
    write = "INSERT INTO tags (key, value, run_uuid) VALUES ('k', 'v', 'r')"
    locked = _raised(locker, write)
    path = make_store(tmp_path / "other")
    readonly = _raised(path, write, "PRAGMA query_only = 1")
    pages = sqlite3.connect(path).execute("PRAGMA page_count").fetchone()[0]
    blob = "INSERT INTO tags (key, value, run_uuid) VALUES ('k', zeroblob(99999), 'r')"
    full = _raised(path, blob, f"PRAGMA max_page_count = {pages}")
    missing = _raised(path, "SELECT * FROM nowhere")
    unopenable = _raised(path, "ATTACH '/dev/null/x' AS x")
    unique = _raised(path, "INSERT INTO experiments SELECT * FROM experiments")
    path.write_bytes(path.read_bytes()[:8000])
    damaged = _raised(path, "SELECT * FROM runs")
    for error, words in (
        (locked, "another program is writing"),
        (readonly, "read-only"),
        (full, "disk is full"),
        (missing, "tables are missing"),
        (unopenable, "cannot be opened"),
        (damaged, "damaged"),
        (unique, "UNIQUE constraint failed: experiments.experiment_id"),
    ):
        line = explain(error)
        assert words in line
        assert "\n" not in line
        assert "SQL" not in line.replace("sqlite", "").replace("`", "")
        assert "(sqlite3" not in line


def test_an_error_of_ours_is_not_hidden(tmp_path: Path, make_store: Make) -> None:
    path = make_store(tmp_path)
    with pytest.raises(sqlite3.OperationalError), sqlite.opened(path) as connection:
        connection.execute("SELECT * FROM nowhere")


def test_what_is_let_through_mlflow_opens(tmp_path: Path, make_store: Make) -> None:
    path = make_store(tmp_path / "a@b:c #;&=+ ü")
    check_path(path)
    client = MlflowClient(f"sqlite:///{path}")
    client.create_experiment("e", artifact_location=str(tmp_path))
    rows = sqlite3.connect(path).execute("SELECT name FROM experiments").fetchall()
    assert ("e",) in rows
