"""What is printed while a grid runs, off a terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from support.jobs import planned_job

from bench.execution import progress
from bench.execution.progress import Display
from bench.grid.job import Event, Outcome
from flowvae.trial import Trial

MEANS = {"test/nll": 80.0, "test/elbo": -85.0}


def printed(monkeypatch: pytest.MonkeyPatch, quiet: float) -> list[str]:
    monkeypatch.setattr(progress, "MAX_QUIET_SECONDS", quiet)
    trials = [Trial(prior=prior, latent=2) for prior in ("gauss", "maf")]
    first, second = planned_job(0, trials[0]), planned_job(1, trials[1])
    console = Console(file=StringIO(), width=60)
    with Display(console, 2) as shown:
        shown.report(Event(0, first.name, "fit", 3, 48, -90.25))
        shown.report(Event(1, second.name, "evaluate", 100, 360))
        shown.finished(first, [Outcome(trials[0], "complete", means=MEANS, seconds=2.0)])
        shown.report(Event(0, first.name, "evaluate", 360, 360))  # late
        shown.report(Event(1, second.name, "evaluate", 200, 360))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_now_and_then_a_line_says_what_is_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, scoring = "gauss-z2-s0 3 of 48 epochs ELBO -90.25", "maf-z2-s0 100 of 360 test images"
    assert printed(monkeypatch, 0.0) == [
        f"running {fit}",
        f"running {fit}; {scoring}",
        "1/2 gauss-z2-s0          test NLL 80.00, ELBO -85.00, 2.0 s training",
        "running maf-z2-s0 200 of 360 test images",
    ]


def test_trials_that_end_soon_have_a_line_each_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(printed(monkeypatch, 60.0)) == 1
