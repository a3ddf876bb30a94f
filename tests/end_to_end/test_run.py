"""The command line, end to end on a tiny grid of the bundled digits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import flowvae
from bench.execution import worker
from bench.execution.scoring import Scoring
from bench.figures import catalogue, differences
from bench.run import main
from bench.store.runs import Store, load_run
from bench.system import memory

TINY = ["--latents", "2", "--seeds", "0:3", "--nets", "mlp[hidden=16]", "--epochs", "2"]
TINY += ["--priors", "gauss,maf[hidden=8]", "--nll-samples", "30"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], Path]) -> Path:
    """A folder in which the tiny grid has been run."""
    folder = tmp_path_factory.mktemp("finished")
    make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(TINY) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder as the working folder, as it was left by the run."""
    monkeypatch.chdir(finished)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    kept = shutil.copyfile("mlflow.db", tmp_path / "kept.db")
    yield finished
    shutil.copyfile(kept, "mlflow.db")


def runs(folder: Path) -> list:
    store = Store(f"sqlite:///{folder}/mlflow.db", "digits")
    return store.client.search_runs([store.experiment], "tags.trial LIKE '%'")


def test_a_grid_leaves_tables_and_figures(finished: Path) -> None:
    out = finished / "results" / "local" / "digits"
    trials = pd.read_csv(out / "trials.csv")
    assert list(trials["prior"]) == ["gauss", "maf[hidden=8]"] * 3
    assert (trials["status"] == "complete").all()
    for column in ("latent", "seed", "train/elbo", "valid/elbo", "test/elbo", "test/nll"):
        assert trials[column].notna().all()
    gap = trials["test/elbo"] + trials["test/rate"] + trials["test/distortion"]
    assert gap.abs().max() < 1e-3
    assert (trials["test/nll"] <= -trials["test/elbo"]).all()
    for block in ("train", "evaluation"):  # all that python, torch and MLflow hold on a CPU
        kind = "peak" if memory._reset() else "peak_since_start"
        assert (trials[f"memory/{block}_{kind}_bytes"] > 10**8).all()
    for figure in ("nll_by_latent", "elbo_curves", "paired_difference", "latent_maps"):
        assert (out / f"{figure}.png").stat().st_size > 5000
        assert (out / f"{figure}.svg").exists()
    assert (out / "command.txt").read_text().startswith("python -m bench.run --latents 2")
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/') == len(list(out.glob("*.png")))
    assert "A first look that needs no download." in page
    for run in trials["run_id"]:
        assert f"http://127.0.0.1:5000/#/experiments/1/runs/{run}" in page
    assert "maf[hidden=8]" in (out / "report.md").read_text()
    assert r"\toprule" in (out / "table.tex").read_text()


def test_a_run_holds_what_a_person_looks_for(finished: Path) -> None:
    found = runs(finished)
    assert {run.info.run_name for run in found} >= {"gauss-z2-s0", "maf[hidden=8]-z2-s2"}
    run = found[0]
    assert run.data.params["latent"] == "2"
    assert run.data.params["dataset"] == "digits"
    assert {"train/elbo", "valid/rate", "test/nll", "time/images_per_second"} <= set(
        run.data.metrics
    )
    assert run.data.metrics["model/parameters"] > run.data.metrics["model/prior_parameters"] >= 0
    for tag in ("trial", "git.commit", "version.torch", "device", "threads", "precision"):
        assert run.data.tags[tag]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    (loglik,) = artifacts.glob("evaluations/*/loglik_fitted_k30.npy")
    assert np.load(loglik).mean() == pytest.approx(-run.data.metrics["test/nll"])
    assert (artifacts / "pictures" / "reconstructions.png").exists()
    curve = Store(f"sqlite:///{finished}/mlflow.db", "digits").client.get_metric_history(
        run.info.run_id, "train/elbo"
    )
    assert [point.step for point in curve] == [1, 2]


def test_a_run_tells_how_far_to_trust_it_and_what_it_is_made_of(finished: Path) -> None:
    for run in runs(finished):
        metrics = run.data.metrics
        parts = metrics["test/index_code"] + metrics["test/marginal_kl"]
        assert parts == pytest.approx(metrics["test/rate"], abs=0.5)  # with other draws
        artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
        (khat,) = artifacts.glob("evaluations/*/khat.npy")
        assert np.load(khat).shape == (360,)
        share = np.mean(~(np.load(khat) <= 0.7))
        assert metrics["test/khat_high"] == pytest.approx(share)
        assert 0 < share < 1
        (log_q,) = artifacts.glob("evaluations/*/surgery/log_q.npy")
        assert np.load(log_q).shape == (360,)


