"""The audit's command line, end to end on a tiny model of the bundled digits."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.fast_commands import leave_undrawn
from support.oracles import quadrature

from bench.audit import __main__ as module
from bench.audit.__main__ import main
from bench.audit.figure import audit_bounds
from bench.audit.quadrature import quadrature_table as exact_table
from bench.audit.quadrature import record_exact, stored_scores
from bench.audit.read import AuditResult, read_audit
from bench.audit.summary import audit_frame, audit_sentences
from bench.cli.console import make_console
from bench.run import main as run
from bench.store.run_writer import RunWriter
from bench.store.runs import Store, load_run
from flowvae.data import load_data
from flowvae.errors import InputError
from flowvae.evaluation import quadrature as quadrature_module
from flowvae.trial import Audit, Evaluation, Trial

TINY = ["--latents", "2", "--seeds", "0:1", "--nets", "mlp[hidden=16]", "--epochs", "2"]
TINY += ["--nll-samples", "20"]
SMALL = ["--images", "9", "--chains", "3", "--temperatures", "5", "--leapfrogs", "2"]
SMALL += ["--samples", "20"]
AUDIT = Audit(images=9, chains=3, temperatures=5, leapfrogs=2, samples=20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], Path]) -> Path:
    """A folder with two fitted models, the second without its weights."""
    folder = tmp_path_factory.mktemp("finished")
    make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        leave_undrawn(patch)
        assert run([*TINY, "--priors", "gauss"]) == 0
        assert run([*TINY, "--priors", "maf[hidden=8]", "--keep-weights", "no"]) == 0
    return folder


@pytest.fixture
def store(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(finished)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(f"sqlite:///{finished}/mlflow.db", "digits")


def runs(store: Store) -> dict[str, str]:
    found = store.client.search_runs([store.experiment])
    return {run.info.run_name: run.info.run_id for run in found}


def test_an_audit_is_attached_drawn_and_not_repeated(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = runs(store)["gauss-z2-s0"]
    assert main([run_id, *SMALL]) == 0
    said = capsys.readouterr().out
    assert f"gauss-z2-s0 {run_id}: audited in" in said
    assert "standard error over images, not over seeds" in said

    found = store.client.get_run(run_id)
    assert found.data.tags[f"audit.{AUDIT.id}"] == "complete"
    folder = store.artifact(found, f"audits/{AUDIT.id}")
    lower, upper, iw, real, real_iw = (
        np.load(folder / f"{name}.npy")
        for name in ("lower", "upper", "iw_k20", "real_lower", "real_iw_k20")
    )
    metrics = found.data.metrics
    assert metrics["audit/lower"] == pytest.approx(lower.mean())
    assert metrics["audit/upper"] == pytest.approx(upper.mean())
    assert metrics["audit/gap"] == pytest.approx((upper - lower).mean())
    assert metrics["audit/iw_simulated"] == pytest.approx(iw.mean())
    assert metrics["audit/nll_annealed"] == pytest.approx(-real.mean())
    assert metrics["audit/nll_iw"] == pytest.approx(-real_iw.mean())
    assert 0.3 < metrics["audit/acceptance"] < 1
    assert metrics["audit/seconds"] > 0
    assert json.loads((folder / "means.json").read_text())["audit/gap"] == metrics["audit/gap"]
    description = json.loads((folder / "audit.json").read_text())
    assert description["temperatures"] == 5
    assert description["device"].startswith("c")
    assert np.load(folder / "acceptance.npy").shape == (3, 4)

    out = Path("results") / "local" / "digits"
    assert (out / "audit.png").stat().st_size > 5000
    assert (out / "audit.svg").exists()
    table = pd.read_csv(out / "audit.csv").set_index(["kind", "quantity"])
    assert table.loc[("simulated", "lower"), "mean"] == pytest.approx(lower.mean())
    assert table.loc[("test", "iw_k20"), "mean"] == pytest.approx(real_iw.mean())
    error = (upper - lower).std(ddof=1) / 3
    assert table.loc[("simulated", "width"), "se_images"] == pytest.approx(error)

    exact, error, scored = (
        np.load(folder / f"{name}.npy") for name in ("exact", "exact_error", "scored")
    )
    evaluation = store.artifact(found, f"evaluations/{Evaluation(samples=20).id}")
    np.testing.assert_array_equal(scored, np.load(evaluation / "loglik_fitted_k20.npy"))
    test = load_data("digits").test
    vae, _ = load_run(run_id)
    vae.precision = "float64"
    np.testing.assert_allclose(exact, quadrature(vae.double(), test), atol=0.02)
    assert error.max() < 0.01
    assert metrics["audit/nll_exact"] == pytest.approx(-exact.mean())
    assert metrics["audit/exact_error"] == pytest.approx(error.max())
    assert table.loc[("all test", "exact_above_iw"), "mean"] == pytest.approx(
        (exact - scored).mean()
    )
    assert table.loc[("all test", "exact_above_iw"), "most"] == pytest.approx(
        (exact - scored).max()
    )
    assert table.loc[("all test", "exact"), "images"] == 360
    assert f"by quadrature the NLL of 360 test images is {-exact.mean():.3f}" in said
    over = f"K = 20) is {(exact - scored).mean():.2f} nats above it"
    assert over in said

    # an audit of an earlier version has no exact evidence: it is added
    for name in ("exact.npy", "exact_error.npy", "scored.npy", "exact_means.json"):
        (folder / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_anneal", None)
        assert main([run_id, *SMALL]) == 0
    np.testing.assert_array_equal(np.load(folder / "exact.npy"), exact)
    assert over in capsys.readouterr().out

    calls: list[str] = []
    monkeypatch.setattr(module, "_integrate", lambda *given: calls.append("exact"))
    monkeypatch.setattr(module, "_anneal", lambda *given: calls.append(given[2].name))
    assert main([run_id, run_id, *SMALL]) == 0
    assert f"gauss-z2-s0 {run_id}: already audited" in capsys.readouterr().out
    assert calls == []
    assert main([run_id, *SMALL, "--force"]) == 0
    assert calls == ["gauss-z2-s0", "exact"]


def test_annealing_is_shown_where_quadrature_fails(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise InputError("log p(x) is not finite on 1 of 360 images")

    monkeypatch.setattr(quadrature_module, "evidence", refuse)
    monkeypatch.setattr(module, "RESULTS_FOLDER", Path("apart"))
    run_id = runs(store)["gauss-z2-s0"]
    other = [*SMALL, "--chains", "2"]
    for begins in ("audited in", "already audited"):
        assert main([run_id, *other]) == 1
        said = capsys.readouterr().out
        assert said.startswith(f"gauss-z2-s0 {run_id}: {begins}")
        assert f"gauss-z2-s0 {run_id}: log p(x) is not finite on 1 of 360 images" in said
        assert "gauss-z2-s0: importance sampling, fitted proposal, K = 20" in said
        assert "by quadrature" not in said
    assert (Path("apart") / "digits" / "audit.png").exists()


def test_scores_that_are_stale_or_no_numbers_are_left_out(store: Store) -> None:
    found = store.client.get_run(runs(store)["gauss-z2-s0"])
    own_scores = stored_scores(store, found)
    assert own_scores is not None
    assert own_scores.estimator == "fitted"
    scores = own_scores.loglik
    shown = replace(AUDIT, temperatures=4)
    record = RunWriter(store.client, found.info.run_id)
    record.client.log_text(record.run_id, '{"device": "cpu"}', f"audits/{shown.id}/audit.json")
    evidence = quadrature_module.Evidence(scores + 1.0, 0 * scores)
    read = partial(read_audit, store, found, Trial(prior="gauss", latent=2), shown)
    for own in (own_scores, None):  # audited again when its score is no longer told
        record_exact(record, shown, evidence, own, seconds=1.0)
        assert read().scored_samples == (own and 20)
        assert ("scored" in read().arrays) == (own is not None)
        if own:
            assert read().scored_estimator == "fitted"

    folder = store.artifact(found, f"evaluations/{Evaluation(samples=20).id}")
    means = folder / "means.json"
    before = means.read_text()
    try:
        means.write_text(json.dumps({"test/nll": math.inf}))
        found.data.metrics["test/nll"] = math.inf
        assert stored_scores(store, found) is None
    finally:
        means.write_text(before)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["0" * 32], "no run '" + "0" * 32),
        (["gauss-z2-s0", "--images", "none"], "bad --images 'none': expected"),
        (["gauss-z2-s0", "--images", "361", "--chains", "1"], "361 images: there are 360"),
        (["gauss-z2-s0", "--tracking-uri", "sqlite:///absent.db"], "there is no MLflow store"),
        (["gauss-z2-s0", "--device", "gpu"], "bad --device 'gpu'"),
        (["maf[hidden=8]-z2-s0"], "kept no weights"),
    ],
)
def test_what_cannot_be_audited_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    known = runs(store)
    assert main([known.get(word, word) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert expected in said
    assert len(said.splitlines()) == 1


def test_other_data_are_refused(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = runs(store)["gauss-z2-s0"]
    true = store.client.get_run(run_id).data.tags["data.hash"]
    store.client.set_tag(run_id, "data.hash", "0123456789abcdef")
    try:
        assert main([run_id, *SMALL, "--force"]) == 2
    finally:
        store.client.set_tag(run_id, "data.hash", true)
    assert "gauss-z2-s0 was trained on other data" in capsys.readouterr().err


def test_an_interrupt_has_its_own_status(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_anneal", interrupt)
    assert main([runs(store)["gauss-z2-s0"], *SMALL, "--force"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_what_is_written_shows_earlier_runs_of_the_same_audit(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = runs(store)["gauss-z2-s0"]
    assert main([run_id, *SMALL]) == 0
    console = make_console()
    (earlier,) = module._earlier_audits(
        console, store, AUDIT, []
    )  # not the other: it is not audited
    assert earlier.run_id == run_id
    assert "lower" in earlier.arrays
    assert not list(module._earlier_audits(console, store, AUDIT, [run_id]))
    assert not list(module._earlier_audits(console, store, replace(AUDIT, images=8), []))

    def lacks(text: str) -> Trial:
        raise InputError("there is no module named mine")

    monkeypatch.setattr(Trial, "from_json", lacks)
    assert not list(module._earlier_audits(console, store, AUDIT, []))
    assert "left out, there is no module named mine" in capsys.readouterr().out


def test_bounds_that_cross_by_chance_are_said_to_meet() -> None:
    (crossed, met) = audit_sentences(
        [replace(made("gauss", lift=-2.0), means={"audit/failed_draws": 0})]
    )
    assert "has no error that the bounds resolve on simulated images" in crossed
    assert "above the upper one by 2.000 ± " in met
    ahead = made("gauss", lift=0.5)
    ahead.arrays["real_iw_k20"] = ahead.arrays["real_lower"] + 0.25
    assert "the bound shows no error of it (-0.25 ± 0.00)" in audit_sentences([ahead])[0]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, bench.audit.__main__ as a\ntry: a.main(['--help'])\n"
    code += "except SystemExit: print({'torch', 'numpy', 'mlflow', 'rich'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "1000)" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def made(name: str, *, lift: float) -> AuditResult:
    """An audit whose estimate lies 10, 3 and 1 nats below a lower bound of -80."""
    wave = np.sin(np.arange(9.0))
    wave -= wave.mean()
    ladder = {1: 10.0, 10: 3.0, 20: 1.0}
    arrays = {"lower": -80 + wave, "upper": -80 + lift + 2 * wave, "real_lower": -70 + wave}
    arrays |= {f"encoder_{name}": bound for name, bound in arrays.items()}
    arrays |= {f"iw_k{k}": -80 + wave - short for k, short in ladder.items()}
    arrays |= {f"real_iw_k{k}": -70 + wave - short / 2 for k, short in ladder.items()}
    trial = Trial(prior=name, latent=2)
    audit = replace(AUDIT, estimator="encoder")
    return AuditResult("id", trial, audit, arrays, {"audit/failed_draws": 0.01}, "cpu: test")


def test_the_figure_shows_bracket_and_estimates() -> None:
    both = [made("gauss", lift=0.5), made("maf", lift=0.25)]
    figure = audit_bounds(both)
    figure.canvas.draw()
    for ax, width in zip(figure.axes, (0.5, 0.25), strict=True):
        (band,) = (patch for patch in ax.patches if patch.get_gid() == "bracket")
        assert [band.get_y(), band.get_height()] == pytest.approx([0, width])
        ends = {bar.get_label(): bar[0].get_ydata()[-1] for bar in ax.containers}
        assert ends == pytest.approx({"simulated": -1.0, "test": -0.5})
    frame = audit_frame(both)
    width = frame[(frame["name"] == "maf-z2-s0") & (frame["quantity"] == "width")]
    assert width["mean"].item() == pytest.approx(0.25)
    assert len(frame) == 2 * (3 + 1 + 6 + 3)
    said = audit_sentences(both)
    assert "K = 20 errs by 1.00 to 1.50 nats on simulated images (± 0.00)" in said[0]
    assert "On test images it errs by at least 0.50 ± 0.00." in said[0]
    assert said[1] == "gauss-z2-s0: 1.00% of the prior's draws were not finite."


def test_one_absurd_estimate_does_not_flatten_the_others() -> None:
    broken = made("maf", lift=0.25)
    broken.arrays["iw_k20"] = broken.arrays["iw_k20"] - 1e12
    figure = audit_bounds([made("gauss", lift=0.5), broken])
    figure.canvas.draw()
    assert -15 < figure.axes[0].get_ylim()[0] < -10
    (told,) = (t for t in figure.axes[1].texts if t.get_gid() == "beyond")
    assert "1e+12" in told.get_text()


def exact(name: str, seed: int, *, lift: float, over: float) -> AuditResult:
    """An audit of 40 test images with evidence around -60 - lift, the score below it by `over`."""
    of = made(name, lift=0.5)
    wave = np.sin(np.arange(40.0) + seed)
    wave -= wave.mean()
    truth = -60 - lift + wave + 0.01 * seed * lift
    chosen = np.array([3, 1, 45])  # one of them has no score
    lower = np.append(truth[chosen[:2]] - [0.25, 8], -50)
    arrays = {"exact": truth, "exact_error": 0 * truth + 4e-3, "scored": truth - over - wave / 10}
    arrays |= {"index": chosen, "real_lower": lower, "encoder_real_lower": lower}
    arrays |= {f"real_iw_k{k}": lower - 1 for k in of.ladder}
    return replace(
        of,
        run_id=f"{name}{seed}",
        trial=of.trial.but(seed=seed),
        arrays=of.arrays | arrays,
        scored_samples=20,
    )


def test_exact_evidence_is_said_and_compared() -> None:
    some = [exact("gauss", s, lift=0.0, over=6.0) for s in range(3)]
    some += [exact("maf", s, lift=2.0, over=3.0) for s in range(3)]
    said = audit_sentences(some)
    assert (
        "gauss-z2-s0: by quadrature the NLL of 40 test images is 60.000 (estimated error: "
        "at most 0.004 on each). The run's own score (importance weighting, K = 20) is 6.00 nats "
        "above it, 6.1 at most. The annealed bound is off by 4.125 nats in the median and 8.0 at "
        "most, on 2 of them."
    ) in said
    pair = next(line for line in said if line.startswith("At D = 2"))
    assert pair.startswith("At D = 2, the NLL of maf minus that of gauss: +1.980 nats [")
    assert "] by quadrature, -1.020 nats [" in pair
    assert pair.endswith("] by importance weighting, K = 20 (3 seeds: intervals over seeds "
                         "and images; indicative).")  # fmt: skip
    shown = exact_table(some)
    assert shown is not None
    cells = [list(column.cells)[0] for column in shown.columns]
    assert cells[:7] == ["gauss-z2-s0", "40", "60.000", "66.000", "20", "6.000", "6.1"]
    assert exact_table([made("gauss", lift=1)]) is None
    frame = audit_frame(some).set_index(["name", "kind", "quantity"])
    row = frame.loc[("maf-z2-s1", "all test", "exact_above_iw")]
    assert row["mean"] == pytest.approx(3)
    assert row["images"] == 40
    assert frame.loc[("maf-z2-s1", "test", "exact_above_annealed"), "most"] == pytest.approx(8)

    (single,) = (
        line for line in audit_sentences([some[0], some[3]]) if line.startswith("At D = 2")
    )
    assert "+2.000 nats by quadrature, -1.000 nats by importance weighting, K = 20" in single
    assert single.endswith("(1 seed: no interval).")
    assert not any("At D = 2" in line for line in audit_sentences(some[:3]))
    assert not any(
        "At D = 2" in line for line in audit_sentences([some[0], some[4]])
    )  # other seeds
    assert not any("At D = 2" in line for line in audit_sentences([made("gauss", lift=1)]))


def test_differences_tell_their_settings_and_what_three_seeds_are() -> None:
    def at(net: str, seeds: int, lift: float) -> list[AuditResult]:
        some = [exact("gauss", s, lift=0.0, over=6.0) for s in range(seeds)]
        some += [exact("maf", s, lift=lift, over=3.0) for s in range(seeds)]
        return [
            replace(each, run_id=f"{each.run_id}{net}", trial=each.trial.but(net=net))
            for each in some
        ]

    both = at("mlp[hidden=16]", 3, 2.0) + at("mlp[hidden=32]", 4, 4.0)
    three, four = (line for line in audit_sentences(both) if "minus that of" in line)
    assert three.startswith("At net = mlp[hidden=16], D = 2, the NLL of maf minus that of gauss: ")
    assert three.endswith("(3 seeds: intervals over seeds and images; indicative).")
    assert four.startswith("At net = mlp[hidden=32], D = 2, the NLL of maf minus that of gauss: ")
    assert four.endswith("(4 seeds: intervals over seeds and images).")


def test_the_figure_shows_what_is_exact() -> None:
    figure = audit_bounds([exact("gauss", 0, lift=0.0, over=6.0), made("maf", lift=0.25)])
    figure.canvas.draw()
    first, second = figure.axes
    (line,) = (line for line in first.lines if line.get_gid() == "exact")
    assert line.get_ydata()[0] == pytest.approx((0.25 + 8) / 2)
    assert first.get_ylim()[1] > 4.2
    assert any("40 test: exact" in text.get_text() for text in first.texts)
    assert not [line for line in second.lines if line.get_gid() == "exact"]


def test_where_both_starts_differ_is_said() -> None:
    result = made("gauss", lift=0.5)
    ahead = result.arrays["lower"] + 0.25
    assert not any("tighter" in line for line in audit_sentences([result]))
    for own, other, tighter in (
        (ahead, result.arrays["lower"], "fitted proposal"),
        (result.arrays["lower"], ahead, "encoder"),
    ):
        arrays = result.arrays | {"lower": own, "encoder_lower": other}
        (told,) = (line for line in audit_sentences([replace(result, arrays=arrays)])
                   if "tighter" in line)  # fmt: skip
        assert f"on simulated images the lower bound by the {tighter}'s chains" in told
        assert "is tighter by 0.250 \N{PLUS-MINUS SIGN} 0.000 nats" in told
    alone = replace(result, audit=replace(result.audit, start="encoder"))
    assert all(alone.disagreement(name) is None for name in ("lower", "upper", "real_lower"))
