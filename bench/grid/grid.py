"""Makes the trials of a grid from flags and an experiment's file.

A setting comes from a flag, else from the experiment's file, else from the default; all are text,
read by the same rules. An experiment is a TOML file of settings that begins with the question it
answers. If none is named, the file named as the data set is used, or else that of MNIST. A table
`[each."PRIOR"]` of the file holds settings for the trials of one prior.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.grid.experiment_file import (
    DATASET_OPTIONS,
    ExperimentFile,
    experiments,
    read_file,
    table_name,
)
from bench.grid.settings import SETTINGS, Kind, Setting
from flowvae.errors import InputError, unknown
from flowvae.specs.registry import Spec, split
from flowvae.specs.values import Count, Natural, read
from flowvae.trial import BASE, Evaluation, Trial, field_info, field_types, registries

__all__ = ["Grid", "check_name", "folder_name", "make_grid"]


FALLBACK_EXPERIMENT = "mnist"
"""The experiment whose recipe serves data sets without an experiment of their own."""
MAX_TRIALS = 10_000
"""The most values of an axis, and the most trials of a grid: more are a typing error."""
MAX_NAME_BYTES = 200
"""The longest name of a grid: file systems allow 255 bytes."""
TUNE_SEEDS = (1000,)
"""The default seeds of the tuning."""


@dataclass(frozen=True)
class Grid:
    """A comparison: its trials and how they are scored.

    Arguments:
        name: The name of the MLflow experiment and of the folder of results.
        question: The question that the experiment answers.
        source: The experiment's file.
        trials: The trials, each once; all priors of a seed before the next seed.
        evaluation: How each trial is scored on the test images.
        rates: The learning rates, increasing, of which a tuning chooses one for each prior;
            empty without a tuning. See `bench.grid.tuning`.
        tune_seeds: The seeds of the tuning.
    """

    name: str
    question: str
    source: str
    trials: tuple[Trial, ...]
    evaluation: Evaluation
    rates: tuple[float, ...] = ()
    tune_seeds: tuple[int, ...] = TUNE_SEEDS

    def axis(self, field: str) -> list[Any]:
        """Returns the values that a field of the trials takes, in order."""
        return list(dict.fromkeys(getattr(trial, field) for trial in self.trials))


def _read_list(text: str, annotation: object) -> list[Any]:
    """Reads a comma-separated list; a whole number may be a half-open range `0:5`."""
    values: list[Any] = []
    for part in split(text):
        first, colon, last = part.partition(":")
        if colon and annotation in (Count, Natural):
            try:
                numbers = range(read(first or "0", Natural), read(last, Natural))
                values += [read(str(n), annotation) for n in numbers[: MAX_TRIALS + 1]]
            except ValueError as error:
                raise ValueError(f"{error} (in the range '{part}')") from None
        else:
            values.append(read(part, annotation))
        if len(values) > MAX_TRIALS:
            raise ValueError(f"at most {MAX_TRIALS} values")
    return values


@dataclass(frozen=True)
class _Settings:
    """The text of every setting, of the flags or the file, and its origin."""

    file: ExperimentFile
    flags: Mapping[str, str]

    @property
    def texts(self) -> dict[str, str]:
        return {**self.file.settings, **self.flags}

    def origin(self, key: str) -> str:
        """Returns the origin of a setting, for messages: a flag, or a key of the file."""
        return f"--{key}" if key in self.flags else f"{self.file.path}: {key}"

    def of_kind(self, kind: Kind) -> dict[str, Any]:
        """Returns the values, or lists of values, of the settings of a kind, by field."""
        return {
            SETTINGS[key].field: _read(SETTINGS[key], text, self.origin(key))
            for key, text in self.texts.items()
            if SETTINGS[key].kind == kind
        }


def _read(setting: Setting, text: str, origin: str) -> Any:  # noqa: ANN401
    """Reads the text of a setting.

    Raises:
        InputError: The text is not a value of the setting; the message names the `origin`.
    """
    if setting.kind == "option":
        return text  # the data set reads its own options
    description = Evaluation if setting.kind == "evaluation" else Trial
    annotation = field_types(description)[setting.field]
    try:
        value = (_read_list if setting.is_list else read)(text, annotation)
    except InputError:
        raise
    except ValueError as expected:
        raise InputError(f"bad value '{text}' for {origin}: expected {expected}") from None
    if value == []:
        raise InputError(f"{origin} '{text}' is empty: there is nothing to run")
    return value


def make_grid(
    flags: Mapping[str, str], experiment: str | None = None, name: str | None = None
) -> Grid:
    """Makes a grid from flags and an experiment.

    Arguments:
        flags: The text of each given flag, by setting.
        experiment: The experiment's name or file; by default the one named as the data set, or
            MNIST's.
        name: The grid's name; by default the experiment's, or the data set's if none is named.

    Raises:
        InputError: A name or a value is not what it should be, or the grid is empty.
    """
    if name is not None:
        check_name(name, "--name")
    file, default = _chosen_file(flags, experiment)
    if name is None:
        name = file.path.stem if experiment else folder_name(default)
        check_name(name, f"name of {file.path}")
    settings = _Settings(file, flags)
    axes, shared = settings.of_kind("axis"), settings.of_kind("recipe")
    evaluation = Evaluation(**settings.of_kind("evaluation"))
    for key in ("priors", "nets"):  # report the first bad spec before other errors
        field = SETTINGS[key].field
        if field in axes:
            axes[field] = [_resolved(field, text, settings.origin(key)) for text in axes[field]]
    if "prior" not in axes:
        raise InputError(f"{file.path} names no priors: give some with --priors")
    shared["dataset"] = _dataset(settings, settings.texts.get("dataset", default))
    each = _settings_by_prior(settings, post_hoc="post-hoc" in axes.get("training", ()))
    _check_size(settings, axes)
    points = [point for point in _product(axes) if not _is_base_again(point)]
    if not points:
        raise InputError(f"{settings.origin('training')}: the prior '{BASE}' has nothing to fit")
    try:
        trials = [Trial(**{**shared, **each.get(point["prior"], {}), **point}) for point in points]
    except InputError as error:  # settings that exclude one another
        raise InputError(f"{error} (the recipe is that of {file.path})") from None
    return Grid(
        name=name,
        question=file.question,
        source=str(file.path),
        # A post-hoc trial comes with the trial that it starts from.
        trials=tuple(dict.fromkeys(t for trial in trials for t in (trial.base, trial) if t)),
        evaluation=evaluation,
        **_tuning(settings, trials),
    )


def _chosen_file(flags: Mapping[str, str], experiment: str | None) -> tuple[ExperimentFile, str]:
    """Returns the experiment's file, and the data set to use if the file names none."""
    if experiment is not None:
        return read_file(experiment), "digits"
    dataset = Spec.parse(flags.get("dataset", "digits")).name
    registries()["dataset"][dataset]  # raises for an unknown data set
    return read_file(dataset if dataset in experiments() else FALLBACK_EXPERIMENT), dataset


