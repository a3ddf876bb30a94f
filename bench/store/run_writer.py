"""One run of MLflow, while it is written; or a folder that stands for it while the store is away.

What makes a run *complete* is our own tag, written last. A store that does not answer for a while
loses nothing: curves wait, and what a trial ended with is laid down in a folder, from where
`bench.store.spool` sends it when the store is back.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from bench.store.measurements import Measurements
from bench.store.names import (
    ARTIFACTS,
    COMPLETE_TAG,
    ENDED_AS,
    LETTER,
    STORE_ERRORS,
    OvertakenError,
    is_temporary,
)
from bench.store.sqlite import explain
from bench.system.signals import defer_signals, requested_end
from flowvae.checkpoint import write_whole

if TYPE_CHECKING:
    pass

__all__ = ["TRIES", "RunWriter", "end_as"]


BATCH = 900
"""Metrics in one call: MLflow takes 1000 of all kinds, and tags go with the last ones."""
TRIES = (1.0, 4.0, 16.0)
"""What is waited before a call that must succeed is tried once more, s."""
LATER = (15.0, 300.0)
"""What is waited at first, and at most, before curves are sent to a store that was away, s."""
FLUSH = {False: 5.0, True: 20.0}
"""How long curves wait before they are sent, to a store of this machine and to a shared one, s."""


class RunWriter:
    """A run, while it is written.

    Arguments:
        client: MLflow's client.
        run_id: The run; empty where the store was away when it should have been opened.
        away: The folder that stands for the run where the store does not answer; without one,
            that is an error.
        opening: What it takes to open the run later.
        logged: The last epoch that the run holds of each curve.
        held: The numbers that the run holds.
        shared: Whether other machines may have taken the trial over, so that the store is asked
            before the run is complete.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        *,
        away: Path | None = None,
        opening: Mapping[str, Any] | None = None,
        logged: Mapping[str, int] | None = None,
        held: Mapping[str, float] | None = None,
        shared: bool = False,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.closed = False
        self.overtaken = False
        self._away, self._opening = away, opening
        self._apart = False
        self._logged, self._held = logged or {}, held or {}
        self._metrics: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._shared = shared
        self._flush_seconds = FLUSH[shared]
        self._next = time.monotonic() + self._flush_seconds
        self._later = LATER[0]

    @property
    def apart(self) -> Path | None:
        """The folder that stands for the run, if the store did not answer."""
        return self._away if self._apart else None

    def curve(self, epoch: int, means: Mapping[str, float]) -> None:
        """Takes an epoch's means, if the run does not hold them; sent every few seconds."""
        now = get_current_time_millis()
        self.take(Metric(name, value, now, epoch) for name, value in means.items())
        if time.monotonic() > self._next:
            self._try_to_flush()

    def take(self, metrics: Iterable[Metric]) -> None:
        """Takes points of curves and single numbers, if the run does not hold them."""
        for metric in metrics:
            if metric.step:
                new = metric.step > self._logged.get(metric.key, 0)
            else:
                new = metric.value != self._held.get(metric.key)
            if new:
                self._metrics.append(metric)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Takes numbers that have no epoch; they are sent with the next flush."""
        now = get_current_time_millis()
        self.take(Metric(name, value, now, 0) for name, value in values.items())

    def tag(self, **tags: str) -> None:
        """Takes tags, sent with the next flush; `__` in a name stands for a dot."""
        self._tags |= {name.replace("__", "."): value for name, value in tags.items()}

    def flush(self) -> None:
        """Sends what waits."""
        if not self._apart:
            self._surely(self._flush)

    def folder(self, source: Path) -> None:
        """Uploads all that lies in a folder."""
        if not self._apart:
            self._surely(lambda: self.client.log_artifacts(self.run_id, str(source)))
        if self._apart:
            assert self._away is not None
            shutil.copytree(source, self._away / ARTIFACTS, dirs_exist_ok=True)

    def text(self, name: str, content: str) -> None:
        """Uploads a text as a file."""
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / name).write_text(content)
            self.folder(Path(scratch))

    def _flush(self) -> None:
        """Sends what waits, tags after metrics, in few calls: each is a transaction."""
        while self._metrics or self._tags:
            metrics = self._metrics[:BATCH]
            tags = self._tags if len(metrics) == len(self._metrics) else {}
            named = [RunTag(name, value) for name, value in tags.items()]
            self.client.log_batch(self.run_id, metrics=metrics, tags=named)
            del self._metrics[: len(metrics)]
            if tags:
                self._tags = {}
        self._next, self._later = time.monotonic() + self._flush_seconds, LATER[0]

    def _try_to_flush(self) -> None:
        """Sends what waits, or lets it wait longer where the store does not answer."""
        if self._apart:
            return
        try:
            self._flush()
        except STORE_ERRORS as error:
            if self._away is None or not is_temporary(error):
                raise
            self._next = time.monotonic() + self._later
            self._later = min(2 * self._later, LATER[1])

    def _surely(self, call: Callable[[], None]) -> None:
        """Calls, again after a while where the store does not answer; then goes apart."""
        for wait in (*TRIES, None):
            try:
                return call()
            except STORE_ERRORS as error:
                if self._away is None or not is_temporary(error):
                    raise
                if wait is None or requested_end():
                    self.go_apart(error)
                    return None
            time.sleep(wait)
        return None

    def go_apart(self, error: BaseException) -> None:
        """Keeps all that comes in a folder, since the store does not answer; tells it."""
        assert self._away is not None
        self._apart = True
        warnings.warn(
            f"the MLflow store does not take a run ({explain(error)}): its results are kept in "
            f"{self._away}, and sent when the store is back, at the latest by the next command",
            RuntimeWarning,
            stacklevel=3,
        )

    def write(self, measurements: Measurements) -> None:
        """Uploads the files of measurements; their numbers, then tags go with the next flush."""
        with tempfile.TemporaryDirectory() as scratch:
            if measurements.save_files(Path(scratch)):
                self.folder(Path(scratch))
        self.metrics(measurements.metrics)
        self.tag(**measurements.tags)

    def finish(self, status: str, reason: str = "") -> None:
        """Closes the run: `complete` and `diverged` are results, `failed` and `killed` are not.

        Raises:
            OvertakenError: Another process took the trial over; this run is no result.
        """
        self.tag(status=status, **({"reason": reason} if reason else {}))
        if status == "killed":  # in haste: a run that stays open is closed by the next command
            with suppress(*STORE_ERRORS):
                self._close(status)
            self.closed = True
            return
        with defer_signals():  # a run is not complete and killed
            if not self._apart:
                self._surely(lambda: self._close(status))
            if self._apart:
                self._lay_down(status, reason)
            self.closed = True

    def _close(self, status: str) -> None:
        if not self.run_id:
            return
        self._flush()
        if status in (COMPLETE_TAG, "diverged"):
            if self._shared and not end_as(self.client, self.run_id, status):
                raise OvertakenError("another process took it over, or was faster")
            self.client.set_tag(
                self.run_id, COMPLETE_TAG, "true"
            )  # by itself, when all else is there
        ending = {"failed": "FAILED", "killed": "KILLED"}.get(status, "FINISHED")
        self.client.set_terminated(self.run_id, ending)

    def _lay_down(self, status: str, reason: str) -> None:
        """Writes the letter that makes the folder one to be sent, last."""
        assert self._away is not None
        letter = {
            "run_id": self.run_id,
            "opening": self._opening,
            "metrics": [[m.key, m.value, m.timestamp, m.step] for m in self._metrics],
            "tags": self._tags,
            "status": status,
            "reason": reason,
        }
        self._away.mkdir(parents=True, exist_ok=True)
        write_whole(self._away / LETTER, lambda path: path.write_text(json.dumps(letter)))


def end_as(client: MlflowClient, run_id: str, what: str) -> bool:
    """Writes down what a run ends as, if that is not written yet; tells whether it is `what`."""
    try:
        client.log_param(run_id, ENDED_AS, what)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return False
    return True
