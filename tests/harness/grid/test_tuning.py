"""The choice of learning rates on validation images, before the comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from support.fast_commands import leave_undrawn

from bench.execution import worker
from bench.execution.scoring import Scoring
from bench.figures.tuning import tuning_curves
from bench.grid.grid import Grid, make_grid
from bench.grid.job import UnfinishedError
from bench.grid.tuning import edge_warnings, mark_chosen, tuned, tuning_trials
from bench.run import main
from bench.statistics import frames
from bench.store.runs import Store
from flowvae.errors import InputError

RATES = (1e-3, 1e-2, 1e30)
SMALL = ["--nets", "mlp[hidden=8]", "--epochs", "2", "--latents", "2", "--nll-samples", "5"]
GRID = [*SMALL, "--priors", "gauss,diagonal", "--seeds", "0:3"]
TUNED = [*GRID, "--tune-lr", "1e-3,1e-2,1e30", "--tune-seeds", "1000:1002"]


def grid(**flags: str) -> Grid:
    given = {"priors": "gauss,maf", "latents": "2,4", "seeds": "0:2", "tune-lr": "1e-3,1e-2"}
    return make_grid({**given, **{key.replace("_", "-"): text for key, text in flags.items()}})


def frame(grid: Grid, elbo: dict[tuple[str, float], float]) -> pd.DataFrame:
    """What the store would hold: an ELBO by prior and rate, nan for a divergence."""
    rows = []
    for trial in tuning_trials(grid):
        value = elbo[trial.labels["prior"], trial.lr]
        rows.append(
            {"prior": trial.labels["prior"], "latent": trial.latent, "net": trial.labels["net"]}
            | {"precision": trial.precision, "lr": trial.lr, "seed": trial.seed}
            | {"dataset": "digits", "binarise": "threshold", "epochs": 4, "select": "best"}
            | {"status": "diverged" if np.isnan(value) else "complete", "device": "cpu: none"}
            | {"valid_elbo": value - trial.seed / 1e3 - trial.latent, "run_id": trial.id}
        )
    return mark_chosen(pd.DataFrame(rows))


FLAT = {("gauss", 1e-3): -20.0, ("gauss", 1e-2): -20.0, ("maf", 1e-3): -22, ("maf", 1e-2): -21.0}
NAN = float("nan")


def test_each_prior_at_each_setting_has_the_same_budget() -> None:
    trials = tuning_trials(grid(tune_seeds="7:9"))
    assert len({trial.id for trial in trials}) == len(trials) == 2 * 2 * 2 * 2
    assert [trial.seed for trial in trials] == [7] * 8 + [8] * 8
    assert {(t.labels["prior"], t.latent, t.lr) for t in trials} == {
        (prior, latent, lr)
        for prior in ("gauss", "maf")
        for latent in (2, 4)
        for lr in (1e-3, 0.01)
    }


def test_the_best_mean_is_chosen_and_of_equal_ones_the_smallest_rate() -> None:
    study = grid()
    trials = tuned(study, frame(study, FLAT)).trials
    assert {(trial.labels["prior"], trial.lr) for trial in trials} == {
        ("gauss", 1e-3),
        ("maf", 1e-2),
    }
    assert [trial.but(lr=1.0) for trial in trials] == [t.but(lr=1.0) for t in study.trials]


def test_a_rate_at_which_a_seed_diverged_is_never_chosen() -> None:
    study = grid(tune_seeds="7:9")
    found = frame(study, FLAT)
    one = (found["prior"] == "maf") & (found["lr"] == 1e-2) & (found["seed"] == 8)
    found.loc[one, ["valid_elbo", "status"]] = [NAN, "diverged"]
    trials = tuned(study, mark_chosen(found)).trials
    assert {trial.lr for trial in trials if trial.labels["prior"] == "maf"} == {1e-3}


def test_a_prior_that_diverged_everywhere_is_named() -> None:
    study = grid(latents="2")
    found = frame(study, {**FLAT, ("maf", 1e-3): NAN, ("maf", 1e-2): NAN})
    with pytest.raises(
        InputError, match=r"tuning maf \(D = 2\): a seed diverged at each .*0\.001"
    ):
        tuned(study, found)


def test_nothing_is_chosen_before_all_is_tried() -> None:
    study = grid()
    found = frame(study, FLAT)
    found.loc[3, "status"] = "failed"
    with pytest.raises(
        UnfinishedError, match="1 of the 8 trials of the tuning are missing or fail"
    ):
        tuned(study, found)


def test_post_hoc_priors_keep_the_rate_of_the_model_that_they_start_from() -> None:
    study = grid(training="joint,post-hoc", latents="2", seeds="0")
    assert {trial.training for trial in tuning_trials(study)} == {"joint"}
    gauss, maf, late = tuned(study, frame(study, FLAT)).trials
    assert (gauss.lr, maf.lr, late.lr) == (1e-3, 1e-2, 1e-3)
    assert late.base == gauss
    alone = grid(training="post-hoc", priors="maf", latents="2", seeds="0")
    assert {trial.labels["prior"] for trial in tuning_trials(alone)} == {"gauss"}


def test_each_precision_is_tuned_by_itself() -> None:
    study = grid(precision="float32,float64", latents="2")
    assert len(tuning_trials(study)) == 2 * 2 * 2
    tuned(study, frame(study, FLAT))


def test_a_rate_at_the_end_of_the_list_is_told() -> None:
    (low, high) = edge_warnings(frame(grid(latents="2"), FLAT))
    assert "chosen for gauss (D = 2) is the smallest of the list, 0.001" in low
    assert "chosen for maf (D = 2) is the largest of the list, 0.01" in high
    inner = grid(latents="2", tune_lr="1e-4,1e-3,1e-2", priors="gauss")
    assert not edge_warnings(frame(inner, {("gauss", 1e-4): -9.0, **FLAT, ("gauss", 1e-3): -8.0}))


def rings(figure: Figure) -> list[float]:
    return [
        float(line.get_xdata()[0])
        for ax in figure.axes
        for line in ax.lines
        if line.get_gid() == "chosen"
    ]


def test_the_figure_marks_what_was_chosen_and_what_diverged() -> None:
    study = grid(tune_lr="1e-3,1e-2,1e-1")
    found = frame(study, {**FLAT, ("gauss", 1e-1): NAN, ("maf", 1e-1): -30.0})
    figure = tuning_curves(found)
    assert len(figure.axes) == 2  # latent sizes
    assert rings(figure) == [1e-3, 1e-2] * 2
    lost = [ln for ax in figure.axes for ln in ax.lines if ln.get_gid() == "diverged"]
    assert [float(line.get_xdata()[0]) for line in lost] == [1e-1] * 2
    assert "tuning seeds 1000, none of them in the comparison" in figure._supxlabel.get_text()
    assert "diverged: 2 of 12" in figure._supxlabel.get_text()


def test_a_rate_whose_elbo_is_absurd_is_told_at_the_edge_and_flattens_nothing() -> None:
    study = grid(tune_lr="1e-3,1e-2,1e-1")
    found = frame(study, {**FLAT, ("gauss", 1e-1): -1e30, ("maf", 1e-1): -30.0})
    figure = tuning_curves(found)
    for ax in figure.axes:
        assert -40 < ax.get_ylim()[0] < ax.get_ylim()[1] < -15
        (told,) = (t for t in ax.texts if t.get_gid() == "beyond")
        assert told.get_text() == "\N{LEFTWARDS ARROW} \N{MINUS SIGN}1e+30"
        assert told.get_position()[0] == 1e-1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], Path]) -> Path:
    """A folder in which a tiny tuned grid has been run, while no test image could be scored."""
    folder = tmp_path_factory.mktemp("tuned")
    make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        scored = Scoring._score

        def score(self: Scoring, *rest: object) -> dict[str, float]:
            assert all(trial.seed < 1000 for trial in self.job.trials)
            return scored(self, *rest)

        patch.setattr(Scoring, "_score", score)
        leave_undrawn(patch)
        assert main(TUNED) == 0
    return folder


@pytest.fixture
def inside(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    leave_undrawn(monkeypatch)
    return finished / "results" / "local" / "digits"


def test_a_tuned_grid_leaves_what_was_tried_and_pairs_its_priors(inside: Path) -> None:
    tried, trials = pd.read_csv(inside / "tuning.csv"), pd.read_csv(inside / "trials.csv")
    assert list(tried.groupby(["prior", "lr"], sort=False).size()) == [2] * 6
    assert list(tried["status"][tried["lr"] == 1e30]) == ["diverged"] * 4
    assert set(trials["trial"]).isdisjoint(tried["trial"])
    assert (inside / "tuning.png").stat().st_size > 5000
    assert (inside / "tuning.svg").exists()
    chosen = tried[tried["chosen"]].groupby("prior")["lr"].unique()
    for prior, rows in trials.groupby("prior"):
        assert list(rows["lr"].unique()) == list(chosen[prior])
    means = tried.groupby(["prior", "lr"])["valid_elbo"].mean().dropna()
    for prior, (rate,) in chosen.items():
        assert rate == means[prior].idxmax()
    assert "lr" not in frames.axes(trials)
    summary = pd.read_csv(inside / "summary.csv").set_index("prior")
    assert summary.loc["diagonal", "pairs"] == 3


def test_rates_that_differ_from_prior_to_prior_are_no_axis(inside: Path) -> None:
    trials = pd.read_csv(inside / "trials.csv")
    trials["lr"] = trials["lr"].mask(trials["prior"] == "diagonal", 3e-3)
    assert frames.axes(trials) == ["net", "latent"]


def test_a_tuning_trial_is_a_fit_without_a_look_at_the_test_images(inside: Path) -> None:
    store = Store(f"sqlite:///{Path('mlflow.db').resolve()}", "digits")
    found = store.client.search_runs([store.experiment], "tags.trial LIKE '%'")
    tuning = [run for run in found if run.data.tags.get("role") == "tuning"]
    assert len(tuning) == 12
    assert {run.data.params["seed"] for run in tuning} == {"1000", "1001"}
    assert not {run.data.params["seed"] for run in found if run not in tuning} & {"1000", "1001"}
    for run in tuning:
        assert not [name for name in run.data.metrics if name.startswith("test/")]
        assert not [name for name in run.data.tags if name.startswith("evaluation.")]
        assert run.data.tags["complete"] == "true"
    sound = next(run for run in tuning if run.data.tags["status"] == "complete")
    assert {"train/elbo", "valid/elbo", "time/train_seconds"} <= set(sound.data.metrics)
    kept = {path.name for path in Path(sound.info.artifact_uri.removeprefix("file://")).iterdir()}
    assert kept == {"model", "trial.json"}


def test_a_finished_tuning_runs_nothing_and_is_drawn_again(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "bench.execution.executors.base.run_job", lambda *_, **__: pytest.fail("something was run")
    )
    (inside / "tuning.png").unlink()
    assert main([*TUNED, "--figures-only"]) == 0
    assert (inside / "tuning.png").exists()
    assert main([*TUNED, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "seeds 1000, 1001; 12 trials: 12 already complete" in out
    assert "6 trials: 6 already complete" in out
    assert "learning rate tuned" in out


def test_a_longer_list_tries_only_what_is_new(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = [*TUNED, "--tune-lr", "1e-4,1e-3,1e-2,1e30", "--dry-run"]
    assert main(wider) == 0
    out = capsys.readouterr().out
    assert "16 trials: 12 already complete, 4 to train" in out
    assert "gauss-z2-s1000 lr 0.0001" in out
    assert "6 trials, once the rates are chosen" in out
    assert out.count("train, once its learning rate is chosen") == 6
    assert main([*TUNED, "--seeds", "0:4", "--figures-only"]) == 1  # a seed is missing, no more
    assert main([*TUNED, "--tune-seeds", "5:6", "--figures-only"]) == 1
    assert "2 seeds" not in (err := capsys.readouterr()).err
    assert "6 of the 6 trials of the tuning are missing" in err.err


def test_a_trial_that_was_tuned_can_be_compared_later(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = ["--seeds", "1000", "--lr", "1e-3"]
    assert main([*GRID, *seed, "--dry-run"]) == 0
    assert "2 trials: 2 to score again" in capsys.readouterr().out


@pytest.mark.usefixtures("empty_store")
def test_a_trial_that_fails_ends_the_tuning_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    real = worker.fit

    def fit(trials: tuple, *args: object, **kwargs: object) -> list:
        if trials[0].lr == 1e-2:
            raise RuntimeError("out of memory")
        return real(trials, *args, **kwargs)

    leave_undrawn(monkeypatch)
    command = [*SMALL, "--priors", "gauss", "--seeds", "0", "--tune-lr", "1e-3,1e-2"]
    monkeypatch.setattr(worker, "fit", fit)
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "failed: out of memory: batch" in captured.out
    assert "1 of the 2 trials of the tuning are missing or failed" in captured.err
    assert not Path("results/local/digits/trials.csv").exists()
    monkeypatch.setattr(worker, "fit", real)
    assert main(command) == 0
    assert "1 already complete, 1 to train" in capsys.readouterr().out
