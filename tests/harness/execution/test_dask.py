"""What a command refuses of a Dask cluster before anything runs; the workers are made up."""

from __future__ import annotations

import importlib
import platform
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.grid.job import Event, Notice
from bench.store.runs import Store
from flowvae.checkpoint import code
from flowvae.data import Dataset
from flowvae.errors import InputError

distributed = pytest.importorskip("distributed", reason="needs flowvae[cluster]")
cluster = importlib.import_module(
    "bench.execution.executors.dask"
)  # a fault of ours is no reason to skip

HERE = {"host": platform.node(), "code": code(), "threads": 1, "gpus": 0, "device": "cpu: x"}


class Client:
    """A client of made-up workers."""

    def __init__(
        self, about: dict[str, Any], data: dict[str, Any], **info: dict[str, Any]
    ) -> None:
        self.answers = {"_about": about, "_data_hash": data}
        self.info = info
        self.topics: dict[str, Callable] = {}

    def run(self, function: Callable, *_: object, **__: object) -> dict[str, Any]:
        return self.answers[function.__name__]

    def scheduler_info(self, **_: int) -> dict[str, Any]:
        given = {"resources": {}, "host": "a"}
        return {"workers": {name: {**given, **each} for name, each in self.info.items()}}

    def subscribe_topic(self, name: str, handler: Callable) -> None:
        self.topics[name] = handler


def terms(session: str, **changes: str) -> Any:  # noqa: ANN401
    return cluster._Terms(**{"session": session, "code": code(), **changes})


def made(digits: Dataset, about: Any = HERE, data: Any = None, **info: Any) -> Any:  # noqa: ANN401
    found = cluster.DaskExecutor.__new__(cluster.DaskExecutor)
    found._client = Client({"tcp://w": about}, {"tcp://w": data or digits.hash}, **info)
    found._terms, found._where, found._resources = terms("s"), "tcp://x", {}
    found._accepted, found._refused = None, set()
    found._counted_at = -cluster.COUNT_SECONDS
    return found


