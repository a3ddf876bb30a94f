"""Reports what stores and tables hold, and compares across them: `python -m bench.report NAME...`.

One experiment of the store is reported as at the end of the grid that it is of, without running
anything. Several names, of experiments, of other stores' (`sqlite:///other.db#NAME`) or of tables
of trials (`results/tutorial`), are joined and compared as one grid: the trials are paired by seed
and image where both are known. See `bench.results.sources` and `bench.results.join`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.cli.console import make_console, print_labelled
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED, Parser, read_flag, run_command
from bench.grid.grid import check_name, folder_name
from bench.grid.settings import SETTINGS
from bench.system.paths import RESULTS_FOLDER
from flowvae.errors import InputError
from flowvae.specs.values import Positive

if TYPE_CHECKING:
    from bench.results.sources import Source

__all__ = ["main"]


COMMAND = "python -m bench.report"
EVALUATION = {key: s for key, s in SETTINGS.items() if s.kind == "evaluation"}


def _parser() -> Parser:
    parser = Parser(
        prog=COMMAND,
        description="Reports experiments that were run, and compares their trials as one grid.",
        epilog="Numbers of different data, binarisations or estimators are refused; all else that "
        "differs is told. Exit status: 0 all complete, 1 some trial failed or diverged, 2 usage.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME",
        help="an experiment of the store, STORE#EXPERIMENT of another store, or the folder of a "
        "trials.csv, or a .csv; a path holds a / or ends in .csv",
    )  # fmt: skip
    add = parser.add_argument
    add("--only", metavar="COLUMN=LIST", action="append",
        help="trials with such values alone, by trials.csv, as prior=gauss,maf")  # fmt: skip
    for key, setting in EVALUATION.items():
        told = setting.help.removesuffix(", as above")
        add(f"--{key}", metavar="X", help=f"of several evaluations: {told}")
    add("--name", help="the folder below results/local (default: the names, joined by +)")
    add("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, or this folder's")
    add("--resolution", metavar="NATS", default="0.1",
        help="half-width of an interval to count seeds for (default: 0.1)")  # fmt: skip
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_run, argv, resumes=False)


def _run(argv: Sequence[str]) -> int:
    arguments, console = _parser().parse(argv), make_console()
    resolution = read_flag("resolution", arguments.resolution, Positive, "nats")
    names = arguments.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"'{twice[0]}' is named twice: name each source once")
    if arguments.name is not None:
        check_name(arguments.name, "--name")
    only = [_split(text) for text in arguments.only or []]
    wanted = _wanted(vars(arguments))

    from bench.report.build import build_report
    from bench.report.page import About
    from bench.results.join import join_sources
    from bench.results.sources import SourceStores, read_source, select_trials

    sources = [read_source(name, arguments.tracking_uri, wanted) for name in names]
    left_out = []
    for column, values in only:
        kept = [(source, select_trials(source, column, values)) for source in sources]
        out = [source for source, part in kept if part is None]
        if len(out) == len(kept):
            there = dict.fromkeys(str(v) for s in out for v in s.results.frame[column])
            raise InputError(f"no trial with {column}={values}: there are {', '.join(there)}")
        left_out += [(f"left out {s.name}", f"no trial with {column}={values}") for s in out]
        sources = [part for _, part in kept if part]
    name = _folder(arguments.name, names, sources, whole=not only)
    results, told = join_sources(sources)
    told += left_out
    shelf = SourceStores(sources)
    question = (sources[0].facts or {}).get("question", "") if len(sources) == 1 else ""
    about = About(
        name, f"{COMMAND} {shlex.join(argv)}", question, shelf if shelf.stores else None, told
    )
    build_report(console, results.analyse(resolution), about)
    if shelf.stores:
        print_labelled(console, "\nbrowse", shelf.browse())
    return EXIT_COMPLETE if results.complete else EXIT_UNFINISHED


def _split(text: str) -> tuple[str, str]:
    """Reads a condition `COLUMN=LIST`."""
    column, sign, values = text.partition("=")
    if not (column and sign and values):
        raise InputError(f"bad --only '{text}': expected COLUMN=LIST, such as prior=gauss,maf")
    return column, values


def _wanted(arguments: Mapping[str, str | None]) -> dict[str, Any]:
    """Reads what is asked of the evaluation, by field."""
    from flowvae.trial import Evaluation, field_types

    given = {key: arguments[key.replace("-", "_")] for key in EVALUATION}
    kinds = {key: field_types(Evaluation)[setting.field] for key, setting in EVALUATION.items()}
    return {
        EVALUATION[key].field: read_flag(key, text, kinds[key])
        for key, text in given.items()
        if text is not None
    }


def _folder(
    name: str | None, names: Sequence[str], sources: Sequence[Source], *, whole: bool
) -> str:
    """Returns the name of the folder of the report, which must not be that of something else.

    Only the report of a whole experiment of this folder's store takes the place of its own.

    Raises:
        InputError: It is a source's own, or the results of another command lie there.
    """
    found = name or "+".join(folder_name(source.label) for source in sources)
    check_name(found, "--name" if name else "name of the report, for which --name gives another,")
    folder = RESULTS_FOLDER / found
    for source in sources:
        if source.path and source.path.resolve().parent == folder.resolve():
            raise InputError(f"the report would be written over {source.path}: give --name")
    made = folder / "command.txt"
    own = whole and len(names) == 1 and "://" not in names[0] and names[0] == found
    if not own and made.exists() and _reported(made.read_text()) != list(names):
        raise InputError(f"{folder} holds the results of another command: give another --name")
    return found


def _reported(command: str) -> list[str] | None:
    """Returns the names that an earlier report was of; nothing for another command."""
    if not command.startswith(COMMAND):
        return None
    words = shlex.split(command.removeprefix(COMMAND))
    return list(_parser().parse(words).names)


if __name__ == "__main__":
    sys.exit(main())
