"""The tags and params that an MLflow run is created with."""

from __future__ import annotations

import getpass
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlflow
import torch
import zuko

from bench.store.names import COMPLETE_TAG, GROUP, NOTE, TRIAL
from bench.system.process import process_identity
from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.specs.registry import Spec
from flowvae.specs.values import Real, read, write
from flowvae.trial import Trial, registries

__all__ = ["columns_from_json", "run_params", "run_tags", "trial_columns"]


_FIELDS = Trial.__dataclass_fields__


def run_tags(trial: Trial, data: Dataset, tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the tags of a new run.

    Arguments:
        trial: The trial.
        data: Its data set.
        tags: More tags, which say how it is run.
    """
    return {
        TRIAL: trial.id,
        COMPLETE_TAG: "false",
        NOTE: _note(trial, data),
        GROUP: f"{trial.arm}-z{trial.latent}",
        "precision": trial.precision,
        **process_identity(),
        "mlflow.user": _user(),
        "mlflow.source.name": "bench.run",
        "version.python": platform.python_version(),
        **{f"version.{module.__name__}": module.__version__ for module in (torch, zuko, mlflow)},
        "data.hash": data.hash,
        "data.test": data.test_hash,
        **_git(),
        **tags,
    }


def run_params(trial: Trial) -> dict[str, str]:
    """Returns the params of a trial's run."""
    return {name: write(value) for name, value in trial_columns(trial).items() if name != TRIAL}


def _note(trial: Trial, data: Dataset) -> str:
    """Returns the description of a run, in markdown."""
    base = f", post hoc on the model of {trial.base.name}" if trial.base else ""
    return (
        f"A VAE with the prior `{trial.arm}`, D = {trial.latent}, seed {trial.seed}{base}, on "
        f"{data.describe()}.\n\n`bench.store.runs.load_run(RUN_ID)` loads its model, "
        "`python -m bench.audit RUN_ID` brackets its NLL."
    )


@lru_cache(maxsize=1)
def _git() -> dict[str, str]:
    def git(*words: str) -> str:
        folder = Path(__file__).parent
        try:
            done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
        except OSError:  # no git on this machine
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    dirty = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    return {"git.commit": commit, "git.dirty": dirty} if commit else {"git.commit": "unknown"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def trial_columns(trial: Trial) -> dict[str, Any]:
    """Returns the columns that a trial itself fills, typed: id, fields, short specs, options."""
    return {
        TRIAL: trial.id,
        **{name: getattr(trial, name) for name in _FIELDS},
        **trial.labels,
        "prior": trial.arm,
        **registries()["dataset"].options(trial.dataset),
        "dataset": Spec.parse(trial.dataset).name,
    }


def columns_from_json(content: Mapping[str, Any], params: Mapping[str, str]) -> dict[str, Any]:
    """Returns the columns of `trial_columns` for a trial some of whose builders are missing here.

    Arguments:
        content: What `Trial.to_json` wrote of it.
        params: The params of its run, which hold the short specs.
    """
    fields = {name: content.get(name, field.default) for name, field in _FIELDS.items()}
    labels = {name: params[name] for name in registries()}
    try:
        options = registries()["dataset"].options(fields["dataset"])
    except InputError:  # a trial's specs are resolved: no option is left out
        options = {name: _typed(text) for name, text in Spec.parse(fields["dataset"]).options}
    return {TRIAL: content["id"], **fields, **labels, **options, "dataset": labels["dataset"]}


def _typed(text: str) -> Any:  # noqa: ANN401
    """Reads an option of unknown type: a word, unless it is a number, a truth value or none."""
    words = {"none": None, "true": True, "false": False}
    if text in words:
        return words[text]
    for kind in (int, Real):
        with suppress(ValueError):
            return read(text, kind)
    return text