@pytest.mark.usefixtures("empty_store")
def test_post_hoc_priors_are_arms_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = differences.joint_post_hoc
    monkeypatch.setattr(
        catalogue, "FIGURES", {stages.__name__: catalogue.FIGURES[stages.__name__]}
    )
    assert main([*TINY, "--training", "joint,post-hoc"]) == 0
    out = capsys.readouterr().out
    assert "6 already complete, 3 to train" in out
    assert "the test NLL of maf[hidden=8] post-hoc minus that of gauss" in out
    assert Path("results/local/digits/joint_post_hoc.png").stat().st_size > 5000
    by_id = {run.info.run_id: run for run in runs(folder)}
    late = [run for run in by_id.values() if run.data.params["training"] == "post-hoc"]
    assert {run.data.params["prior"] for run in late} == {"maf[hidden=8] post-hoc"}
    for run in late:
        base = by_id[run.data.tags["base"]]
        assert (base.data.params["prior"], base.data.params["seed"]) == (
            "gauss",
            run.data.params["seed"],
        )
        assert run.data.metrics["test/distortion"] == base.data.metrics["test/distortion"]
        assert run.data.metrics["test/index_code"] == base.data.metrics["test/index_code"]
        assert run.data.metrics["test/rate"] != base.data.metrics["test/rate"]


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_a_post_hoc_prior_without_its_base_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = [*TINY, "--seeds", "0", "--training", "post-hoc"]
    assert main([*grid, "--keep-weights", "no"]) == 2
    assert "needs the weights of its base: --keep-weights yes" in capsys.readouterr().err
    assert main([*TINY, "--seeds", "0", "--priors", "gauss", "--keep-weights", "no"]) == 0
    assert main(grid) == 1
    assert "kept no weights" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_a_base_that_diverged_takes_no_other_member_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = [*TINY, "--stack", "2", "--seeds", "0:2"]
    assert main([*tiny, "--priors", "gauss"]) == 0
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "digits")
    (run,) = (run for run in runs(tmp_path) if run.data.params["seed"] == "1")
    store.client.set_tag(run.info.run_id, "status", "diverged")
    assert main([*tiny, "--training", "joint,post-hoc"]) == 1
    out = capsys.readouterr().out
    assert "gauss-z2-s1, which it starts from, diverged" in out
    found = {
        (run.data.params["prior"], run.data.params["seed"]): run.data.tags["status"]
        for run in runs(tmp_path)
    }
    assert found["maf[hidden=8] post-hoc", "0"] == "complete"
    assert found["maf[hidden=8] post-hoc", "1"] == "diverged"
    assert main([*tiny, "--training", "joint,post-hoc"]) == 1  # a result, not tried again
    assert "6 already complete" in capsys.readouterr().out


def test_figures_of_a_precision_that_this_machine_lacks_can_be_redrawn(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = [*TINY, "--nll-precision", "tf32", "--device", "cpu"]
    assert main(grid) == 2
    assert "precision tf32 needs a CUDA device" in capsys.readouterr().err
    assert main([*grid, "--figures-only"]) == 2  # looks into the store, which holds none yet
    assert "holds no finished trial of this grid" in capsys.readouterr().err


def test_a_saved_run_is_the_model_that_was_scored(folder: Path) -> None:
    run = next(run for run in runs(folder) if run.info.run_name == "maf[hidden=8]-z2-s0")
    vae, trial = load_run(run.info.run_id)
    assert trial.id == run.data.tags["trial"]
    data = flowvae.load_data(trial.dataset)
    scores = flowvae.evaluate(vae, data.test, flowvae.Evaluation(samples=30), seed=trial.seed)
    assert -scores.loglik[30].mean() == run.data.metrics["test/nll"]
    with pytest.raises(flowvae.InputError, match="no run 'abc'"):
        load_run("abc")


def test_a_finished_grid_runs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        "bench.report.build.draw_all", lambda analysis, _: drawn.append(len(analysis.trials)) or []
    )
    monkeypatch.setattr(
        "bench.execution.executors.base.run_job", lambda *_, **__: pytest.fail("something was run")
    )
    assert main(TINY) == 0
    assert "6 already complete" in capsys.readouterr().out
    assert main([*TINY, "--figures-only"]) == 0
    assert drawn == [6, 6]


