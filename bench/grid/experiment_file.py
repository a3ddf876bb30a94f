"""Reads experiment files, `experiments/NAME.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.grid.settings import SETTINGS
from flowvae.errors import InputError, unknown
from flowvae.specs.values import write

__all__ = [
    "DATASET_OPTIONS",
    "PRIOR_SETTINGS",
    "ExperimentFile",
    "experiments",
    "question",
    "read_file",
    "table_name",
]


PRIOR_SETTINGS = [key for key, setting in SETTINGS.items() if setting.kind == "recipe"]
"""Settings that a file may give the trials of one prior."""
DATASET_OPTIONS = [key for key, setting in SETTINGS.items() if setting.kind == "option"]
"""Options of the data set that have flags of their own."""


def experiments() -> dict[str, Path]:
    """Returns the experiments' files by name, of the current folder before installed ones."""
    folders = (Path(__file__).parents[2] / "experiments", Path("experiments"))
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


@dataclass(frozen=True)
class ExperimentFile:
    """The content of an experiment's file, its values as text.

    Arguments:
        path: The file.
        question: The question that the experiment answers.
        settings: The settings of all trials.
        each: The settings of the trials of one prior, by prior.
    """

    path: Path
    question: str
    settings: dict[str, str]
    each: dict[str, dict[str, str]]


def read_file(name: str) -> ExperimentFile:
    """Reads the file of an experiment, by its name or path.

    Raises:
        InputError: There is no experiment of that name, or the file is not an experiment.
    """
    known = experiments()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise unknown("experiment", name, known)
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the experiment {path}: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"{path} is not an experiment: it is nested too deeply") from None
    except ValueError as error:  # not TOML, not UTF-8, too long a number, a bad path
        raise InputError(f"{path} is not TOML: {error}") from None
    question, each = content.pop("question", ""), content.pop("each", {})
    if not isinstance(question, str):
        raise InputError(f"{path}: expected a text for 'question'; got {question!r}")
    if not (isinstance(each, dict) and all(isinstance(table, dict) for table in each.values())):
        raise InputError(
            f"{path}: expected 'each' to hold one table per prior, such as [each.\"nsf[bins=16]\"]"
        )
    return ExperimentFile(
        path,
        question,
        _texts(content, str(path), ["question", "each", *SETTINGS]),
        {
            prior: _texts(table, table_name(path, prior), PRIOR_SETTINGS)
            for prior, table in each.items()
        },
    )


def question(path: Path) -> str:
    """Returns the question of an experiment's file, or the error in the file."""
    try:
        return read_file(str(path)).question
    except InputError as error:
        return str(error)


def table_name(path: Path, prior: str) -> str:
    """Returns the name of the table of one prior, for messages."""
    return f'{path} [each."{prior}"]'


def _texts(content: Mapping[str, Any], where: str, known: Sequence[str]) -> dict[str, str]:
    """Returns a table's values as one would type them; its keys must be among `known`."""
    settings = {}
    for key, value in content.items():
        if key not in known:
            raise unknown(f"setting in {where}", key, known)
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            raise InputError(f"{where}: expected a text, a number or a list for '{key}'")
        settings[key] = ",".join(map(write, items))
    return settings
