"""The audit's command line, end to end on a tiny model of the bundled digits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick import leave_undrawn

from bench import audit as module
from bench.audit import main
from bench.audits import Audited, audit_bounds, audit_frame, sentences
from bench.run import main as run
from bench.tracking import Store
from flowvae.trial import Audit, Trial

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

    calls: list[str] = []
    monkeypatch.setattr(module, "_audit", lambda *given: calls.append(given[2].name))
    assert main([run_id, run_id, *SMALL]) == 0
    assert f"gauss-z2-s0 {run_id}: already audited" in capsys.readouterr().out
    assert calls == []
    assert main([run_id, *SMALL, "--force"]) == 0
    assert calls == ["gauss-z2-s0"]


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

    monkeypatch.setattr(module, "_audit", interrupt)
    assert main([runs(store)["gauss-z2-s0"], *SMALL, "--force"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, bench.audit as a\ntry: a.main(['--help'])\n"
    code += "except SystemExit: print({'torch', 'numpy', 'mlflow', 'rich'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "5000)" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def made(name: str, *, lift: float) -> Audited:
    """An audit whose estimate lies 10, 3 and 1 nats below a lower bound of -80."""
    wave = np.sin(np.arange(9.0))
    wave -= wave.mean()
    ladder = {1: 10.0, 10: 3.0, 20: 1.0}
    arrays = {"lower": -80 + wave, "upper": -80 + lift + 2 * wave, "real_lower": -70 + wave}
    arrays |= {f"iw_k{k}": -80 + wave - short for k, short in ladder.items()}
    arrays |= {f"real_iw_k{k}": -70 + wave - short / 2 for k, short in ladder.items()}
    trial = Trial(prior=name, latent=2)
    return Audited("id", trial, AUDIT, arrays, {"audit/failed_draws": 0.01}, "cpu: test")


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
    assert len(frame) == 2 * (3 + 1 + 6)
    said = sentences(both)
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
