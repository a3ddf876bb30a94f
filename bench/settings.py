"""What flags and an experiment's file can set, and the reading of such a file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowvae.errors import InputError, unknown
from flowvae.options import write

__all__ = [
    "EACH",
    "OPTIONS",
    "SETTINGS",
    "File",
    "Kind",
    "Setting",
    "each_of",
    "experiments",
    "question",
    "read_file",
]

Kind = Literal["axis", "field", "data", "evaluation", "tuning"]


@dataclass(frozen=True)
class Setting:
    """One thing that a flag or an experiment's file sets.

    Arguments:
        field: The field of `Trial` or `Evaluation`, or the option of the data set.
        kind: An `axis` takes a list and multiplies the grid; a `field` of the trial takes one
            value; `data` is an option of the data set; `evaluation` a field of the evaluation;
            `tuning` takes a list of values for that field in the tuning.
        help: What it is.
    """

    field: str
    kind: Kind
    help: str

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return self.kind in ("axis", "tuning")


SETTINGS = {
    "priors": Setting("prior", "axis", "priors to compare, such as gauss,nsf[bins=16,bound=8]"),
    "latents": Setting("latent", "axis", "numbers of latent features, such as 2,8,16"),
    "seeds": Setting("seed", "axis", "seeds, such as 0:5 (0 to 4) or 0,7"),
    "nets": Setting("net", "axis", "encoder and decoder bodies, such as mlp[hidden=256x256]"),
    "training": Setting(
        "training", "axis", "joint, or post-hoc: the prior fitted to the frozen Gaussian VAE"
    ),
    "dataset": Setting("dataset", "field", "data set, such as digits or mnist"),
    "binarise": Setting(
        "binarise", "data", "threshold (x >= 1/2), stochastic, or fixed where published so"
    ),
    "valid": Setting(
        "valid", "data", "images held out for validation, 0 for none; some sets publish theirs"
    ),
    "epochs": Setting("epochs", "field", "passes over the training images"),
    "batch": Setting("batch", "field", "images a step"),
    "lr": Setting("lr", "field", "Adam's learning rate"),
    "prior-lr": Setting("prior_lr", "field", "the prior's own learning rate, or none"),
    "schedule": Setting("schedule", "field", "learning rate: constant, or cosine (falls to 0)"),
    "warmup": Setting("warmup", "field", "epochs in which the rate's weight rises to 1"),
    "patience": Setting("patience", "field", "epochs without a better one that end it, or none"),
    "precision": Setting("precision", "axis", "float32, tf32 or bf16 (matrix products), float64"),
    "select": Setting("select", "field", "weights to keep: last epoch, or best validation ELBO"),
    "clip": Setting("clip", "field", "largest norm of a gradient, or none"),
    "tune-lr": Setting("lr", "tuning", "learning rates to choose from, prior by prior, first"),
    "tune-seeds": Setting("seed", "tuning", "seeds of that choice, no test seeds (1000:1001)"),
    "nll-samples": Setting("samples", "evaluation", "importance samples K an image"),
    "nll-images": Setting("images", "evaluation", "first test images that are scored, or none"),
    "nll-precision": Setting("precision", "evaluation", "precision of the scoring, as above"),
}
EACH = [key for key, setting in SETTINGS.items() if setting.kind == "field" and key != "dataset"]
"""What a file may set for the trials of one prior."""
OPTIONS = [key for key, setting in SETTINGS.items() if setting.kind == "data"]
"""The data set's options that have flags of their own."""


def experiments() -> dict[str, Path]:
    """Returns the experiments' files by name, those of the current folder first."""
    folders = (Path("experiments"), Path(__file__).parent.parent / "experiments")
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
