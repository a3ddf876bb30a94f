"""The record of every trial in MLflow: what is written, and what is found again.

A run is one trial. What makes it *complete* is our own tag, written last; an evaluation is
complete by a tag of its own, so that a new one attaches to a fitted model. `bench.results` reads
it back.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would look a host up
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its 7 take two minutes
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.time import get_current_time_millis
from mlflow.utils.uri import is_local_uri
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from flowvae.data import Dataset
from flowvae.errors import InputError
from flowvae.evaluation import Scores
from flowvae.folder import load
from flowvae.options import write
from flowvae.pareto import share_unreliable
from flowvae.registry import Spec
from flowvae.surgery import Surgery
from flowvae.trial import Evaluation, Trial, registries
from flowvae.vae import VAE

__all__ = ["COMPLETE", "Record", "Store", "described", "load_run", "tracking_uri"]

SQLITE = "sqlite:///"
STORE_ERRORS = (MlflowException, SQLAlchemyError, ImportError, ValueError, OSError)
"""What MLflow raises for a store that it cannot open: ImportError where a driver is not there."""
FLAG = "--tracking-uri, else MLFLOW_TRACKING_URI"
COMPLETE = "complete"
TRIAL = "trial"
BATCH = 900
"""Metrics in one call: MLflow takes 1000 of all kinds, and tags go with the last ones."""


def tracking_uri(flag: str | None = None) -> str:
    """Returns the store's address: `flag`, else MLFLOW_TRACKING_URI, else this folder's."""
    uri = flag or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.startswith("sqlite:"):  # MLflow keeps a store by its address: one folder, one address
        return SQLITE + str(_database(uri))
    return uri


def _database(uri: str) -> Path:
    """Returns the file of an sqlite store, which is made with its folder if it is not there.

    Raises:
        InputError: The address names no file that there could be.
    """
    name = uri.removeprefix(SQLITE)
    expected = f"bad MLflow store {uri} ({FLAG}): expected a file's address, as {SQLITE}mlflow.db"
    # What sqlite itself understands, a database in memory or options, would be lost or misread.
    if not uri.startswith(SQLITE) or not name.isprintable() or "?" in name or name == ":memory:":
        raise InputError(expected)
    try:
        path = Path(name).resolve()
        if path.exists() and not path.is_file():
            raise InputError(f"{expected}; got a folder")
    except OSError as error:
        raise InputError(f"{expected} ({error.strerror})") from None
    return path


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
        **{name: getattr(trial, name) for name in trial.__dataclass_fields__},
        **trial.labels,
        "prior": trial.arm,
        **registries()["dataset"].options(trial.dataset),
        "dataset": Spec.parse(trial.dataset).name,
    }


class Record:
    """One run, while it is written.

    Arguments:
        client: MLflow's client.
        run_id: The run.
        flush_seconds: How long curves wait before they are sent, s.
    """

    def __init__(self, client: MlflowClient, run_id: str, flush_seconds: float = 5.0) -> None:
        self.client = client
        self.run_id = run_id
        self._flush_seconds = flush_seconds
        self.closed = False
        self._metrics: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._flushed = time.monotonic()

    def curve(self, epoch: int, means: Mapping[str, float]) -> None:
        """Takes an epoch's means; they are sent every few seconds and at the end."""
        now = get_current_time_millis()
        self._metrics += [Metric(name, value, now, epoch) for name, value in means.items()]
        if time.monotonic() - self._flushed > self._flush_seconds:
            self.flush()

    def metrics(self, values: Mapping[str, float]) -> None:
        """Takes numbers that have no epoch; they are sent with the next flush."""
        now = get_current_time_millis()
        self._metrics += [Metric(name, value, now, 0) for name, value in values.items()]

    def tag(self, **tags: str) -> None:
        """Takes tags, sent with the next flush; `__` in a name stands for a dot."""
        self._tags |= {name.replace("__", "."): value for name, value in tags.items()}

    def flush(self) -> None:
        """Sends what waits, tags after metrics, in few calls: each is a transaction."""
        while self._metrics or self._tags:
            metrics = self._metrics[:BATCH]
            tags = self._tags if len(metrics) == len(self._metrics) else {}
            named = [RunTag(name, value) for name, value in tags.items()]
            self.client.log_batch(self.run_id, metrics=metrics, tags=named)
            del self._metrics[: len(metrics)]
            if tags:
                self._tags = {}
        self._flushed = time.monotonic()

    def folder(self, source: Path) -> None:
        """Uploads all that lies in a folder."""
        self.client.log_artifacts(self.run_id, str(source))

    def scores(self, evaluation: Evaluation, scores: Scores, surgery: Surgery) -> dict[str, float]:
        """Records an evaluation; returns its scores by metric, without the diagnostics."""
        first = {
            "elbo": scores.elbo.mean(),
            "nll": -scores.loglik[evaluation.samples].mean(),
            "rate": scores.rate.mean(),
            "distortion": scores.distortion.mean(),
        }
        values = {
            **first,
            "ess": scores.ess.mean(),
            "khat_high": share_unreliable(scores.khat),
            **{f"nll_k{k}": -loglik.mean() for k, loglik in scores.loglik.items()},
            **surgery.scalars(),
        }
        arrays = {f"loglik_k{k}": loglik for k, loglik in scores.loglik.items()}
        arrays |= {k: v for k, v in vars(scores).items() if k != "loglik"}
        arrays |= {f"surgery/{k}": np.asarray(v) for k, v in vars(surgery).items()}
        means = {f"{evaluation.split}/{name}": float(value) for name, value in values.items()}
        self.measured("evaluation", evaluation.id, arrays, means)
        caveat = {"caveat": surgery.caveat} if surgery.caveat else {}
        self.tag(nll_samples=str(evaluation.samples), **caveat)
        return {name: value for name, value in means.items() if name.partition("/")[2] in first}

    def measured(
        self, kind: str, key: str, arrays: Mapping[str, NDArray], means: Mapping[str, float]
    ) -> None:
        """Records a measurement of the model: arrays, then means, then that it is complete.

        The arrays are there at once, the rest with the next flush.

        Arguments:
            kind: `evaluation` or `audit`: its files lie under `evaluations/KEY`.
            key: The content id of its description.
            arrays: The arrays by name, mostly one value an image; a name may hold a folder.
            means: The means by metric.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / f"{kind}s" / key
            for name, values in arrays.items():
                path = folder / f"{name}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, values, allow_pickle=False)
            (folder / "means.json").write_text(json.dumps(dict(means), indent=2))
            self.folder(Path(scratch))
        self.metrics(means)
        self.tag(**{f"{kind}.{key}": COMPLETE})

    def finish(self, status: str, reason: str = "") -> None:
        """Closes the run: `complete` and `diverged` are results, `failed` and `killed` are not."""
        self.tag(status=status, **({"reason": reason} if reason else {}))
        self.flush()
        if status in (COMPLETE, "diverged"):
            self.client.set_tag(self.run_id, COMPLETE, "true")  # by itself, when all else is there
        ending = {"failed": "FAILED", "killed": "KILLED"}.get(status, "FINISHED")
        self.client.set_terminated(self.run_id, ending)
        self.closed = True


class Store:
    """The runs of one experiment.

    Arguments:
        uri: The store's address.
        name: The experiment's name.
        data_hash: The data set that runs must be of, or none for any: a file of a person's own
            may change under its name.

    Raises:
        InputError: The store cannot be opened.
    """

    def __init__(self, uri: str, name: str, data_hash: str | None = None) -> None:
        self.uri, self.name, self.data_hash = uri, name, data_hash
        for chatty in ("mlflow.store.db.utils", "alembic"):  # they tell of every table made
            logging.getLogger(chatty).setLevel(logging.WARNING)

    @property
    def _file(self) -> Path | None:
        """The file of an sqlite store."""
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; a store that is not there yet is made."""
        try:
            if self._file is None:
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)  # does it answer?
                return client
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Several first users at once would break the schema while it is made.
            with FileLock(self._file.with_name(self._file.name + ".lock")):
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)
                return client
        except STORE_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"cannot open the MLflow store {self.uri} ({FLAG}): {reason}"
            ) from error

    @property
    def exists(self) -> bool:
        """Whether there is a store to look into; one on a server is taken to be there."""
        return self._file is None or self._file.exists()

    def _find(self) -> Experiment | None:
        if not self.exists:
            return None  # looking makes no store
        return self.client.get_experiment_by_name(self.name)

    @cached_property
    def experiment(self) -> str:
        """The experiment's id; one that is not there yet is made."""
        found = self._find()
        if found is None:
            return self.client.create_experiment(self.name)
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def describe(self, note: str) -> None:
        """Sets the experiment's description, markdown."""
        self.client.set_experiment_tag(self.experiment, "mlflow.note.content", note)

    def browse(self) -> str:
        """Says how to open the experiment's runs in a browser."""
        page = f"#/experiments/{self.experiment}?workflowType=machine_learning"
        if self.uri.startswith("http"):
            return f"{self.uri.rstrip('/')}/{page}"
        here = self.uri == tracking_uri(f"{SQLITE}mlflow.db")  # where `mlflow ui` looks by itself
        store = "" if here else f" --backend-store-uri {self.uri}"
        return f"mlflow ui{store}, then http://127.0.0.1:5000/{page}"

    def start(self, trial: Trial, data: Dataset, tags: Mapping[str, str]) -> Record:
        """Opens the run of a trial on its data set."""
        fixed = {
            TRIAL: trial.id,
            COMPLETE: "false",
            "precision": trial.precision,
            "host": platform.node(),
            "pid": str(os.getpid()),
            "mlflow.user": _user(),
            "mlflow.source.name": "bench.run",
            "version.python": platform.python_version(),
            **{f"version.{name}": version(name) for name in ("torch", "zuko", "mlflow")},
            "data.hash": data.hash,
            **_git(),
            **tags,
        }
        run = self.client.create_run(self.experiment, tags=fixed, run_name=trial.name)
        params = [Param(k, write(v)) for k, v in described(trial).items() if k != TRIAL]
        self.client.log_batch(run.info.run_id, params=params)
        source = DatasetEntity(data.spec, data.hash, source_type="code", source="flowvae.data")
        self.client.log_text(run.info.run_id, trial.to_json(), "trial.json")
        self.client.log_inputs(run.info.run_id, [DatasetInput(source, [])])
        return Record(self.client, run.info.run_id)

    def runs(self, trials: Iterable[Trial]) -> dict[str, Run]:
        """Returns the run to read for each trial that has one, by trial id.

        Of several, the newest complete one; else the newest that ended.
        """
        wanted = {trial.id for trial in trials}
        found = self._find()
        if found is None:
            return {}
        chosen: dict[str, Run] = {}
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [found.experiment_id], order_by=["attribute.start_time ASC"], page_token=token
            )
            for run in page:
                key = run.data.tags.get(TRIAL)
                if self.data_hash not in (None, run.data.tags.get("data.hash")):
                    continue
                if key in wanted and (key not in chosen or _worth(run) >= _worth(chosen[key])):
                    chosen[key] = run
            token = page.token
            if not token:
                return chosen

    def fitted(self, trials: Iterable[Trial]) -> dict[str, Run]:
        """Returns the runs whose fit is a result, by trial id: complete or diverged."""
        return {key: run for key, run in self.runs(trials).items() if _complete(run)}

    def scored(self, run: Run, evaluation: Evaluation) -> bool:
        """Tells whether a run holds an evaluation, or can never hold one."""
        tags = run.data.tags
        return f"evaluation.{evaluation.id}" in tags or tags.get("status") == "diverged"

    def artifact(self, run: Run, path: str) -> Path | None:
        """Returns a local path of an artifact, or None when the run has none of that name."""
        return _artifact(self.client, run, path)


