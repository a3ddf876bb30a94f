"""What all commands share: an interrupt tells the truth about what is next, a pipe may end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest

from bench import run
from bench.cli.parser import EXIT_INTERRUPTED
from bench.studies.step_time import __main__ as step_time_command


@pytest.mark.parametrize(
    ("module", "argv", "told"),
    [
        (run, [], "the same command resumes"),
        (run, ["--profile"], "the same command starts again from the beginning"),
        (step_time_command, [], "the same command starts again from the beginning"),
    ],
)
def test_an_interrupt_says_what_the_same_command_would_do(
    module: object,
    argv: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_run", interrupted)
    main: Callable[[list[str]], int] = module.main  # type: ignore[attr-defined]
    assert main(argv) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == f"interrupted: {told}\n"


def test_a_pipe_whose_reader_ended_interrupts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run.main(["--list"]) == EXIT_INTERRUPTED
    said = "interrupted by the end of the program that reads the output"
    assert capsys.readouterr().err.startswith(said)
