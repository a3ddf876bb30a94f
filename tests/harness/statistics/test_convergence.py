"""What the validation ELBO did is told where training did not help, or helped too long."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from support.synthetic_grids import Made, make

from bench.report.findings import convergence as convergence_findings
from bench.report.findings.convergence import convergence_sentences
from bench.run import main
from bench.statistics.convergence import validation_course


def with_curve(made: Made, prior: str, seed: int, values: list[float]) -> None:
    """Replace one trial's validation ELBO, epochs from 1."""
    run = f"{prior}-z2-s{seed}"
    mine = (made.curves["run_id"] == run) & (made.curves["metric"] == "valid/elbo")
    assert mine.sum() == len(values)
    made.curves.loc[mine, "value"] = values


def grid(select: str) -> Made:
    """Three seeds of two arms, four epochs: gauss is fine, maf's seeds are not."""
    made = make(latents=(2,), seeds=3, epochs=4)
    made.frame["select"] = select
    for seed in range(3):
        with_curve(made, "gauss", seed, [-90.0, -80.0, -79.0, -79.4])
    with_curve(made, "maf", 0, [-90.0, -80.0, -83.0, -85.0])
    with_curve(made, "maf", 1, [-80.0, -82.0, -83.0, -80.5])
    with_curve(made, "maf", 2, [-90.0, -80.0, -81.0, -1e12])
    return made


def test_the_best_epoch_and_the_fall_since() -> None:
    made = grid("last")
    shuffled = made.curves.sample(frac=1, random_state=0)
    found = validation_course(made.frame, shuffled)
    assert list(found["valid/best_epoch"]) == [3, 3, 3, 2, 1, 2]
    assert list(found["valid/fall"][:5]) == pytest.approx([0.4, 0.4, 0.4, 5.0, 0.5])
    made.frame.loc[3, "status"] = "diverged"
    assert validation_course(made.frame, made.curves).loc[3].isna().all()
    assert validation_course(made.frame, pd.DataFrame()).isna().all(axis=None)
    written = made.frame.assign(**found)  # a table without curves tells what was written into it
    pd.testing.assert_frame_equal(validation_course(written, pd.DataFrame()), found)


def test_a_fall_is_told_where_the_last_weights_are_kept() -> None:
    made = grid("last")
    never, fallen = convergence_sentences(made.analysis())
    assert "At D = 2" in never
    assert "never rose above that of the first epoch: maf (seed 1)" in never
    assert (
        "maf by 5.0e+11 nats (seeds 0, 2); `--select best` keeps the weights of the best epoch."
        in fallen
    )
    assert "gauss" not in fallen


def test_the_best_weights_have_not_fallen() -> None:
    made = grid("best")
    (never,) = convergence_sentences(made.analysis())
    assert "maf (seed 1)" in never


def test_a_good_training_and_one_of_one_epoch_say_nothing() -> None:
    made = make(epochs=12)
    made.frame["select"] = "last"
    assert not convergence_sentences(made.analysis())
    short = make(epochs=1)
    assert not convergence_sentences(short.analysis())


@pytest.mark.usefixtures("empty_store", "no_figures")
def test_a_run_tells_it(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:  # noqa: ANN401
    """At a learning rate of 3e-1 a net of 16 units rarely gets better after the first epoch."""
    monkeypatch.chdir(tmp_path)
    flags = ["--latents", "2", "--seeds", "1", "--nets", "mlp[hidden=16]", "--epochs", "4"]
    flags += ["--priors", "gmm[components=4]", "--nll-samples", "5", "--lr", "0.3"]
    assert main([*flags, "--select", "last"]) == 0
    out = capsys.readouterr().out
    assert "never rose above that of the first epoch: gmm[components=4] (seed 1)" in out
    trials = pd.read_csv("results/local/digits/trials.csv")
    assert trials["valid/best_epoch"].item() == 1
    assert trials["valid/fall"].item() > convergence_findings.MIN_FALL
    assert "`--select best` keeps the weights of the best epoch" in out