def _complete(run: Run) -> bool:
    return run.data.tags.get(COMPLETE) == "true"


def _worth(run: Run) -> int:
    """Ranks a trial's runs: a complete one, then one that ended, then any."""
    return 2 * _complete(run) + ("status" in run.data.tags)


def _artifact(client: MlflowClient, run: Run, path: str) -> Path | None:
    root = run.info.artifact_uri
    if is_local_uri(root):
        local = Path(local_file_uri_to_path(root)) / path
        return local if local.exists() else None
    run_id = run.info.run_id
    parent = path.rpartition("/")[0] or None
    if path not in {item.path for item in client.list_artifacts(run_id, parent)}:
        return None
    return Path(client.download_artifacts(run_id, path))


def load_run(run_id: str, uri: str | None = None) -> tuple[VAE, Trial]:
    """Loads the model of a run.

    Arguments:
        run_id: The run's id, as `mlflow ui` shows it.
        uri: The MLflow store; see `tracking_uri`.

    Returns:
        The model, on the CPU, and its description.

    Raises:
        InputError: The store has no such run, or the run kept no model.
    """
    store = Store(tracking_uri(uri), "")
    if not store.exists:
        raise InputError(f"there is no MLflow store at {store.uri}")
    client = store.client
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise InputError(f"no run '{run_id}' in {store.uri}: {error.message}") from None
    folder = _artifact(client, run, "model")
    if folder is None:
        raise InputError(
            f"run '{run_id}' kept no weights: `python -m bench.run` with --force trains it again"
        )
    return load(folder, trusted=True)  # what this store holds, its own commands ran
