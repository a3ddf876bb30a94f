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

__all__ = ["EACH", "OPTIONS", "File", "each_of", "experiments", "question", "read_file"]


EACH = [key for key, setting in SETTINGS.items() if setting.kind == "recipe"]
"""What a file may set for the trials of one prior."""
OPTIONS = [key for key, setting in SETTINGS.items() if setting.kind == "option"]
"""The data set's options that have flags of their own."""


def experiments() -> dict[str, Path]:
    """Returns the experiments' files by name, those of the current folder first."""
    folders = (Path("experiments"), Path(__file__).parents[2] / "experiments")
    found = [path for folder in folders for path in sorted(folder.glob("*.toml"))]
    return {path.stem: path for path in reversed(found)}


@dataclass(frozen=True)
class File:
    """An experiment's file, its values as text.

    Arguments:
        path: The file.
        question: What the experiment asks.
        settings: Its settings.
        each: Settings for the trials of one prior, by prior.
    """

    path: Path
    question: str
    settings: dict[str, str]
    each: dict[str, dict[str, str]]


def read_file(name: str) -> File:
    """Reads an experiment, of a name or a path.

    Raises:
        InputError: There is none of that name, or the file is not one.
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
    except ValueError as error:  # no TOML, no UTF-8, a number of too many digits, a bad path
        raise InputError(f"{path} is not TOML: {error}") from None
    question, each = content.pop("question", ""), content.pop("each", {})
    if not isinstance(question, str):
        raise InputError(f"{path}: expected a text for 'question'; got {question!r}")
    if not (isinstance(each, dict) and all(isinstance(table, dict) for table in each.values())):
        raise InputError(
            f"{path}: expected 'each' to hold a table a prior, such as [each.\"nsf[bins=16]\"]"
        )
    return File(
        path,
        question,
        _texts(content, str(path), ["question", "each", *SETTINGS]),
        {prior: _texts(table, each_of(path, prior), EACH) for prior, table in each.items()},
    )


def question(path: Path) -> str:
    """Returns what an experiment's file asks, or what is wrong with the file."""
    try:
        return read_file(str(path)).question
    except InputError as error:
        return str(error)


def each_of(path: Path, prior: str) -> str:
    """Names the table of one prior, for messages."""
    return f'{path} [each."{prior}"]'


def _texts(content: Mapping[str, Any], where: str, known: Sequence[str]) -> dict[str, str]:
    """Returns a table's values as a person would type them, its keys held against `known`."""
    settings = {}
    for key, value in content.items():
        if key not in known:
            raise unknown(f"setting in {where}", key, known)
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            raise InputError(f"{where}: expected a text, a number or a list for '{key}'")
        settings[key] = ",".join(map(write, items))
    return settings
