"""Reports experiments of stores and tables, one or several: `python -m bench.report NAME...`.

The report of one experiment is that of the end of its grid; nothing is run. Several names, of
experiments, of experiments of other stores (`sqlite:///other.db#NAME`) or of tables of trials
(`results/tutorial`), are joined and compared as one grid: trials are paired by seed and image
where both are known. See `bench.results.sources` and `bench.results.join`.
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
        epilog="Scores of different data, binarisations or estimators cannot be compared and are "
        "refused; all other differences are listed. Exit status: 0 if all trials are complete, 1 "
        "if a trial failed or diverged, 2 for a wrong command.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME",
        help="an experiment of the store, STORE#EXPERIMENT of another store, or the folder of a "
        "trials.csv, or a .csv; a path holds a / or ends in .csv",
    )  # fmt: skip
    add = parser.add_argument
    add("--only", metavar="COLUMN=LIST", action="append",
        help="only trials with these values of a column, such as prior=gauss,maf")  # fmt: skip
    for key, setting in EVALUATION.items():
        meaning = setting.help.removesuffix(", as above")
        add(f"--{key}", metavar="X", help=f"if trials were scored several times: {meaning}")
    add("--name", help="the folder below results/local (default: the names, joined by +)")
    add("--tracking-uri", metavar="URI", help="default: MLFLOW_TRACKING_URI, or this folder's")
    add("--resolution", metavar="NATS", default="0.1",
        help="half-width of an interval, for the number of seeds (default: 0.1)")  # fmt: skip
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(_run, argv, resumes=False)


def _run(argv: Sequence[str]) -> int:
    arguments, console = _parser().parse(argv), make_console()
    resolution = read_flag("resolution", arguments.resolution, Positive, "nats")
    names = arguments.names
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise InputError(f"'{duplicates[0]}' is named twice: name each source once")
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
        parts = [(source, select_trials(source, column, values)) for source in sources]
        empty = [source for source, part in parts if part is None]
        if len(empty) == len(parts):
            known = dict.fromkeys(str(v) for s in empty for v in s.results.frame[column])
            raise InputError(
                f"no trial has {column}={values}: the values of {column} are {', '.join(known)}"
            )
        left_out += [(f"left out {s.name}", f"no trial has {column}={values}") for s in empty]
        sources = [part for _, part in parts if part]
    name = _folder(arguments.name, names, sources, whole=not only)
    results, origins = join_sources(sources)
    origins += left_out
    stores = SourceStores(sources)
    question = (sources[0].facts or {}).get("question", "") if len(sources) == 1 else ""
    about = About(
        name, f"{COMMAND} {shlex.join(argv)}", question, stores if stores.stores else None, origins
    )
    build_report(console, results.analyse(resolution), about)
    if stores.stores:
        print_labelled(console, "\nbrowse", stores.browse())
    return EXIT_COMPLETE if results.complete else EXIT_UNFINISHED


def _split(text: str) -> tuple[str, str]:
    """Reads a condition `COLUMN=LIST`."""
    column, sign, values = text.partition("=")
    if not (column and sign and values):
        raise InputError(f"bad --only '{text}': expected COLUMN=LIST, such as prior=gauss,maf")
    return column, values


def _wanted(arguments: Mapping[str, str | None]) -> dict[str, Any]:
    """Reads the wanted evaluation, by field."""
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
    """Returns the name of the folder of the report, which must hold nothing else.

    Only the report of a whole experiment of this folder's store replaces that of its grid.

    Raises:
        InputError: The folder holds a source, or the results of another command.
    """
    label = name or "+".join(folder_name(source.label) for source in sources)
    check_name(label, "--name" if name else "name of the report, for which --name gives another,")
    folder = RESULTS_FOLDER / label
    for source in sources:
        if source.path and source.path.resolve().parent == folder.resolve():
            raise InputError(f"the report would be written over {source.path}: give --name")
    earlier = folder / "command.txt"
    own = whole and len(names) == 1 and "://" not in names[0] and names[0] == label
    if not own and earlier.exists() and _reported(earlier.read_text()) != list(names):
        raise InputError(f"{folder} holds the results of another command: give another --name")
    return label


def _reported(command: str) -> list[str] | None:
    """Returns the names in the command of an earlier report; nothing for another command."""
    if not command.startswith(COMMAND):
        return None
    words = shlex.split(command.removeprefix(COMMAND))
    return list(_parser().parse(words).names)


if __name__ == "__main__":
    sys.exit(main())