def check_name(name: str, what: str) -> None:
    """Checks that a name is that of a folder among the results.

    Raises:
        InputError: It is not; the message says of `what` it is the name.
    """
    plain = name.isprintable() and Path(name).name == name and not name.startswith(".")
    if not (name and plain and len(name.encode()) <= MAX_NAME_BYTES):
        raise InputError(
            f"bad {what} '{name}': expected a folder's name without '/', such as my-study, of at "
            f"most {MAX_NAME_BYTES} bytes"
        )


def _check_size(settings: _Settings, axes: Mapping[str, Sequence[Any]]) -> None:
    """Checks that a grid has no more than `MAX_TRIALS` trials."""
    count = math.prod(map(len, axes.values()))
    if count > MAX_TRIALS:
        lists = [key for key in settings.texts if SETTINGS[key].kind == "axis"]
        sizes = ", ".join(f"{settings.origin(k)} {len(axes[SETTINGS[k].field])}" for k in lists)
        raise InputError(
            f"{count} trials ({sizes}): expected at most {MAX_TRIALS}; give shorter lists"
        )


def _resolved(field: str, text: str, origin: str) -> str:
    """Returns a spec with all its options.

    Raises:
        InputError: The spec is bad; the message names the `origin`.
    """
    try:
        return registries()[field].resolve(text)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def folder_name(name: str) -> str:
    """Returns a folder's name for a data set, whose name may be `module:function`.

    Example:
        >>> folder_name("my.module:cats")
        'my.module-cats'
    """
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".") or "data"