@pytest.mark.usefixtures("no_figures")
def test_more_samples_score_anew_and_train_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = [*TINY, "--estimator", "encoder"]
    monkeypatch.setattr(worker, "fit", lambda *_, **__: pytest.fail("something was trained"))
    assert main(encoder) == 0
    before = pd.read_csv("results/local/digits/trials.csv")
    assert main([*encoder, "--nll-samples", "100"]) == 0
    assert "6 to score again" in capsys.readouterr().out
    after = pd.read_csv("results/local/digits/trials.csv")
    assert (after["nll_samples"] == 100).all()
    assert (after["test/nll"] < before["test/nll"]).all()
    assert after["test/nll_k1"].to_numpy() == pytest.approx(before["test/nll_k1"].to_numpy())
    assert main(encoder) == 0  # the smaller number is still there, as it was
    again = pd.read_csv("results/local/digits/trials.csv")
    assert (again["test/nll"] == before["test/nll"]).all()
    assert main(TINY) == 0  # leaves the table as it was


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_what_the_encoder_scored_is_scored_anew_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one = [*TINY, "--seeds", "0", "--priors", "gauss"]
    table = Path("results/local/digits/trials.csv")
    assert main([*one, "--estimator", "encoder"]) == 0
    before = pd.read_csv(table)
    (run,) = runs(tmp_path)
    client = Store(f"sqlite:///{tmp_path}/mlflow.db", "digits").client
    client.delete_tag(run.info.run_id, "nll_estimator")  # as runs were before the choice
    monkeypatch.setattr(worker, "fit", lambda *_, **__: pytest.fail("something was trained"))
    capsys.readouterr()
    assert main(one) == 0
    assert "1 trial: 1 to score again" in capsys.readouterr().out
    after = pd.read_csv(table)
    assert list(before["nll_estimator"]) == ["encoder"]
    assert list(after["nll_estimator"]) == ["fitted"]
    assert list(after["run_id"]) == list(before["run_id"])
    assert runs(tmp_path)[0].data.tags["nll_estimator"] == "fitted"
    assert main([*one, "--estimator", "encoder"]) == 0
    assert "1 already complete" in capsys.readouterr().out
    again = pd.read_csv(table)
    scores = [c for c in before if c.startswith(("test/", "nll_", "run_id", "train/"))]
    pd.testing.assert_frame_equal(again[scores], before[scores], check_exact=True)


@pytest.mark.usefixtures("no_figures")
def test_force_trains_again_to_the_same_bits(folder: Path) -> None:
    before = pd.read_csv("results/local/digits/trials.csv")
    assert main([*TINY, "--seeds", "1", "--force"]) == 0
    after = pd.read_csv("results/local/digits/trials.csv")
    before = before[before["seed"] == 1]
    assert not set(before["run_id"]) & set(after["run_id"])
    for column in ("train/elbo", "test/nll", "test/elbo"):
        assert list(after[column]) == list(before[column])


