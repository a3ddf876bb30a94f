"""From what a person typed to the trials that it means.

A setting comes from a flag, else from the experiment's file, else from the default; all three
hold the same text, and one reading serves them. An experiment is a TOML file of settings that
opens with the question it answers; without one, the file of the data set's name is taken, or else
that of MNIST. A table `[each."PRIOR"]` of the file holds settings for the trials of one prior.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.grid.experiment_file import OPTIONS, File, each_of, experiments, read_file
from bench.grid.settings import SETTINGS, Kind, Setting
from flowvae.errors import InputError, unknown
from flowvae.specs.registry import Spec, split
from flowvae.specs.values import Count, Natural, read
from flowvae.trial import BASE, Evaluation, Trial, field_info, field_types, registries

__all__ = ["Grid", "check_name", "folder_name", "make_grid"]


FALLBACK = "mnist"
"""The experiment whose recipe is taken for a data set without one of its own."""
MOST = 10_000
"""The most values of an axis, and the most trials of a grid: more are a slip of the finger."""
LONGEST_NAME = 200
"""Bytes of a grid's name: file systems take 255."""
TUNE_SEEDS = (1000,)
"""Seeds of the tuning unless others are asked for."""


@dataclass(frozen=True)
class Grid:
    """A comparison: its trials and how they are scored.

    Arguments:
        name: Names the MLflow experiment and the folder of results.
        question: What the experiment asks.
        source: The file it came from.
        trials: The trials, each once; all priors of a seed before the next seed.
        evaluation: How each is scored on the test images.
        rates: The learning rates to choose from for each prior, rising, before the trials are
            run with the one chosen; none where nothing is tuned. See `bench.grid.tuning`.
        tune_seeds: The seeds at which they are tried.
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


def _items(text: str, annotation: object) -> list[Any]:
    """Reads a comma-separated list; a whole number may be a half-open range `0:5`."""
    values: list[Any] = []
    for part in split(text):
        first, colon, last = part.partition(":")
        if colon and annotation in (Count, Natural):
            try:
                found = range(read(first or "0", Natural), read(last, Natural))
                values += [read(str(n), annotation) for n in found[: MOST + 1]]
            except ValueError as error:
                raise ValueError(f"{error} (in the range '{part}')") from None
        else:
            values.append(read(part, annotation))
        if len(values) > MOST:
            raise ValueError(f"at most {MOST} values")
    return values


@dataclass(frozen=True)
class _Asked:
    """What a file and the flags ask for: the text of every setting, and where it was set."""

    file: File
    flags: Mapping[str, str]

    @property
    def settings(self) -> dict[str, str]:
        return {**self.file.settings, **self.flags}

    def origin(self, key: str) -> str:
        """Returns where a setting was set, for messages."""
        return f"--{key}" if key in self.flags else f"{self.file.path}: {key}"

    def of_kind(self, kind: Kind) -> dict[str, Any]:
        """Reads the settings of a kind, by field: lists, or single values."""
        found = {}
        for key, text in self.settings.items():
            setting = SETTINGS[key]
            if setting.kind == kind:
                found[setting.field] = _read(setting, text, self.origin(key))
        return found


def _read(setting: Setting, text: str, origin: str) -> Any:  # noqa: ANN401
    """Reads the text of a setting.

    Raises:
        InputError: It is not what it should be; the message names `origin`.
    """
    if setting.kind == "option":
        return text  # the data set reads its own options
    description = Evaluation if setting.kind == "evaluation" else Trial
    annotation = field_types(description)[setting.field]
    try:
        value = (_items if setting.is_list else read)(text, annotation)
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
    """Makes a grid from the flags that were given and an experiment.

    Arguments:
        flags: The text of each flag that was given, by setting.
        experiment: The experiment's name or file; by default that of the data set's name, or
            MNIST's where it has none.
        name: The grid's name, by default the experiment's, or the data set's where none is named.

    Raises:
        InputError: A name or a value is not what it should be, or the grid is empty.
    """
    if name is not None:
        check_name(name, "--name")
    file, default = _chosen_file(flags, experiment)
    if name is None:
        name = file.path.stem if experiment else folder_name(default)
        check_name(name, f"name of {file.path}")
    asked = _Asked(file, flags)
    axes, shared = asked.of_kind("axis"), asked.of_kind("recipe")
    evaluation = Evaluation(**asked.of_kind("evaluation"))
    for key in ("priors", "nets"):  # refuse the first bad spec before any other
        field = SETTINGS[key].field
        if field in axes:
            axes[field] = [_resolved(field, text, asked.origin(key)) for text in axes[field]]
    if "prior" not in axes:
        raise InputError(f"{file.path} names no priors: give --priors")
    shared["dataset"] = _dataset(asked, asked.settings.get("dataset", default))
    each = _each(asked, post_hoc="post-hoc" in axes.get("training", ()))
    _check_size(asked, axes)
    points = [point for point in _product(axes) if not _is_base_again(point)]
    if not points:
        raise InputError(f"{asked.origin('training')}: the prior '{BASE}' has nothing to fit")
    try:
        trials = [Trial(**{**shared, **each.get(point["prior"], {}), **point}) for point in points]
    except InputError as error:  # settings that do not go together
        raise InputError(f"{error} (the recipe is that of {file.path})") from None
    return Grid(
        name=name,
        question=file.question,
        source=str(file.path),
        # A post-hoc trial brings the trial that it starts from.
        trials=tuple(dict.fromkeys(t for trial in trials for t in (trial.base, trial) if t)),
        evaluation=evaluation,
        **_tuning(asked, trials),
    )


def _chosen_file(flags: Mapping[str, str], experiment: str | None) -> tuple[File, str]:
    """Returns the experiment's file, and the name of the data set where the file names none."""
    if experiment is not None:
        return read_file(experiment), "digits"
    dataset = Spec.parse(flags.get("dataset", "digits")).name
    registries()["dataset"][dataset]  # an unknown data set is refused as such
    return read_file(dataset if dataset in experiments() else FALLBACK), dataset


