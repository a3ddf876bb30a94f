"""A connection to an MLflow store: its client, one of its experiments, its locks."""

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

from bench.store.address import SQLITE, URI_SOURCE, masked, tracking_uri
from bench.store.artifact_paths import moved
from bench.store.locks import TrialLocks
from bench.store.names import NOTE
from bench.store.retry import STORE_ERRORS
from bench.store.sqlite import (
    check_path,
    check_readable,
    check_writable,
    create,
    exclusive,
    explain,
)
from bench.system.paths import RESULTS_FOLDER
from flowvae.errors import InputError, unknown

__all__ = ["Connection"]


FACT_PREFIX = "flowvae."
"""How the names of our own tags of an experiment begin."""


class Connection:
    """An MLflow store, and one experiment of it.

    Arguments:
        uri: The store's address.
        name: The experiment's name.
        data_hash: The hash of the data set that runs must be of, or none for any: a user's own
            file may change under its name.
        session: The command that uses it, which hands each trial to one worker at a time.
        known: Whether this command has opened and checked the store before.

    Raises:
        InputError: The store cannot be opened.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        data_hash: str | None = None,
        *,
        session: str = "",
        known: bool = False,
    ) -> None:
        self.uri, self.name, self.data_hash = uri, name, data_hash
        self.session, self._known = session, known
        self._experiment: Experiment | None = None
        # They log every new table, and a page for each error, which we report in a line.
        for logger in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)

    @property
    def _file(self) -> Path | None:
        """The file of an sqlite store."""
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client; a store that does not exist yet is created."""
        if self._known:
            return MlflowClient(self.uri)
        try:
            if self._file is None:
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)  # does it answer?
                return client
            check_path(self._file)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self._file):
                create(self._file)
                check_readable(self._file)
                if folders := moved(self._file):
                    raise InputError(_moved_message(self.uri, *folders))
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
                f"cannot open the MLflow store {self.shown} ({URI_SOURCE}): {explain(error)}"
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
        """Whether the store exists; one on a server is taken to."""
        return self._file is None or (self._file.exists() and self._file.stat().st_size > 0)

    def _find(self) -> Experiment | None:
        if not self.exists:
            return None  # finding creates no store
        if self._experiment is None:  # an experiment stays: each search for it is a query
            self._experiment = self.client.get_experiment_by_name(self.name)
        return self._experiment

    @cached_property
    def experiment(self) -> str:
        """The experiment's id; an experiment that does not exist yet is created.

        Raises:
            InputError: The store was removed since it was opened.
        """
        experiment = self._find()
        if experiment is None:
            try:
                return str(self.client.create_experiment(self.name, self._artifacts()))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._find()  # another process was faster
                if experiment is None:  # MLflow holds a file that its folder does not name
                    raise InputError(
                        f"the MLflow store {self.shown} was removed while in use: the same "
                        "command starts a new one"
                    ) from None
        if experiment.lifecycle_stage != "active":
            self.client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def check_experiment(self) -> None:
        """Refuses an experiment that the store does not hold; creates none.

        Raises:
            InputError: There is no such store, or none of that name in it.
        """
        if not self.exists:
            raise InputError(f"there is no MLflow store at {self.shown} ({URI_SOURCE})")
        experiment = self.client.get_experiment_by_name(self.name) if self.name else None
        if experiment is None or experiment.lifecycle_stage != "active":
            names = [one.name for one in self.client.search_experiments()]
            raise unknown(f"experiment in {self.shown}", self.name, sorted(names))

    def _artifacts(self) -> str | None:
        """Returns the folder of an sqlite store's artifacts, which is beside its file."""
        return None if self._file is None else str(self._file.parent / "mlruns" / self.name)

    def describe(self, note: str, facts: Mapping[str, str]) -> None:
        """Sets the experiment's description.

        Arguments:
            note: The description, markdown.
            facts: Texts by name, which `facts` returns again.
        """
        self.tag({NOTE: note, **{f"{FACT_PREFIX}{name}": text for name, text in facts.items()}})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the experiment."""
        for name, text in tags.items():
            self.client.set_experiment_tag(self.experiment, name, text)

    def facts(self) -> dict[str, str]:
        """Returns the facts that the last command which ran a trial wrote, by name."""
        tags = self.client.get_experiment(self.experiment).tags
        return {
            k.removeprefix(FACT_PREFIX): v for k, v in tags.items() if k.startswith(FACT_PREFIX)
        }

    def browse(self, view: str = "") -> str:
        """Says how to open the experiment's runs in a browser, or one of its views."""
        page = self.link() + f"&viewStateShareKey={view}" * bool(view)
        if self.uri.startswith("http"):
            return page
        store = "" if _is_here(self.uri) else f" --backend-store-uri {shlex.quote(self.uri)}"
        return f"mlflow ui{store}, then {page}"

    def link(self, run: str = "") -> str:
        """Returns the address of the experiment's runs, or of one run, on MLflow's server."""
        server = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        page = f"runs/{run}" if run else "runs"
        # Without a type MLflow opens its pages for language models.
        return f"{server}/#/experiments/{self.experiment}/{page}?workflowType=machine_learning"

    @property
    def locks(self) -> TrialLocks:
        """The locks of the trials: beside the file of an sqlite store, else beside the results."""
        folder = RESULTS_FOLDER / self.name / "claims"
        if self._file is not None:
            folder = self._file.with_name(self._file.name + ".claims") / self.name
        return TrialLocks(folder)

    @property
    def shared(self) -> bool:
        """Whether other machines may write to the store; see `bench.store.claims`."""
        return self._file is None

    def served_by(self, host: str) -> str:
        """Says how other machines can write to a store that is a file on `host`."""
        return (
            f"start `mlflow server --backend-store-uri {self.uri} --host 0.0.0.0 --allowed-hosts "
            f"'{host}:5000'` there, and give --tracking-uri http://{host}:5000 and a new --name"
        )

    @property
    def keeps_files_locally(self) -> bool:
        """Whether each machine writes artifacts to a folder of its own."""
        return is_local_uri(self.client.get_experiment(self.experiment).artifact_location)


def _is_here(uri: str) -> bool:
    """Tells whether a store is the default one of this folder."""
    return uri == tracking_uri(f"{SQLITE}mlflow.db")


def _moved_message(uri: str, old: str, new: str) -> str:
    flag = "" if _is_here(uri) else f" --tracking-uri {shlex.quote(uri)}"
    return (
        f"the MLflow store {uri} keeps its files in {old}, but they lie in {new}: the folder was "
        f"moved or copied; `python -m bench.repair{flag}` repairs it"
    )
