"""From what a person typed to the trials that it means.

A setting comes from a flag, else from the experiment's file, else from the default; all three
hold the same text, and one reading serves them. An experiment is a TOML file of settings that
opens with the question it answers; without one, the file of the data set's name is taken.
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowvae.errors import InputError, unknown
from flowvae.options import Count, Natural, read, write
from flowvae.registry import Spec, split
from flowvae.trial import BASE, Evaluation, Trial, registries

__all__ = ["SETTINGS", "Grid", "Setting", "experiments", "make_grid", "stacks"]

Kind = Literal["axis", "field", "data", "evaluation"]


@dataclass(frozen=True)
class Setting:
    """One thing that a flag or an experiment's file sets.

    Arguments:
        field: The field of `Trial` or `Evaluation`, or the option of the data set.
        kind: An `axis` takes a list and multiplies the grid; a `field` of the trial takes one
            value; `data` is an option of the data set; `evaluation` a field of the evaluation.
        help: What it is.
    """

    field: str
    kind: Kind
    help: str


SETTINGS = {
    "priors": Setting("prior", "axis", "priors to compare, such as gauss,nsf[bins=16,bound=8]"),
    "latents": Setting("latent", "axis", "numbers of latent features, such as 2,8,16"),
    "seeds": Setting("seed", "axis", "seeds, such as 0:5 (0 to 4) or 0,7"),
    "nets": Setting("net", "axis", "encoder and decoder bodies, such as mlp[hidden=256x256]"),
    "training": Setting(
        "training", "axis", "joint, or post-hoc: the prior fitted to the frozen Gaussian VAE"
    ),
    "dataset": Setting("dataset", "field", "data set, such as digits or mnist"),
    "binarise": Setting("binarise", "data", "threshold (x >= 1/2) or stochastic"),
    "valid": Setting("valid", "data", "images held out of training for validation, 0 for none"),
    "epochs": Setting("epochs", "field", "passes over the training images"),
    "batch": Setting("batch", "field", "images a step"),
    "lr": Setting("lr", "field", "Adam's learning rate"),
    "precision": Setting("precision", "axis", "float32, tf32 or bf16 (matrix products), float64"),
    "select": Setting("select", "field", "weights to keep: last epoch, or best validation ELBO"),
    "clip": Setting("clip", "field", "largest norm of a gradient, or none"),
    "nll-samples": Setting("samples", "evaluation", "importance samples K an image"),
    "nll-precision": Setting("precision", "evaluation", "precision of the scoring, as above"),
}


@dataclass(frozen=True)
class Grid:
    """A comparison: its trials and how they are scored.

    Arguments:
        name: Names the MLflow experiment and the folder of results.
        question: What the experiment asks.
        source: The file it came from.
        trials: The trials, each once; all priors of a seed before the next seed.
        evaluation: How each is scored on the test images.
    """

    name: str
    question: str
    source: str
    trials: tuple[Trial, ...]
    evaluation: Evaluation

    def axis(self, field: str) -> list[Any]:
        """Returns the values that a field of the trials takes, in order."""
        return list(dict.fromkeys(getattr(trial, field) for trial in self.trials))


def experiments() -> dict[str, Path]:
    """Returns the experiments' files by name, those of the current folder first."""
    folders = (Path("experiments"), Path(__file__).parent.parent / "experiments")
    found = [path for folder in folders for path in sorted(folder.glob("*.toml"))]
    return {path.stem: path for path in reversed(found)}


