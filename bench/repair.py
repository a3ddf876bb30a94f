"""Repairs the store of a folder that was moved or copied: `python -m bench.repair`.

MLflow keeps absolute paths of artifacts. In a moved folder they lead nowhere; in a copied one they
lead into the original, which the copy would read and write. The command rewrites them, in one
transaction, to the files' present paths.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.cli.console import make_console
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, Parser, run_command
from bench.store.artifact_paths import (
    ARTIFACTS,
    StoredPath,
    local_path,
    moved_folder,
    stored_paths,
)
from bench.store.sqlite import check_path, check_readable, check_writable, opened
from flowvae.errors import InputError

__all__ = ["main"]


ROOT_TABLES = ("experiments", "workspaces")
"""Tables whose locations are those of artifacts yet to be written."""
LOCK_SECONDS = 10.0
"""How long to wait for another program that locks the store."""
MAX_PRINTED_RUNS = 20
"""Runs without artifacts that are printed."""


class _Change(NamedTuple):
    place: StoredPath
    old: str
    new: str
    location: str


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _changes(
    places: Iterable[StoredPath], roots: Mapping[str, str]
) -> tuple[list[_Change], list[_Change]]:
    """Returns the locations to rewrite, and those whose files exist at the old path only."""
    changes: list[_Change] = []
    stay: list[_Change] = []
    longest = sorted(roots, key=len, reverse=True)
    for place in places:
        path = local_path(place.location)
        if path is None:
            continue
        old = next((old for old in longest if _below(path, old)), None)
        if old is None:
            continue
        new = roots[old]
        if _below(new, old) and _below(path, new):  # a move into a folder of its own, repaired
            continue
        now = os.path.normpath(os.path.join(new, os.path.relpath(path, old)))
        plain = now.replace("%", "%25")  # MLflow decodes these too
        text = Path(now).as_uri() if place.location.startswith("file:") else plain
        alone = os.path.exists(path) and not os.path.exists(now)
        kept = stay if alone and place.table not in ROOT_TABLES else changes
        kept.append(_Change(place, old, new, text))
    return changes, stay


def _missing(connection: sqlite3.Connection, changes: Iterable[_Change]) -> list[str]:
    """Returns a line for each run whose artifacts exist at neither the old nor the new path."""
    new = {change.place.row: change.location for change in changes if change.place.table == "runs"}
    rows = connection.execute(
        "SELECT rowid, run_uuid, name, artifact_uri FROM runs WHERE lifecycle_stage = 'active'"
    )
    missing = []
    for row, run, name, location in rows:
        path = local_path(new.get(row, location or ""))
        if path is not None and not os.path.exists(path):
            missing.append(f"{run} {name}: {path}")
    return missing


def _count(changes: Iterable[_Change]) -> str:
    """Returns the number of locations in words, such as `2 experiments, 1 run`."""
    names = {"experiments": "experiment", "runs": "run"}
    kinds = Counter(names.get(change.place.table, "other location") for change in changes)
    kinds = Counter({kind: kinds[kind] for kind in (*names.values(), "other location")})
    return ", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in kinds.items() if n)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.repair",
        description="Repairs the MLflow store of a folder that was moved or copied.",
        epilog="Exit status: 0 all artifacts found, 1 some missing, 2 invalid input.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--tracking-uri",
        metavar="URI",
        help="default: MLFLOW_TRACKING_URI, or mlflow.db in this folder",
    )
    add(
        "--from", dest="old", metavar="OLD", help="old folder of the artifacts (default: detected)"
    )
    add("--to", dest="new", metavar="NEW", help="new folder of the artifacts")
    add("--dry-run", action="store_true", help="print what would be rewritten, and stop")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_run, argv, resumes=False)


def _given_move(old: str | None, new: str | None) -> dict[str, str]:
    """Returns the move that the flags give, from old to new folder, or none."""
    if old is None and new is None:
        return {}
    if not old or not new:
        raise InputError("--from and --to go together: the old and the new folder of artifacts")
    for text in (old, new):
        if not text.isprintable():
            raise InputError(f"{text!a} is not the name of a folder")
    source, target = (local_path(text) or os.path.abspath(text) for text in (old, new))
    if not os.path.isdir(target):
        raise InputError(f"--to {new}: there is no such folder")
    if sign := next((sign for sign in "?%" if sign in target), None):
        raise InputError(f"--to {new}: MLflow misreads '{sign}' in a path: choose one without")
    return {source: target}


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse(argv)
    given = _given_move(arguments.old, arguments.new)

    from filelock import FileLock, Timeout

    from bench.store.address import SQLITE, tracking_uri

    uri = tracking_uri(arguments.tracking_uri)
    if not uri.startswith(SQLITE):
        raise InputError(f"cannot repair {uri}: expected a store in a file, {SQLITE}PATH")
    path = Path(uri.removeprefix(SQLITE))
    check_path(path)
    if not path.exists():
        raise InputError(f"there is no MLflow store at {uri}")
    check_readable(path, LOCK_SECONDS)
    if arguments.dry_run:
        return _repair(path, given, dry=True)
    check_writable(path, LOCK_SECONDS)
    try:
        # The lock under which a store is created and opened, see `bench.store.runs`.
        with FileLock(path.with_name(path.name + ".lock"), timeout=LOCK_SECONDS):
            return _repair(path, given, dry=False)
    except Timeout:
        raise InputError(
            f"another process is opening the MLflow store {path}: try again"
        ) from None


def _repair(path: Path, given: Mapping[str, str], *, dry: bool) -> int:
    """Rewrites the locations, unless `dry`, and prints them; returns the exit status."""
    print_line = partial(make_console().print, markup=False, emoji=False, soft_wrap=True)
    here = str(path.parent / ARTIFACTS)
    with opened(path, LOCK_SECONDS) as connection:
        connection.execute("BEGIN" if dry else "BEGIN IMMEDIATE")
        places = list(stored_paths(connection))
        roots = given or dict.fromkeys(moved_folder(places, here), here)
        changes, stay = _changes(places, roots)
        missing = _missing(connection, changes)
        if not dry:
            for place, _, _, location in changes:
                update = f"UPDATE {place.table} SET {place.column} = ? WHERE rowid = ?"
                connection.execute(update, (location, place.row))
        connection.execute("COMMIT")
    if not changes:
        verdict = "can be repaired" if missing or stay else "needs repair"
        below = f": nothing is recorded below {next(iter(given))}" if given and not stay else ""
        print_line(f"nothing {verdict} in {path}{below}")
    for old, new in roots.items():
        if moved := [change for change in changes if change.old == old]:
            print_line(f"{'would rewrite' if dry else 'rewrote'} {old} -> {new}: {_count(moved)}")
        if kept := [change for change in stay if change.old == old]:
            print_line(
                f"not rewritten: {_count(kept)} with files in {old} only: copy them to {new} and "
                "repair again"
            )
    if missing:
        print_line(f"the artifacts of {len(missing)} runs are missing (moved? see --from, --to):")
        for line in missing[:MAX_PRINTED_RUNS]:
            print_line(f"  {line}")
        if len(missing) > MAX_PRINTED_RUNS:
            print_line(f"  and {len(missing) - MAX_PRINTED_RUNS} more")
    return EXIT_UNFINISHED if missing or stay else EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
