"""Checks and creates the file of an sqlite store; each fault is one line that says what to do.

The checks run before MLflow touches the file: it tries a database that it cannot open ten times,
over 100 s and with a page of warnings each. For faults that show only later, `explain` turns the
errors of sqlite, SQLAlchemy and MLflow into one line.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient

from bench.store.address import SQLITE
from flowvae.errors import InputError

__all__ = [
    "check_path",
    "check_readable",
    "check_writable",
    "create",
    "exclusive",
    "explain",
    "opened",
    "tables",
]


MAX_PATH_BYTES = 504
"""Bytes of a path: sqlite stops at 512, including the `-journal` of the file beside it."""
MIN_FREE_BYTES = 2**20
"""Free bytes below which a disk counts as full: a run's first artifacts and rows take more."""
FIRST_TABLES = {"experiments", "runs", "metrics", "params", "tags"}
"""The tables that every version of MLflow creates first."""
FAULTS = {
    "is locked": "another program is writing to it: close that program, then try again",
    "readonly database": (
        "it is read-only, or was removed while in use: allow writing to the file and its folder"
    ),
    "is malformed": (
        "the file is damaged: put a backup in its place, or save what can be saved by "
        "`sqlite3 DAMAGED .recover | sqlite3 NEW`"
    ),
    "is not a database": "the file is no sqlite database: give another, or move it away",
    "disk is full": "the disk is full: free some space",
    "unable to open database": (
        "it cannot be opened: allow reading and writing the file and its folder"
    ),
    "disk I/O error": "its disk fails to read or write: look at the disk, its quota or network",
    "no such table": "tables are missing: it was changed, or not made by the installed MLflow",
    "Max retries exceeded": "no server answers there: start it, or give another address",
    "no such column": "columns are missing: it was changed, or not made by the installed MLflow",
}
"""sqlite's words, which SQLAlchemy and MLflow repeat, and what they mean to a user."""


def _line(error: BaseException) -> str | None:
    text = str(error)
    return next((line for words, line in FAULTS.items() if words in text), None)


def explain(error: BaseException) -> str:
    """Returns one line for what sqlite, SQLAlchemy or MLflow raised about a store.

    Example:
        >>> explain(sqlite3.OperationalError("database or disk is full"))
        'the disk is full: free some space'
    """
    # SQLAlchemy's first line names the class, the next ones hold the SQL and an address.
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return _line(error) or re.sub(r"^\([\w.]+\) ", "", first)


@contextmanager
def opened(path: Path, wait: float = 10.0) -> Iterator[sqlite3.Connection]:
    """Opens a store's file, which must exist, without a transaction; closes it after the block.

    Arguments:
        path: The file.
        wait: How long to wait for another program's lock, s.

    Raises:
        InputError: It cannot be opened, or in the block not be read or written.
    """
    try:
        address = f"{path.absolute().as_uri()}?mode=rw"  # else sqlite would create a missing file
        with closing(
            sqlite3.connect(address, uri=True, timeout=wait, isolation_level=None)
        ) as connection:
            yield connection
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")  # errors of Python itself have none
        if name.startswith("SQLITE_BUSY"):
            raise InputError(
                f"the MLflow store {path} is locked by another program, after {wait:g} s still: "
                "close it, then try again"
            ) from error
        line = _line(error)
        if line is None or name == "SQLITE_ERROR":  # a fault in our SQL
            raise
        raise InputError(f"cannot use the MLflow store {path}: {line}") from error


