"""Signals that ask for the end: taken at once, or between two steps; the second Ctrl-C at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from bench.cli.parser import EXIT_INTERRUPTED, run_command
from bench.system.signals import ENDING_SIGNALS, defer_signals, handle_signals, requested_end


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    """Signals do what they do by default, also in a shell's background, which ignores SIGINT."""
    before = {name: signal.getsignal(signal.Signals[name]) for name in ENDING_SIGNALS}
    for name in ENDING_SIGNALS:
        first = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(signal.Signals[name], first)
    yield
    for name, handler in before.items():
        signal.signal(signal.Signals[name], handler)


def tell(name: str) -> None:
    """Send this process a signal; Python takes it before the next line."""
    os.kill(os.getpid(), signal.Signals[name])


@pytest.mark.parametrize("name", ENDING_SIGNALS)
def test_a_signal_is_an_interrupt_that_says_its_name(name: str) -> None:
    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(KeyboardInterrupt, match=name), handle_signals():
        tell(name)
    assert signal.getsignal(signal.Signals[name]) == before


def test_a_signal_waits_for_what_asks() -> None:
    steps = []

    def work() -> None:
        assert not requested_end()
        tell("SIGTERM")
        tell("SIGHUP")  # it is ending already
        assert requested_end() == "SIGTERM"
        with defer_signals():
            steps.append("whole")

    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), handle_signals(), defer_signals():
        work()
    assert steps == ["whole"]
    with handle_signals():  # the next command knows nothing of it
        assert not requested_end()


def test_an_error_in_the_block_is_not_hidden() -> None:
    def work() -> None:
        tell("SIGTERM")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), handle_signals(), defer_signals():
        work()


def test_what_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with handle_signals():
            tell("SIGHUP")
            assert not requested_end()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_takes_no_signals() -> None:
    found = []

    def body() -> None:
        with handle_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_a_command_says_what_ended_it(capsys: pytest.CaptureFixture[str]) -> None:
    def body(_: object) -> int:
        tell("SIGUSR1")
        return 0

    assert run_command(body, []) == EXIT_INTERRUPTED
    said = "interrupted by SIGUSR1: the same command resumes\n"
    assert capsys.readouterr().err == said


STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from bench.system.signals import handle_signals, defer_signals
with handle_signals(), defer_signals():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_the_second_interrupt_ends_at_once() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            assert process.poll() is None  # what runs there does not ask
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == EXIT_INTERRUPTED
            assert process.stderr is not None
            assert "ended immediately" in process.stderr.read()
        finally:
            process.kill()
