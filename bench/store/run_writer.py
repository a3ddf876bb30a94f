"""One MLflow run while it is written.

The tag `complete`, written last, makes a run a result. Curves wait in memory while the store does
not answer; calls that must succeed are repeated for a while, then raise.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from bench.store.measurements import Measurements
from bench.store.names import COMPLETE_TAG, ENDED_AS
from bench.store.retry import STORE_ERRORS, is_temporary, with_retries
from bench.system.signals import defer_signals

__all__ = ["OvertakenError", "RunWriter", "end_as"]


MAX_METRICS = 900
"""Metrics in one call: MLflow takes 1000 items of all kinds, and tags go with the last ones."""
FLUSH_SECONDS = {False: 5.0, True: 20.0}
"""How long curves wait before they are sent: to a store of this machine, to a shared one, s."""
AWAY_SECONDS = (15.0, 300.0)
"""The first and the longest pause before curves are sent to a store that did not answer, s."""


class OvertakenError(Exception):
    """Another process took the trial over, or completed it."""


class RunWriter:
    """Writes one run.

    Arguments:
        client: MLflow's client.
        run_id: The run.
        logged_epochs: The last epoch that the run holds of each curve.
        logged_metrics: The numbers without an epoch that the run holds.
        shared: Whether other machines may take the trial over, so that the store is asked before
            the run is complete.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        *,
        logged_epochs: Mapping[str, int] | None = None,
        logged_metrics: Mapping[str, float] | None = None,
        shared: bool = False,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.closed = False
        self.overtaken = False
        self._logged_epochs = logged_epochs or {}
        self._logged_metrics = logged_metrics or {}
        self._metrics: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._shared = shared
        self._flush_seconds = FLUSH_SECONDS[shared]
        self._next_flush = time.monotonic() + self._flush_seconds
        self._away_seconds = AWAY_SECONDS[0]
        self._pauses: tuple[float, ...] | None = None

    def curve(self, epoch: int, means: Mapping[str, float]) -> None:
        """Takes an epoch's means that the run does not hold yet; sent every few seconds."""
        now = get_current_time_millis()
        self.take(Metric(name, value, now, epoch) for name, value in means.items())
        if time.monotonic() > self._next_flush:
            self._try_to_flush()

    def take(self, metrics: Iterable[Metric]) -> None:
        """Takes points of curves and single numbers that the run does not hold yet."""
        for metric in metrics:
            if metric.step:
                new = metric.step > self._logged_epochs.get(metric.key, 0)
            else:
                new = metric.value != self._logged_metrics.get(metric.key)
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
        """Sends all metrics and tags that were taken."""
        self._with_retries(self._flush)

    def folder(self, source: Path) -> None:
        """Uploads all files of a folder."""
        self._with_retries(lambda: self.client.log_artifacts(self.run_id, str(source)))

    def text(self, name: str, content: str) -> None:
        """Uploads a text as a file."""
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / name).write_text(content)
            self.folder(Path(scratch))

    def _flush(self) -> None:
        """Sends metrics, then tags, in few calls: each is a transaction."""
        while self._metrics or self._tags:
            metrics = self._metrics[:MAX_METRICS]
            tags = self._tags if len(metrics) == len(self._metrics) else {}
            run_tags = [RunTag(name, value) for name, value in tags.items()]
            self.client.log_batch(self.run_id, metrics=metrics, tags=run_tags)
            del self._metrics[: len(metrics)]
            if tags:
                self._tags = {}
        self._next_flush = time.monotonic() + self._flush_seconds
        self._away_seconds = AWAY_SECONDS[0]

    def _try_to_flush(self) -> None:
        """Sends curves, or keeps them for longer if the store does not answer."""
        try:
            self._flush()
        except STORE_ERRORS as error:
            if not is_temporary(error):
                raise
            self._next_flush = time.monotonic() + self._away_seconds
            self._away_seconds = min(2 * self._away_seconds, AWAY_SECONDS[1])

    def _with_retries(self, call: Callable[[], None]) -> None:
        """Calls the store, with retries; once it has failed after all of them, without."""
        try:
            with_retries(call, self._pauses)
        except STORE_ERRORS:
            self._pauses = ()
            raise

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
                self._send_ending(status)
                self._terminate(status)
            self.closed = True
            return
        with defer_signals():  # so that a signal does not mark a complete run as killed
            self._with_retries(lambda: self._send_ending(status))
            with suppress(*STORE_ERRORS):  # the next command closes a run that stays open
                self._with_retries(lambda: self._terminate(status))
            self.closed = True

    def _send_ending(self, status: str) -> None:
        self._flush()
        if status in (COMPLETE_TAG, "diverged"):
            if self._shared and not end_as(self.client, self.run_id, status):
                raise OvertakenError("another process took the trial over, or completed it first")
            # In a call of its own, when all else is in the store.
            self.client.set_tag(self.run_id, COMPLETE_TAG, "true")

    def _terminate(self, status: str) -> None:
        ending = {"failed": "FAILED", "killed": "KILLED"}.get(status, "FINISHED")
        self.client.set_terminated(self.run_id, ending)


def end_as(client: MlflowClient, run_id: str, ending: str) -> bool:
    """Writes what a run ends as, unless it is written; returns whether it now is `ending`."""
    try:
        client.log_param(run_id, ENDED_AS, ending)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return False
    return True