def test_a_dry_run_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "6 trials: 6 to train" in out
    assert "maf[hidden=8]-z2-s1" in out
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_a_failure_and_a_divergence_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    real, calls = worker.fit, []

    def fit(trials: tuple, *args: object, **kwargs: object) -> list:
        calls.append(trials)
        if trials[0].name == "gauss-z2-s1" and len(calls) < 6:
            raise RuntimeError("out of memory")
        return real(trials, *args, **kwargs)

    monkeypatch.setattr(worker, "fit", fit)
    small = [*TINY, "--priors", "gauss"]
    assert main(small) == 1
    out = capsys.readouterr().out
    assert (
        "failed: out of memory: batch 64, net mlp[hidden=16], D = 2; a smaller --batch or net"
        in out
    )
    assert main([*small, "--lr", "1e30", "--seeds", "0"]) == 1
    assert "diverged: epoch 1" in capsys.readouterr().out
    assert len(calls) == 4
    assert main([*small, "--lr", "1e30", "--seeds", "0"]) == 1  # a result: not run again
    assert len(calls) == 4
    assert main(small) == 1  # the failure is tried again, and nothing else
    assert len(calls) == 5
    assert main(small) == 0
    assert len(calls) == 6


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_a_stack_that_does_not_fit_in_memory_is_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    real, sizes = worker.fit, []

    def fit(trials: tuple, *args: object, **kwargs: object) -> list:
        sizes.append(len(trials))
        if len(trials) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(trials, *args, **kwargs)

    monkeypatch.setattr(worker, "fit", fit)
    assert main([*TINY, "--priors", "gauss", "--seeds", "0:5", "--stack", "5"]) == 0
    assert sizes == [5, 2, 3, 1, 2]
    assert "a stack of 5 does not fit in memory: two halves are tried" in capsys.readouterr().out
    frame = pd.read_csv("results/local/digits/trials.csv")
    assert list(frame["status"]) == ["complete"] * 5
    assert list(frame["stack"]) == [2, 2, 1, 2, 2]


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_a_stack_that_has_trained_is_not_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def fit(*_: object, on_epoch: Callable, **__: object) -> list:
        on_epoch(1, [{"train/elbo": -1.0}] * 2)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(worker, "fit", fit)
    assert main([*TINY, "--priors", "gauss", "--seeds", "0:2", "--stack", "2"]) == 1
    assert capsys.readouterr().out.count("failed: out of memory: a stack of 2, batch 64") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--priors", "gaus"], "unknown prior 'gaus'"),
        (["--prior", "gauss"], "did you mean --priors"),
        (["--epochs"], "expected one argument"),
        (["--stack", "0"], "bad --stack"),
        (["--device", "tpu"], "bad --device 'tpu'"),
        (["--device", "cuda:99"], "no device 'cuda:99'"),
        (["--figures-only"], "nothing to draw"),
        (["nothing"], "unknown experiment"),
        (["tutorial", "--select", "best"], "validation"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not any(tmp_path.iterdir())


def test_help_needs_no_torch_and_list_knows_all() -> None:
    probe = "import sys; sys.modules['torch'] = None; from bench.run import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--nll-samples" in done.stdout


def test_list_shows_names_options_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for name in (*flowvae.PRIORS, *flowvae.NETS, *flowvae.DATASETS, "tutorial"):
        assert f"  {name}  " in out
    assert "bins=8" in out
    assert "coupling=false" in out  # an option that was added later
    assert "note: its normalising constant is an estimate" in out
    columns = {len(line) - len(line.lstrip()) for line in out.splitlines() if "arXiv" in line}
    assert columns == {4 + len("caltech101-silhouettes")}


THIRD_PARTY = """
from flowvae.specs.values import Count

def wide(space, *, width: Count = 3):
    "A wide prior."
"""


def test_list_shows_what_installed_packages_bring_and_needs_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "third_party_list.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FLOWVAE_DATA", str(tmp_path / "nowhere"))
    points = {"wide": "third_party_list:wide", "broken": "third_party_list:gone"}
    real = metadata.entry_points

    def entry_points(**select: str) -> object:
        if select.get("group") != "flowvae.priors":
            return real(**select)
        return [metadata.EntryPoint(name, at, select["group"]) for name, at in points.items()]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert "A wide prior" in out
    assert "installed: third_party_list:wide; third_party_list, not part of flowvae" in out
    assert "width=3" in out
    assert "unknown function 'gone'" in out  # and hides no other
    assert not (tmp_path / "nowhere").exists()