def tables(connection: sqlite3.Connection) -> set[str]:
    """Returns the names of a database's tables, without sqlite's own."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in names if not name.startswith("sqlite_")}


def check_path(path: Path) -> None:
    """Refuses a path at which MLflow cannot have its store.

    Raises:
        InputError: It holds `?` or `%`, is no text, is too long, or is a folder or below a file.
    """
    here = f"cannot have the MLflow store {path}"
    for sign in "?%":
        if sign in str(path):
            # SQLAlchemy cuts the address at ? and decodes %20: it would open another file.
            raise InputError(f"{here}: MLflow misreads '{sign}' in a path: choose one without")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{here}: its name is not UTF-8, which MLflow needs") from None
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise InputError(f"{here}: sqlite needs a path of at most {MAX_PATH_BYTES} bytes")
    try:
        for parent in path.parents:
            if parent.exists():
                if not parent.is_dir():
                    raise InputError(f"{here}: {parent} is a file, not a folder")
                break
        path.with_name(path.name + "-journal").exists()  # the longest name that must be possible
        if path.is_dir():
            raise InputError(f"{here}: it is a folder: give a file in it, such as mlflow.db")
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{here}: it is no regular file")
    except OSError as error:
        raise InputError(f"{here}: {error.strerror or error}") from None


@cache
def _schema() -> str | None:
    """Returns the revision of the tables that the installed MLflow creates."""
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    return ScriptDirectory(db_migrations.__path__[0]).get_current_head()


def check_readable(path: Path, wait: float = 10.0) -> None:
    """Refuses a file that is not a database of the installed MLflow; a missing one is fine.

    Arguments:
        path: The file; an empty one is fine too, MLflow creates the tables.
        wait: How long to wait for another program's lock, s.

    Raises:
        InputError: It is damaged, no database, another program's, or another MLflow's.
    """
    if not path.exists():
        return
    with opened(path, wait) as connection:
        names = tables(connection)
        versioned = "alembic_version" in names
        # Empty if MLflow was stopped before the first migration, which it then does by itself.
        rows = connection.execute("SELECT version_num FROM alembic_version") if versioned else []
        revisions = [revision for (revision,) in rows]
        foreign = names - FIRST_TABLES - {"alembic_version"}
        if not names >= FIRST_TABLES:
            if foreign or revisions:
                other = min(foreign, default="alembic_version")
                raise InputError(
                    f"{path} is the database of another program, with the table '{other}': "
                    "give MLflow a file of its own"
                )
            return
    for revision in revisions:
        if revision != _schema():  # MLflow migrates some older ones without asking or a backup
            raise InputError(
                f"the MLflow store {path} was written by another version of MLflow (schema "
                f"{revision}; the installed one has {_schema()}): install that version, or, where "
                "the installed one is newer, copy the file as a backup and run "
                f"`mlflow db upgrade {shlex.quote(f'sqlite:///{path}')}`"
            )


def check_writable(path: Path, wait: float = 10.0) -> None:
    """Refuses a store that cannot be written to; nothing in it changes.

    Arguments:
        path: The file, which may be missing, as may its folder.
        wait: How long to wait for another program's lock, s.

    Raises:
        InputError: It is read-only or locked, or its disk is full.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < MIN_FREE_BYTES:
        raise InputError(
            f"cannot write to the MLflow store {path}: its disk is full, with {disk.free} bytes "
            "left: free some space"
        )
    try:
        # Permissions do not stop root, and do not tell that a disk is mounted read-only.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise InputError(
            f"cannot write to the MLflow store {path}: {error.strerror or error} in {folder}, "
            "where sqlite writes a journal"
        ) from None
    if path.exists():
        with opened(path, wait) as connection:
            connection.execute("BEGIN IMMEDIATE")
            (user,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(
                f"PRAGMA user_version = {user}"
            )  # a change, which opens the journal
            connection.execute("ROLLBACK")


MAX_OPENING_SECONDS = 120.0
"""How long another process may take to open a store and create its tables, s."""


@contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Keeps other processes from opening a store: several first users would break its tables.

    Where the lock cannot be written, no process can create tables either.
    """
    lock = FileLock(file.with_name(file.name + ".lock"))
    try:
        lock.acquire(timeout=MAX_OPENING_SECONDS)
    except Timeout:
        raise InputError(
            f"another process has been opening the MLflow store {file} for "
            f"{MAX_OPENING_SECONDS:g} s: it is stopped or stuck; end it"
        ) from None
    except OSError:  # a folder that cannot be written to
        pass
    try:
        yield
    finally:
        lock.release()


def create(file: Path) -> None:
    """Creates a store that does not exist yet, under another name first, so never half of one.

    Raises:
        InputError: Its folder cannot be written to, or the disk is full.
    """
    if file.exists() and file.stat().st_size:
        return
    check_writable(file)
    temporary = file.with_name(file.name + ".new")
    leftovers = (temporary, temporary.with_name(temporary.name + "-journal"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    try:
        MlflowClient(f"{SQLITE}{temporary}").search_experiments(max_results=1)
        temporary.replace(file)
    finally:  # the disk may be full
        for path in leftovers:
            path.unlink(missing_ok=True)