def check_name(name: str, what: str) -> None:
    """Refuses what names no folder, or one outside that of the results.

    Raises:
        InputError: It does; the message says of `what` it is the name.
    """
    plain = name.isprintable() and Path(name).name == name and not name.startswith(".")
    if not (name and plain and len(name.encode()) <= LONGEST_NAME):
        raise InputError(
            f"bad {what} '{name}': expected a folder's name without '/', as my-study, of at most "
            f"{LONGEST_NAME} bytes"
        )


def _check_size(asked: _Asked, axes: Mapping[str, Sequence[Any]]) -> None:
    """Refuses a grid of more trials than anybody means."""
    count = math.prod(map(len, axes.values()))
    if count > MOST:
        lists = [key for key in asked.settings if SETTINGS[key].kind == "axis"]
        sizes = ", ".join(f"{asked.origin(k)} {len(axes[SETTINGS[k].field])}" for k in lists)
        raise InputError(f"{count} trials ({sizes}): expected at most {MOST}; give shorter lists")


def _resolved(field: str, text: str, origin: str) -> str:
    """Returns a spec with all its options.

    Raises:
        InputError: It is not what it should be; the message names `origin`.
    """
    try:
        return registries()[field].resolve(text)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None


def folder_name(name: str) -> str:
    """Makes a folder's name of the name of a data set, which may be `module:function`.

    Example:
        >>> folder_name("my.module:cats")
        'my.module-cats'
    """
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".") or "data"


def _dataset(asked: _Asked, text: str) -> str:
    """Joins a data set's options: those of flags win over brackets, brackets over the file."""
    origins = [asked.origin(key) for key in ("dataset", *OPTIONS) if key in asked.settings]
    where = ", ".join(origins) or str(asked.file.path)
    try:
        dataset = Spec.parse(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    options = asked.of_kind("option")
    inline = dict(dataset.options)
    typed = {SETTINGS[key].field for key in asked.flags} & options.keys()
    if "dataset" in asked.flags and (twice := typed & inline.keys()):
        raise InputError(f"--dataset {dataset} and --{min(twice)} set the same option: give one")
    last = {field: value for field, value in options.items() if field in typed}
    joined = Spec(dataset.name, tuple({**options, **inline, **last}.items()))
    return _resolved("dataset", str(joined), where)


def _each(asked: _Asked, *, post_hoc: bool) -> dict[str, dict[str, Any]]:
    """Returns what the file sets for single priors, by resolved spec; flags win over it.

    Raises:
        InputError: A prior is not one of the file's or stands twice, or a value is bad.
    """
    file = asked.file
    if file.each and post_hoc:
        raise InputError(
            f"{file.path}: [each] and post-hoc training exclude one another: a prior fitted post "
            "hoc shares the recipe of the model that it starts from"
        )
    own = [
        _resolved("prior", text, f"{file.path}: priors")
        for text in split(file.settings.get("priors", ""))
    ]
    found: dict[str, dict[str, Any]] = {}
    for text, table in file.each.items():
        where = each_of(file.path, text)
        prior = _resolved("prior", text, where)
        if own and prior not in own:
            raise unknown(f"prior in {where}", text, map(registries()["prior"].label, own))
        if prior in found:
            raise InputError(f"{where} is a prior that has such a table already: keep one")
        found[prior] = {
            SETTINGS[key].field: _read(SETTINGS[key], value, f"{where} {key}")
            for key, value in table.items()
            if key not in asked.flags
        }
    return found


def _tuning(asked: _Asked, trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns the fields of a grid whose learning rates are chosen first; nothing for another.

    Raises:
        InputError: It cannot be done: of two settings that exclude one another, or without data.
    """
    settings = asked.settings
    if "tune-lr" not in settings or ("lr" in asked.flags and "tune-lr" not in asked.flags):
        if "tune-seeds" in asked.flags:
            raise InputError("--tune-seeds without --tune-lr: nothing is tuned; give both or none")
        return {}
    wanted = asked.of_kind("tuning")
    rates, origin = sorted(set(wanted["lr"])), asked.origin("tune-lr")
    if len(rates) < 2:
        raise InputError(f"{origin} '{settings['tune-lr']}': expected two learning rates or more")
    here = asked.flags if "tune-lr" in asked.flags else asked.file.settings
    fixed = [asked.origin("lr")] if "lr" in here else []
    fixed += [f"{each_of(asked.file.path, p)} lr" for p, t in asked.file.each.items() if "lr" in t]
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
    """Tells whether a point asks to fit anew what has nothing to fit: the base of the others."""
    return point.get("training") == "post-hoc" and point["prior"] == BASE


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    """Yields the points, the seed changing slowest: a comparison is whole, seed by seed."""
    points: list[dict[str, Any]] = [{}]
    names = [name for name, info in field_info(Trial).items() if info.role == "axis"]
    for field in ("seed", *(name for name in reversed(names) if name != "seed")):
        points = [
            {**point, field: value} for point in points for value in axes.get(field, [])
        ] or [*points]
    return points