def _read_file(name: str) -> tuple[Path, dict[str, str], str]:
    """Returns an experiment's path, its settings as text, and its question."""
    known = experiments()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise unknown("experiment", name, known)
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read the experiment {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    question = content.pop("question", "")
    if not isinstance(question, str):
        raise InputError(f"{path}: expected a text for 'question'; got {question!r}")
    settings = {}
    for key, value in content.items():
        if key not in SETTINGS:
            raise unknown(f"setting in {path}", key, ["question", *SETTINGS])
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            raise InputError(f"{path}: expected a text, a number or a list for '{key}'")
        settings[key] = ",".join(map(write, items))
    return path, settings, question


def _items(text: str, annotation: object) -> list[Any]:
    """Reads a comma-separated list; a whole number may be a half-open range `0:5`."""
    values: list[Any] = []
    for part in split(text):
        first, colon, last = part.partition(":")
        if colon and annotation in (Count, Natural):
            try:
                values += [read(str(n), annotation) for n in range(int(first or 0), int(last))]
            except ValueError as error:
                raise ValueError(f"{error} (in the range '{part}')") from None
        else:
            values.append(read(part, annotation))
    return values


def make_grid(
    flags: Mapping[str, str], experiment: str | None = None, name: str | None = None
) -> Grid:
    """Makes a grid from the flags that were given and an experiment.

    Arguments:
        flags: The text of each flag that was given, by setting.
        experiment: The experiment's name or file; by default that of the data set's name.
        name: The grid's name, by default the experiment's.

    Raises:
        InputError: A name or a value is not what it should be, or the grid is empty.
    """
    known = registries()
    if name is not None and (Path(name).name != name or name.startswith(".")):
        raise InputError(f"bad --name '{name}': expected a folder's name without '/', as my-study")
    base = experiment
    if base is None:
        base = Spec.parse(flags.get("dataset", "digits")).name
        known["dataset"][base]  # an unknown data set is refused as such
        if base not in experiments():
            raise InputError(f"the data set '{base}' has no experiment of its name: name one")
    path, settings, question = _read_file(base)
    origin = {key: f"{path}: {key}" for key in settings} | {key: f"--{key}" for key in flags}
    settings |= flags
    hints = typing.get_type_hints(Trial, include_extras=True)
    hints |= typing.get_type_hints(Evaluation, include_extras=True)

    chosen: dict[str, dict[str, Any]] = {kind: {} for kind in typing.get_args(Kind)}
    options: dict[str, str] = {}
    for key, text in settings.items():
        setting = SETTINGS[key]
        field, kind = setting.field, setting.kind
        try:
            if kind == "axis":
                chosen[kind][field] = _items(text, hints[field])
                if not chosen[kind][field]:
                    raise InputError(f"{origin[key]} '{text}' is empty: there is nothing to run")
            elif kind == "data":
                options[field] = text
            else:
                chosen[kind][field] = read(text, hints[field])
        except InputError:
            raise
        except ValueError as expected:
            raise InputError(
                f"bad value '{text}' for {origin[key]}: expected {expected}"
            ) from None
    for field, values in chosen["axis"].items():
        if field in known:  # refuse the first bad spec before any other
            chosen["axis"][field] = [known[field].resolve(text) for text in values]
    if "prior" not in chosen["axis"]:
        raise InputError(f"{path} names no priors: give --priors")
    dataset = Spec.parse(chosen["field"].pop("dataset", base))
    inline, typed = dict(dataset.options), {SETTINGS[key].field for key in flags} & options.keys()
    if "dataset" in flags and (twice := typed & inline.keys()):
        raise InputError(f"--dataset {dataset} and --{min(twice)} set the same option: give one")
    last = {field: text for field, text in options.items() if field in typed}
    dataset = Spec(dataset.name, tuple({**options, **inline, **last}.items()))
    shared = {**chosen["field"], "dataset": str(dataset)}
    points = [point for point in _product(chosen["axis"]) if not _is_base_again(point)]
    if not points:
        raise InputError(f"{origin['training']}: the prior '{BASE}' has nothing to fit post hoc")
    trials = [Trial(**shared, **point) for point in points]
    return Grid(
        name=name or path.stem,
        question=question,
        source=str(path),
        # A post-hoc trial brings the trial that it starts from.
        trials=tuple(dict.fromkeys(t for trial in trials for t in (trial.base, trial) if t)),
        evaluation=Evaluation(**chosen["evaluation"]),
    )


def _is_base_again(point: Mapping[str, Any]) -> bool:
    """Tells whether a point asks to fit anew what has nothing to fit: the base of the others."""
    return point.get("training") == "post-hoc" and point["prior"] == BASE


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    """Yields the points, the seed changing slowest: a comparison is whole, seed by seed."""
    points: list[dict[str, Any]] = [{}]
    for field in ("seed", "training", "precision", "net", "latent", "prior"):
        points = [
            {**point, field: value} for point in points for value in axes.get(field, [])
        ] or [*points]
    return points


def stacks(trials: Iterable[Trial], size: int) -> list[list[Trial]]:
    """Groups trials that differ in nothing but the seed, at most `size` in each stack."""
    from flowvae.stack import stackable

    groups: dict[Trial, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.but(seed=0), []).append(trial)
    if size == 1:
        return [[trial] for trial in trials]
    made = []
    for group in groups.values():
        most = size if stackable(group[0]) else 1
        made += [group[first : first + most] for first in range(0, len(group), most)]
    return made
