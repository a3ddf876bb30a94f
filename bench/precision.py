"""What a lower precision changes: `python -m bench.precision digits --seeds 0:20`.

Every trial is trained in each precision and scored in float32; the models trained in float32 are
scored in each precision too. A difference is taken on the same image at the same seed, so that
nothing but the precision differs: initial weights, minibatches, noise and test draws are the same.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from flowvae.errors import InputError
from flowvae.options import Positive, read
from flowvae.registry import split
from flowvae.trial import Precision

from .command import COMPLETE, RESULTS, UNFINISHED, Parser, flag, guarded, terminal

__all__ = ["main"]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.precision",
        description="Measures what a lower precision changes in training and in scoring.",
        epilog="All other arguments are those of `python -m bench.run`, but --list.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--lower", metavar="LIST", default="bf16", help="default: bf16; tf32 needs a CUDA device"
    )
    parser.add_argument("--name", default="precision", help="default: precision")
    parser.add_argument(
        "--resolution", metavar="NATS", default="0.1",
        help="half-width of an interval to count seeds for (default: 0.1)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="run also what is complete")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    return guarded(_run, argv)


def _lower(text: str) -> list[str]:
    """Reads the precisions that are compared to the exact one, each once."""
    try:
        found = [read(part, Precision) for part in split(text)]
    except ValueError as expected:
        raise InputError(f"bad --lower '{text}': expected {expected}, or a list of them") from None
    if not found:
        raise InputError(f"--lower '{text}' is empty: there is nothing to compare")
    return list(dict.fromkeys(found))


def _run(argv: Sequence[str]) -> int:
    mine, rest = _parser().parse_known_args(argv)
    if "--list" in rest:
        raise InputError("--list is for python -m bench.run")

    from .look import write
    from .precisions import EXACT, changes, precision_changes, table
    from .run import perform

    wanted, lower = flag("resolution", mine.resolution, Positive, "nats"), _lower(mine.lower)
    command, console = f"python -m bench.precision {shlex.join(argv)}".strip(), terminal()
    rest += [f"--name={mine.name}"]
    first = ["--precision", ",".join([EXACT, *lower]), "--nll-precision", EXACT]
    trained = perform([*rest, *first, *["--force"] * mine.force], console, command)
    if trained is None:  # a dry run
        return COMPLETE
    scored = {}
    for precision in lower:
        again = [*rest, "--precision", EXACT, "--nll-precision", precision]
        if (results := perform(again, console, command)) is not None:
            scored[precision] = results
    found = changes(trained, scored, resolution=wanted)
    if not found["seeds"].any():
        return UNFINISHED  # each trial has said why
    folder = RESULTS / mine.name
    folder.mkdir(parents=True, exist_ok=True)
    console.print(table(found))
    figure = precision_changes(found, trained.frame)
    for path in write(figure, folder / "precision_changes", found, 200):
        console.print(str(path), markup=False, soft_wrap=True)
    whole = all(each.complete for each in (trained, *scored.values()))
    return COMPLETE if whole else UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
