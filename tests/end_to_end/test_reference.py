"""The commands of `experiments/reference.sh`, taken down by a stand-in for `python`."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from bench import run
from bench.audit import __main__ as audit_command
from bench.grid.grid import Grid, make_grid
from bench.grid.settings import SETTINGS
from bench.studies.step_time import __main__ as step_time_command

SCRIPT = Path(__file__).parents[2] / "experiments" / "reference.sh"
PYTHON = """#!/bin/bash
[[ $1 == -c ]] && { echo id; exit; }
printf '%q ' "${@:2}" >>"$COMMANDS"
echo >>"$COMMANDS"
[[ $2 != bench.audit ]]
"""


def commands(folder: Path, *arguments: str, tiny: str, status: int) -> list[list[str]]:
    """Return the words of each `python -m` of the script; audits fail."""
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COMMANDS": str(folder / "commands"), "TINY": tiny}
    done = subprocess.run(
        ["bash", str(SCRIPT), "cuda", str(folder / "reference"), *arguments],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return [shlex.split(line) for line in (folder / "commands").read_text().splitlines()]


def grid_of(words: list[str]) -> Grid:
    arguments = run._parser().parse(words)
    given = {name: getattr(arguments, name.replace("-", "_")) for name in SETTINGS}
    given = {name: text for name, text in given.items() if text is not None}
    return make_grid(given, arguments.experiment, None)


@pytest.mark.parametrize("tiny", ["", "1"])
def test_its_commands_are_of_this_version(tiny: str, tmp_path: Path) -> None:
    typed = commands(tmp_path, tiny=tiny, status=1)
    assert len(typed) == 12, "a stage that fails does not stop the following ones"
    usage = Path(str(step_time_command.__file__)).read_text()
    grids = []
    for program, *words in typed:
        if program == "bench.run":
            grids.append(grid_of(words))
            assert grids[-1].evaluation.samples == (20 if tiny else 5000)
            assert len({trial.seed for trial in grids[-1].trials}) == (2 if tiny else 5)
        elif program == "bench.audit":
            assert audit_command._parser().parse(words).runs == ["id"]
        elif program == "bench.studies.step_time":
            assert all(f'"{word}"' in usage for word in words if word.startswith("--"))
        elif program == "pytest":
            assert all(Path(word).is_file() for word in words if word.endswith(".py"))
    if not tiny:
        fast, slow = (grid for grid in grids if grid.name == "priors")
        both = {trial.prior for trial in (*fast.trials, *slow.trials)}
        assert both == {trial.prior for trial in grid_of(["priors"]).trials}
        assert fast.evaluation == slow.evaluation


def test_named_stages_run_alone_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    assert [words[0] for words in commands(tmp_path, "gated", tiny="", status=0)] == ["bench.run"]
    assert len(commands(tmp_path, "gated", "gatd", tiny="", status=2)) == 2
