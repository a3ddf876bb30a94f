"""An MLflow store, opened: its client, an experiment, and what lies beside it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.utils.uri import is_local_uri

from bench.store.address import FLAG, SQLITE, masked, tracking_uri
from bench.store.artifact_paths import moved
from bench.store.locks import Claims
from bench.store.names import LETTER, NOTE, STORE_ERRORS
from bench.store.sqlite import alone, check_path, check_readable, check_writable, explain, make
from bench.system.paths import RESULTS_FOLDER
from flowvae.errors import InputError, unknown

__all__ = ["NOTE", "Connection"]


FACT = "flowvae."
"""How the names of an experiment's tags begin that are our own."""


class Connection:
    """An MLflow store, and one experiment of it.

    Arguments:
        uri: The store's address.
        name: The experiment's name.
        data_hash: The data set that runs must be of, or none for any: a file of a person's own
            may change under its name.
        known: Whether it was opened before by this command, and needs no look at it.

    Raises:
        InputError: The store cannot be opened.
    """

    def __init__(
        self, uri: str, name: str, data_hash: str | None = None, *, known: bool = False
    ) -> None:
        self.uri, self.name, self.data_hash, self._known = uri, name, data_hash, known
        self._found: Experiment | None = None
        # They tell of every table made, and a page of each error, which we tell in a line.
        for chatty in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)

    @property
    def _file(self) -> Path | None:
        """The file of an sqlite store."""
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; a store that is not there yet is made."""
        if self._known:
            return MlflowClient(self.uri)
        try:
            if self._file is None:
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)  # does it answer?
                return client
            check_path(self._file)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with alone(self._file):
                make(self._file)
                check_readable(self._file)
                if found := moved(self._file):
                    raise InputError(_told_moved(self.uri, *found))
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)
                return client
        except (
            *STORE_ERRORS,
            ImportError,
            ValueError,
        ) as error:  # ImportError: a driver is missing
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"cannot open the MLflow store {self.shown} ({FLAG}): {explain(error)}"
            ) from error

    def check_writable(self) -> None:
        """Refuses a store that nothing can be written to.

        Raises:
            InputError: It is read-only, locked, or its disk is full.
        """
        if self._file is not None and self.client:
            check_writable(self._file)

    @property
    def shown(self) -> str:
        """The store's address without the password that may be in it."""
        return masked(self.uri)

    @property
    def exists(self) -> bool:
        """Whether there is a store to look into; one on a server is taken to be there."""
        return self._file is None or (self._file.exists() and self._file.stat().st_size > 0)

    def _find(self) -> Experiment | None:
        if not self.exists:
            return None  # looking makes no store
        if self._found is None:  # one that is there stays: every look is a query
            self._found = self.client.get_experiment_by_name(self.name)
        return self._found

    @cached_property
    def experiment(self) -> str:
        """The experiment's id; one that is not there yet is made."""
        found = self._find()
        if found is None:
            try:
                return str(self.client.create_experiment(self.name, self._artifacts()))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._find()  # another process was faster
                assert found is not None
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def check_experiment(self) -> None:
        """Refuses an experiment that the store does not hold; makes none.

        Raises:
            InputError: There is no such store, or none of that name in it.
        """
        if not self.exists:
            raise InputError(f"there is no MLflow store at {self.shown} ({FLAG})")
        found = self.client.get_experiment_by_name(self.name) if self.name else None
        if found is None or found.lifecycle_stage != "active":
            names = [experiment.name for experiment in self.client.search_experiments()]
            raise unknown(f"experiment in {self.shown}", self.name, sorted(names))

    def _artifacts(self) -> str | None:
        """Where artifacts of an sqlite store go: beside its file, wherever the command runs."""
        return None if self._file is None else str(self._file.parent / "mlruns" / self.name)

    def describe(self, note: str, facts: Mapping[str, str]) -> None:
        """Sets the experiment's description.

        Arguments:
            note: For people, markdown.
            facts: What `facts` returns again.
        """
        self.tag({NOTE: note, **{f"{FACT}{name}": text for name, text in facts.items()}})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the experiment."""
        for name, text in tags.items():
            self.client.set_experiment_tag(self.experiment, name, text)

    def facts(self) -> dict[str, str]:
        """Returns what the last command to run something said of the experiment, by name."""
        tags = self.client.get_experiment(self.experiment).tags
        return {k.removeprefix(FACT): v for k, v in tags.items() if k.startswith(FACT)}

    def browse(self, view: str = "") -> str:
        """Says how to open the experiment's runs in a browser, maybe in one of its views."""
        page = self.link() + f"&viewStateShareKey={view}" * bool(view)
        if self.uri.startswith("http"):
            return page
        store = "" if _is_here(self.uri) else f" --backend-store-uri {shlex.quote(self.uri)}"
        return f"mlflow ui{store}, then {page}"

    def link(self, run: str = "") -> str:
        """Returns the address of the experiment's runs, or of one, where MLflow is served."""
        server = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        page = f"runs/{run}" if run else "runs"
        # Without a type MLflow opens its pages for language models.
        return f"{server}/#/experiments/{self.experiment}/{page}?workflowType=machine_learning"

    @property
    def claims(self) -> Claims:
        """Who does which trial: beside the file of an sqlite store, else beside the results."""
        folder = RESULTS_FOLDER / self.name / "claims"
        if self._file is not None:
            folder = self._file.with_name(self._file.name + ".claims") / self.name
        return Claims(folder)

    @property
    def unsent(self) -> Path:
        """The folder of runs that could not be sent."""
        return RESULTS_FOLDER / self.name / "unsent"

    def letter(self, key: str) -> Path | None:
        """Returns the folder of a run that is done and waits to be sent, by its trial's id."""
        folder = self.unsent / key
        return folder if (folder / LETTER).exists() else None

    @property
    def shared(self) -> bool:
        """Whether other machines may write to it: then runs themselves tell who is at a trial."""
        return self._file is None

    def served_by(self, host: str) -> str:
        """Says how a store that is a file on `host` can be written from elsewhere."""
        return (
            f"start `mlflow server --backend-store-uri {self.uri} --host 0.0.0.0 --allowed-hosts "
            f"'{host}:5000'` there, and give --tracking-uri http://{host}:5000 and a new --name"
        )

    @property
    def keeps_files_locally(self) -> bool:
        """Whether each machine writes artifacts to a folder of its own."""
        return is_local_uri(self.client.get_experiment(self.experiment).artifact_location)


def _is_here(uri: str) -> bool:
    """Tells whether a store is the one that MLflow looks for in this folder by itself."""
    return uri == tracking_uri(f"{SQLITE}mlflow.db")


def _told_moved(uri: str, old: str, new: str) -> str:
    flag = "" if _is_here(uri) else f" --tracking-uri {shlex.quote(uri)}"
    return (
        f"the MLflow store {uri} keeps its files in {old}, but they lie in {new}: the folder was "
        f"moved or copied; `python -m bench.repair{flag}` mends it"
    )