def _dataset(settings: _Settings, text: str) -> str:
    """Merges a data set's options: flags override brackets, brackets override the file."""
    origins = [
        settings.origin(key) for key in ("dataset", *DATASET_OPTIONS) if key in settings.texts
    ]
    where = ", ".join(origins) or str(settings.file.path)
    try:
        dataset = Spec.parse(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    options = settings.of_kind("option")
    inline = dict(dataset.options)
    typed = {SETTINGS[key].field for key in settings.flags} & options.keys()
    if "dataset" in settings.flags and (twice := typed & inline.keys()):
        raise InputError(f"--dataset {dataset} and --{min(twice)} set the same option: give one")
    last = {field: value for field, value in options.items() if field in typed}
    joined = Spec(dataset.name, tuple({**options, **inline, **last}.items()))
    return _resolved("dataset", str(joined), where)


def _settings_by_prior(settings: _Settings, *, post_hoc: bool) -> dict[str, dict[str, Any]]:
    """Returns the file's settings for single priors, by resolved spec; flags override them.

    Raises:
        InputError: A prior is not one of the file's or has two tables, or a value is bad.
    """
    file = settings.file
    if file.each and post_hoc:
        raise InputError(
            f"{file.path}: [each] and post-hoc training exclude one another: a prior fitted post "
            "hoc shares the recipe of the model that it starts from"
        )
    own = [
        _resolved("prior", text, f"{file.path}: priors")
        for text in split(file.settings.get("priors", ""))
    ]
    recipes: dict[str, dict[str, Any]] = {}
    for text, table in file.each.items():
        where = table_name(file.path, text)
        prior = _resolved("prior", text, where)
        if own and prior not in own:
            raise unknown(f"prior in {where}", text, map(registries()["prior"].label, own))
        if prior in recipes:
            raise InputError(f"{where}: this prior has two tables: keep one")
        recipes[prior] = {
            SETTINGS[key].field: _read(SETTINGS[key], value, f"{where} {key}")
            for key, value in table.items()
            if key not in settings.flags
        }
    return recipes


def _tuning(settings: _Settings, trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns the fields of a grid that concern a tuning; none for a grid without one.

    Raises:
        InputError: Two settings exclude one another, or there are no validation images.
    """
    texts = settings.texts
    if "tune-lr" not in texts or ("lr" in settings.flags and "tune-lr" not in settings.flags):
        if "tune-seeds" in settings.flags:
            raise InputError("--tune-seeds without --tune-lr: nothing is tuned; give both or none")
        return {}
    wanted = settings.of_kind("tuning")
    rates, origin = sorted(set(wanted["lr"])), settings.origin("tune-lr")
    if len(rates) < 2:
        raise InputError(f"{origin} '{texts['tune-lr']}': expected two learning rates or more")
    here = settings.flags if "tune-lr" in settings.flags else settings.file.settings
    fixed = [settings.origin("lr")] if "lr" in here else []
    fixed += [
        f"{table_name(settings.file.path, p)} lr"
        for p, t in settings.file.each.items()
        if "lr" in t
    ]
    if fixed:
        raise InputError(f"{fixed[0]} sets a learning rate that {origin} would choose: give one")
    if registries()["dataset"].options(trials[0].dataset).get("valid") == 0:
        raise InputError(
            f"{origin} needs validation images to choose by, and there are none (valid is 0): "
            "hold some out with --valid"
        )
    seeds = dict.fromkeys(wanted.get("seed", TUNE_SEEDS))
    if both := sorted(seeds.keys() & {trial.seed for trial in trials}):
        raise InputError(
            f"seed {both[0]} is among --seeds and --tune-seeds: learning rates are chosen at "
            "seeds of their own, such as 1000:1003"
        )
    return {"rates": tuple(rates), "tune_seeds": tuple(seeds)}


def _is_base_again(point: Mapping[str, Any]) -> bool:
    """Whether a point asks for the base of post-hoc trials, whose prior has nothing to fit."""
    return point.get("training") == "post-hoc" and point["prior"] == BASE


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    """Yields the points, the seed changing slowest, so that each seed compares all priors."""
    points: list[dict[str, Any]] = [{}]
    names = [name for name, info in field_info(Trial).items() if info.role == "axis"]
    for field in ("seed", *(name for name in reversed(names) if name != "seed")):
        points = [
            {**point, field: value} for point in points for value in axes.get(field, [])
        ] or [*points]
    return points
