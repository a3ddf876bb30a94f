"""Repairs the store of a folder that was moved or copied: `python -m bench.repair`.

MLflow keeps absolute paths of artifacts. In a folder that was moved they lead nowhere; in one that
was copied they lead into the original, which the copy would read and write. They are rewritten, in
one transaction, to where the files are found now.
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


ROOTS = ("experiments", "workspaces")
"""Tables whose locations are for what is yet to be written."""
WAIT = 10.0
"""How long to wait for another program that holds the store, s."""
SHOWN = 20
"""Runs without artifacts that are told by name."""


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
    """Returns the locations to rewrite, and those whose files lie in their old place alone."""
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
        kept = stay if alone and place.table not in ROOTS else changes
        kept.append(_Change(place, old, new, text))
    return changes, stay


def _missing(connection: sqlite3.Connection, changes: Iterable[_Change]) -> list[str]:
    """Returns a line for each run whose artifacts are found neither in the old nor new place."""
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
    """Says how many locations there are, such as `2 experiments, 1 run`."""
    names = {"experiments": "experiment", "runs": "run"}
    kinds = Counter(names.get(change.place.table, "other location") for change in changes)
    kinds = Counter({kind: kinds[kind] for kind in (*names.values(), "other location")})
    return ", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in kinds.items() if n)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.repair",
        description="Repairs the MLflow store of a folder that was moved or copied.",
        epilog="Exit status: 0 all artifacts are found, 1 some are not, 2 usage or input.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, or this folder's")
    add("--from", dest="old", metavar="OLD", help="where the artifacts were (default: finds out)")
    add("--to", dest="new", metavar="NEW", help="where they are now")
    add("--dry-run", action="store_true", help="show what would be rewritten")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_run, argv, resumes=False)


def _given(old: str | None, new: str | None) -> dict[str, str]:
    """Returns the move that the flags give, or none."""
    if old is None and new is None:
        return {}
    if not old or not new:
        raise InputError("--from and --to go together: where the artifacts were, and are now")
    for text in (old, new):
        if not text.isprintable():
            raise InputError(f"{text!a} is no name of a folder of artifacts")
    source, target = (local_path(text) or os.path.abspath(text) for text in (old, new))
    if not os.path.isdir(target):
        raise InputError(f"--to {new}: there is no such folder")
    if sign := next((sign for sign in "?%" if sign in target), None):
        raise InputError(f"--to {new}: MLflow misreads '{sign}' in a path: choose one without")
    return {source: target}


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse(argv)
    given = _given(arguments.old, arguments.new)

    from filelock import FileLock, Timeout

    from bench.store.address import SQLITE, tracking_uri

    uri = tracking_uri(arguments.tracking_uri)
    if not uri.startswith(SQLITE):
        raise InputError(f"cannot repair {uri}: only a store in a file, {SQLITE}PATH")
    path = Path(uri.removeprefix(SQLITE))
    check_path(path)
    if not path.exists():
        raise InputError(f"there is no MLflow store at {uri}")
    check_readable(path, WAIT)
    if arguments.dry_run:
        return _repair(path, given, dry=True)
    check_writable(path, WAIT)
    try:
        # The lock under which a store is made and opened, see `bench.store.runs`.
        with FileLock(path.with_name(path.name + ".lock"), timeout=WAIT):
            return _repair(path, given, dry=False)
    except Timeout:
        raise InputError(f"the MLflow store {path} is being opened: try again") from None


def _repair(path: Path, given: Mapping[str, str], *, dry: bool) -> int:
    """Rewrites what moved, unless `dry`, and says so; returns the exit status."""
    say = partial(make_console().print, markup=False, emoji=False, soft_wrap=True)
    here = str(path.parent / ARTIFACTS)
    with opened(path, WAIT) as connection:
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
        say(f"nothing {verdict} in {path}{below}")
    for old, new in roots.items():
        if found := [change for change in changes if change.old == old]:
            say(f"{'would rewrite' if dry else 'rewrote'} {old} -> {new}: {_count(found)}")
        if left := [change for change in stay if change.old == old]:
            say(f"left {_count(left)} that {old} alone holds: copy them to {new} and repair again")
    if missing:
        say(f"{len(missing)} runs' artifacts are found nowhere (moved? see --from, --to):")
        for line in missing[:SHOWN]:
            say(f"  {line}")
        if len(missing) > SHOWN:
            say(f"  and {len(missing) - SHOWN} more")
    return EXIT_UNFINISHED if missing or stay else EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
