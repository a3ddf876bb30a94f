"""Writes a batch script for SLURM: `python -m bench.slurm ... -- ARGUMENTS OF bench.run`.

The script starts a Dask scheduler and the grid's command on the first node, and by `srun` a worker
for each GPU, or core, of the allocation. SLURM gives each task its own GPU. Two minutes before the
time is over SLURM warns the script, which passes it on: the grid saves its state, and the same
script, submitted again, goes on there.

References:
    SLURM's manual, "sbatch", https://slurm.schedmd.com/sbatch.html
    Dask's manual, "High Performance Computers", https://docs.dask.org/en/stable/deploying-hpc.html
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence

from flowvae.errors import InputError
from flowvae.options import Count

from .command import COMPLETE, Parser, flag, guarded

__all__ = ["main", "script"]

WARNED = 120
"""How long before its end the script is warned, s."""
GPU_FLAGS = "--resources GPU=1"
TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks={workers}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --signal=B:USR1@{warned}
#SBATCH --open-mode=append
{more}
# {command}
set -uo pipefail
{setup}export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-{cpus}}}
file=$PWD/scheduler-${{SLURM_JOB_ID:?}}.json  # in a folder that all nodes see

dask scheduler --port 0 --scheduler-file "$file" --no-dashboard &
scheduler=$!
trap 'kill $scheduler; rm -f "$file"' EXIT
until [ -s "$file" ]; do
    kill -0 $scheduler || exit 1
    sleep 1
done
srun --cpus-per-task={cpus} dask worker --scheduler-file "$file" --nthreads 1 \\
    --memory-limit 0 --no-dashboard --local-directory "${{TMPDIR:-/tmp}}" \\
    --death-timeout 120 {resources}&

{run} --executor dask --workers {workers} --scheduler-file "$file" &
run=$!
trap 'kill -USR1 $run' USR1
trap 'kill -TERM $run' TERM
wait $run; status=$?
while kill -0 $run 2>/dev/null; do  # a signal ended the wait, not the grid
    wait $run; status=$?
done
exit $status
"""


def script(
    arguments: Sequence[str],
    *,
    workers: int,
    nodes: int = 1,
    cpus: int = 1,
    time: str = "24:00:00",
    gpus: bool = True,
    directives: Sequence[str] = (),
    name: str = "flowvae",
    command: str = "",
    setup: Sequence[str] = (),
) -> str:
    """Returns the text of a batch script.

    Arguments:
        arguments: The arguments of `bench.run`.
        workers: How many workers there are, in all.
        nodes: On how many nodes.
        cpus: The cores of each worker.
        time: How long it may take, as SLURM reads it.
        gpus: Whether each worker has a GPU.
        directives: Further options of `sbatch`, such as `--partition=gpu`.
        name: The batch job's name.
        command: The command that wrote it, for the reader.
        setup: Lines of shell that come first, such as `source venv/bin/activate`.
    """
    more = ["--gpus-per-task=1"] if gpus else []
    return TEMPLATE.format(
        name=name,
        nodes=nodes,
        workers=workers,
        cpus=cpus,
        time=time,
        warned=WARNED,
        more="\n".join(f"#SBATCH {each}" for each in (*more, *directives)),
        command=command,
        setup="".join(f"{line}\n" for line in setup),
        resources=f"{GPU_FLAGS} " if gpus else "",
        run=f"python -m bench.run {shlex.join(arguments)}".strip(),
    )


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.slurm",
        description="Writes a batch script for SLURM that runs a grid on a worker for each GPU.",
        epilog="The arguments of bench.run follow after --; --tracking-uri among them must be the "
        "address of an `mlflow server`, unless all is on one node.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workers", metavar="N", required=True, help="workers in all, one a GPU")
    add("--nodes", metavar="N", default="1", help="nodes (default: 1)")
    add("--cpus-per-task", metavar="N", default="4", help="cores of each worker (default: 4)")
    add("--time", metavar="T", default="24:00:00", help="time limit (default: 24:00:00)")
    add("--cpu", action="store_true", help="workers compute on CPUs")
    add("--job-name", metavar="NAME", default="flowvae", help="(default: flowvae)")
    add(
        "--sbatch", metavar="OPTION", action="append",
        help="a further option of sbatch, as --sbatch=--partition=gpu; may be given again",
    )  # fmt: skip
    add(
        "--setup", metavar="LINE", action="append",
        help="a line of shell that comes first, as 'source venv/bin/activate'; may be given again",
    )  # fmt: skip
    parser.take_grid()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return guarded(_run, argv, resumes=False)


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse(argv)
    grid = arguments.grid[1:] if arguments.grid[:1] == ["--"] else arguments.grid
    for given in ("--executor", "--workers", "--scheduler", "--scheduler-file"):
        if any(part.partition("=")[0] == given for part in grid):
            raise InputError(f"the script gives {given} itself: leave it out")
    options = arguments.sbatch or []
    one_line = [arguments.time, arguments.job_name, *options, *(arguments.setup or ())]
    if not all(text.isprintable() and text for text in one_line):
        raise InputError("an option of sbatch, or of --setup, is one line")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", arguments.time):
        raise InputError(f"bad --time '{arguments.time}': expected such as 30, 04:00:00 or 2-12")
    for option in options:
        if not option.startswith("-"):
            raise InputError(f"bad --sbatch '{option}': expected such as --partition=gpu")
    nodes = flag("nodes", arguments.nodes, Count)
    if nodes > 1 and not _address(grid).startswith("http"):
        raise InputError(
            "workers of several nodes need an `mlflow server`: give its address among the grid's "
            "arguments, as --tracking-uri http://10.0.0.1:5000, or in MLFLOW_TRACKING_URI"
        )
    text = script(
        grid,
        workers=flag("workers", arguments.workers, Count),
        nodes=nodes,
        setup=arguments.setup or (),
        cpus=flag("cpus-per-task", arguments.cpus_per_task, Count),
        time=arguments.time,
        gpus=not arguments.cpu,
        directives=options,
        name=arguments.job_name,
        command=f"python -m bench.slurm {shlex.join(argv)}",
    )
    print(text, end="")
    return COMPLETE


def _address(grid: Sequence[str]) -> str:
    """Returns the store's address that a grid's arguments give, or the environment."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    for part, following in zip(grid, [*grid[1:], ""], strict=True):
        name, equals, value = part.partition("=")
        if name == "--tracking-uri":
            given = value if equals else following
    return given


if __name__ == "__main__":
    sys.exit(main())