def test_the_recipe_tells_what_is_not_at_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--schedule", "cosine", "--warmup", "2", "--patience", "1", "--prior-lr", "1e-4"]
    assert main([*TINY, *more, "--clip", "5", "--dry-run"]) == 0
    assert (
        "recipe     2 epochs, batch 64, Adam 0.002, weights of the best epoch, gradients clipped "
        "at 5, prior's own learning rate 0.0001, schedule cosine, warm-up 2 epochs, patience "
        "1 epoch, float32"
    ) in capsys.readouterr().out
    Path("mine.toml").write_text("priors = ['gauss', 'maf']\n[each.maf]\nepochs = 3\n")
    assert main(["mine.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "recipe     batch 256, Adam 0.001, weights of the last epoch, float32" in out
    assert "recipe     gauss: 64 epochs; maf: 3 epochs" in out


def test_tuning_without_validation_images_is_refused_where_they_are_found_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.eye(64).reshape(64, 8, 8)
    np.savez("own.npz", train=images, valid=images[:0], test=images)
    own = ["--dataset", f"file[path={tmp_path}/own.npz,binarise=fixed]", "--priors", "gauss"]
    assert main([*own, "--tune-lr", "1e-3,1e-2"]) == 2
    assert "--tune-lr needs validation images" in capsys.readouterr().err


@pytest.mark.usefixtures("empty_store")
def test_an_interrupted_run_is_marked_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupt(*_: object, **__: object) -> list:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "fit", interrupt)
    assert main([*TINY, "--seeds", "0"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [run.info.status for run in runs(tmp_path)] == ["KILLED"]


@pytest.mark.usefixtures("no_figures")
def test_the_store_is_found_where_it_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/deep/store.db")
    assert main([*TINY, "--seeds", "0", "--priors", "gauss", "--keep-weights", "no"]) == 0
    assert (tmp_path / "deep" / "store.db").exists()
    again = [*TINY, "--seeds", "0", "--priors", "gauss", "--nll-samples", "40"]
    assert main(again) == 1  # its weights were not kept


def test_scores_and_trial_are_plain_files(finished: Path) -> None:
    (model,) = list(finished.glob("mlruns/*/*/artifacts/model"))[:1]
    assert json.loads((model / "trial.json").read_text())["latent"] == 2
    assert {path.name for path in model.iterdir()} == {
        "weights.safetensors",
        "trial.json",
        "image.json",
    }
    assert os.path.getsize(model / "weights.safetensors") > 1000


@pytest.mark.usefixtures("no_figures", "empty_store")
@pytest.mark.parametrize(("error", "first"), [(KeyboardInterrupt, 130), (OSError, 1)])
def test_a_member_that_was_recorded_stays_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type, first: int
) -> None:
    """What befalls one member of a stack, after another is recorded, is its own."""
    monkeypatch.chdir(tmp_path)
    real = Scoring.record

    def record(self: Scoring, fitted: flowvae.Fitted, *rest: object) -> object:
        if fitted.trial.seed == 1:
            raise error("no space left")
        return real(self, fitted, *rest)

    command = [*TINY, "--priors", "gauss", "--stack", "3"]
    monkeypatch.setattr(Scoring, "record", record)
    assert main(command) == first
    ended = {run.info.run_name: run.info.status for run in runs(tmp_path)}
    assert ended["gauss-z2-s0"] == "FINISHED"
    assert ended["gauss-z2-s1"] == ("KILLED" if first == 130 else "FAILED")
    monkeypatch.setattr(Scoring, "record", real)
    monkeypatch.setattr(
        "flowvae.training.optimiser_steps.Steps.take", None
    )  # what is trained is kept
    assert main(command) == 0
    ended = [(run.info.run_name, run.info.status) for run in runs(tmp_path)]
    assert ended.count(("gauss-z2-s0", "FINISHED")) == 1
    assert ended.count(("gauss-z2-s1", "FINISHED")) == 1
    assert len(ended) == (3 if first == 130 else 4)  # a run that was killed goes on
    assert not any(Path("results/local/digits/checkpoints").iterdir())
    trials = pd.read_csv("results/local/digits/trials.csv")
    assert list(trials["status"]) == ["complete"] * 3


@pytest.mark.usefixtures("no_figures")
def test_seeds_that_never_ran_are_counted_and_keep_their_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*TINY, "--seeds", "0:4", "--priors", "nsf[hidden=8],gauss", "--figures-only"]
    assert main(more) == 1
    out = capsys.readouterr().out
    assert "1 of 4 seeds missing" in out
    assert "4 of 4 seeds missing" in out


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_weights_ruined_by_the_last_step_are_a_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ruin = ["--valid", "0", "--select", "last", "--epochs", "1", "--batch", "2000", "--lr", "1e38"]
    assert main([*TINY, "--seeds", "0", "--priors", "gauss", *ruin]) == 1
    assert "diverged: " in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures", "empty_store")
def test_without_git_the_trials_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.store import run_info

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    run_info._git.cache_clear()
    assert main([*TINY, "--seeds", "0", "--priors", "gauss"]) == 0
    run_info._git.cache_clear()
    assert runs(tmp_path)[0].data.tags["git.commit"] == "unknown"
