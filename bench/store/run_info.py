"""What a run is opened with: its trial and data, and where, by whom and with what it is run."""

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

__all__ = ["described", "opening", "retold"]


_FIELDS = Trial.__dataclass_fields__


def opening(trial: Trial, data: Dataset, tags: Mapping[str, str]) -> dict[str, Any]:
    """Returns what it takes to open a run, as JSON takes it.

    Arguments:
        trial: The trial.
        data: Its data set.
        tags: What else is to be known of how it is run.
    """
    fixed = {
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
    return {
        "name": trial.name,
        "tags": fixed,
        "params": {k: write(v) for k, v in described(trial).items() if k != TRIAL},
        "trial": trial.to_json(),
        "data": [data.spec, data.hash],
        "replaces": [],
    }


def _note(trial: Trial, data: Dataset) -> str:
    """Says what a run is, in markdown."""
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


def described(trial: Trial) -> dict[str, Any]:
    """Returns the columns that the trial itself fills, typed: id, fields, short specs, options."""
    return {
        TRIAL: trial.id,
        **{name: getattr(trial, name) for name in _FIELDS},
        **trial.labels,
        "prior": trial.arm,
        **registries()["dataset"].options(trial.dataset),
        "dataset": Spec.parse(trial.dataset).name,
    }


def retold(content: Mapping[str, Any], params: Mapping[str, str]) -> dict[str, Any]:
    """Returns the columns of `described` for a trial whose builders are not all to be had here.

    Arguments:
        content: What `Trial.to_json` wrote of it.
        params: What its run was opened with; the short specs are taken of it.
    """
    told = {name: content.get(name, field.default) for name, field in _FIELDS.items()}
    labels = {name: params[name] for name in registries()}
    try:
        options = registries()["dataset"].options(told["dataset"])
    except InputError:  # what the trial holds is resolved: no option is left out
        options = {name: _typed(text) for name, text in Spec.parse(told["dataset"]).options}
    return {TRIAL: content["id"], **told, **labels, **options, "dataset": labels["dataset"]}


def _typed(text: str) -> Any:  # noqa: ANN401
    """Reads an option of which nobody tells what it may be: a word, unless it is clear."""
    words = {"none": None, "true": True, "false": False}
    if text in words:
        return words[text]
    for kind in (int, Real):
        with suppress(ValueError):
            return read(text, kind)
    return text