@pytest.fixture
def file(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/mlflow.db", "digits")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(Store, "keeps_files_locally", False)
    return Store("http://127.0.0.1:1", "digits", known=True)


def test_workers_of_this_machine_may_write_to_a_file(file: Store, digits: Dataset) -> None:
    made(digits).check(file, digits, None)


def test_workers_elsewhere_may_write_to_a_server(server: Store, digits: Dataset) -> None:
    made(digits, {**HERE, "host": "elsewhere"}).check(server, digits, None)


@pytest.mark.parametrize(
    ("about", "data", "expected"),
    [
        ({"threads": 2}, None, "worker tcp://w has 2 threads.*start it with --nthreads 1"),
        ({"code": "x"}, None, "worker tcp://w has another flowvae than this command"),
        (
            {"host": "node7"},
            None,
            "workers on node7 cannot write to sqlite:.*start `mlflow server",
        ),
        ({}, "0123", "other files of the data set digits .hash 0123"),
        ({}, InputError("no MNIST in data"), "worker tcp://w: no MNIST in data"),
        (ModuleNotFoundError("bench"), None, "cannot run jobs .bench.: install flowvae there"),
    ],
)
def test_workers_that_would_fail_are_refused(
    about: Any,  # noqa: ANN401
    data: Any,  # noqa: ANN401
    expected: str,
    file: Store,
    digits: Dataset,
) -> None:
    answer = about if isinstance(about, Exception) else {**HERE, **about}
    with pytest.raises(InputError, match=expected):
        made(digits, answer, data).check(file, digits, None)


def test_a_store_whose_files_would_be_lost_is_refused(
    server: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "keeps_files_locally", True)
    made(digits).check(server, digits, None)
    with pytest.raises(InputError, match="of workers on node7 would be lost.*--serve-artifacts"):
        made(digits, {**HERE, "host": "node7"}).check(server, digits, None)


def test_jobs_go_to_workers_that_have_the_device(digits: Dataset) -> None:
    cpus = {"a1": {"host": "a"}, "a2": {"host": "a"}, "b1": {"host": "b"}}
    found = made(digits, **cpus)
    found.choose_device("auto")
    assert found.device == "cpu"
    assert (found.slots, found.shared) == (3, 2)  # two on one machine
    assert found.describe() == "3 Dask workers at tcp://x, on 1 machine; cpu: x"
    with pytest.raises(InputError, match="no worker offers a GPU.*--resources GPU=1"):
        found.choose_device("cuda")
    with pytest.raises(InputError, match="--device cuda:1: expected auto, cpu or cuda"):
        found.choose_device("cuda:1")

    gpus = {name: {**each, "resources": {"GPU": 1.0}} for name, each in cpus.items()}
    found = made(digits, {**HERE, "gpus": 1}, c1={}, **gpus)
    found.choose_device("auto")
    assert found.device == "cuda"
    assert (found.slots, found.shared) == (3, 1)
    found._client.answers["_about"]["tcp://v"] = HERE
    with pytest.raises(InputError, match="some workers see a GPU and some none"):
        found.choose_device("auto")


def test_events_arrive_as_they_were_sent(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []
    worker = SimpleNamespace(log_event=lambda topic, message: sent.append((topic, message)))
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    found, got = made(digits), []
    assert found.relay(None) is None
    report = found.relay(got.append)
    events = [Event(3, "a", "fit", 1, 2, -7.5), Notice("mind"), Event(3, "a", "evaluate", 1, 2)]
    for event in events:
        report(event)
    for topic, message in sent:
        found._client.topics[topic]((0.0, {**message, "worker": "tcp://w"}))
    assert got == events


def test_a_job_that_is_asked_to_end_leaves_its_worker_alive(digits: Dataset) -> None:
    from bench.system.signals import requested_end

    def job(answer: str) -> str:
        cluster._end_session("another")
        assert not requested_end()
        cluster._end_session("s")
        if requested_end():
            raise KeyboardInterrupt(requested_end())
        return answer

    assert cluster._call(terms("s"), job, "done") is None
    assert not requested_end()
    assert cluster._call(terms("t"), lambda: "done") == "done"
    assert cluster._call(terms("s"), lambda: "done") is None  # what waited behind it


def test_a_worker_that_joined_between_two_checks_refuses_jobs(
    file: Store, server: Store, digits: Dataset
) -> None:
    found = made(digits)
    found._terms = terms("joined")
    with pytest.raises(InputError, match="has another flowvae than the command"):
        cluster._call(replace(found._terms, code="another"), lambda: "done")
    found.check(server, digits, None)
    assert found._terms.host == ""
    found.check(file, digits, None)
    assert cluster._call(found._terms, lambda: "done") == "done"
    elsewhere = f"cannot write to {file.uri}, a file on {platform.node()}: start `mlflow server "
    with pytest.raises(InputError, match=re.escape(elsewhere)):
        cluster._call(replace(found._terms, host="elsewhere"), lambda: "done")


def test_a_scheduler_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense://x:1"):
        with pytest.raises(InputError, match="no Dask scheduler answers at .*`dask scheduler`"):
            cluster.DaskExecutor("s", address, None)
    file = tmp_path / "scheduler.json"
    for content in ("", "[]", "{}"):
        file.write_text(content)
        with pytest.raises(InputError, match="cannot read --scheduler-file .*holds no address"):
            cluster.DaskExecutor("s", None, file)
    file.write_text('{"address": "tcp://127.0.0.1:1"}')
    with pytest.raises(InputError, match="no Dask scheduler answers at tcp://127.0.0.1:1"):
        cluster.DaskExecutor("s", None, file)


def test_a_worker_that_joins_later_is_taken_in_or_refused(
    file: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(digits, w1={})
    found._client.answers["_about"] = {"w1": HERE}
    found.check(file, digits, None)
    assert found.slots == 1
    monkeypatch.setattr(cluster, "COUNT_SECONDS", -1.0)
    found._client.info |= {"w2": {}, "w3": {}}
    found._client.answers["_about"] = {"w2": HERE, "w3": {**HERE, "code": "x"}}
    with pytest.warns(RuntimeWarning, match="worker w3 has another flowvae.*gets no jobs"):
        assert found.slots == 2
    found._client.info["w4"] = {}
    found._client.answers["_about"] = {"w4": ModuleNotFoundError("bench")}
    with pytest.warns(RuntimeWarning, match="worker w4 cannot run jobs.*gets no jobs"):
        assert found.slots == 2
