"""The benchmarks: baselines compute what we compute, and a JSON of timings becomes figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from bench.benchmarks import __main__ as benchmarks_command
from bench.benchmarks import figures, pythae_nll, tutorial_loop
from bench.benchmarks.interleave import Runner, Turns
from bench.benchmarks.step_runner import DRAWN_BATCHES, SHAPE, RandomImages, StepRunner
from flowvae.evaluation.importance_weighting import log_weights
from flowvae.models.vae import build
from flowvae.numerics.precision import matrix_products
from flowvae.numerics.streams import global_stream
from flowvae.training.optimiser_steps import Epoch
from flowvae.trial import Trial

STEP = """
import pytest
import torch
from bench.benchmarks.interleave import BASELINES, FLOOR, OURS, Runner, race

CPU = torch.device("cpu")

@pytest.mark.parametrize("what", ["ELBO forward", "optimiser step"])
def test_step(benchmark, what):
    facts = {"prior": "maf", "latent": 16, "what": what, "device": "cpu: a machine, 2 threads"}
    benchmark.extra_info |= facts | {"batch": 256, "data": "mnist", "images_per_second": 1e4}
    benchmark.pedantic(lambda: sum(range(1000)), rounds=5, warmup_rounds=1)

@pytest.mark.parametrize("kind", ["training", "NLL"])
@pytest.mark.parametrize("stack", [1, 8])
def test_race(benchmark, kind, stack):
    benchmark.extra_info |= {"race": kind, "prior": "maf", "latent": 16, "stack": stack}
    benchmark.extra_info |= {"data": "mnist", "device": "cpu: a machine, 2 threads"}
    others = [Runner(BASELINES[kind], lambda: sum(range(2000)), 256)]
    others.append(Runner(FLOOR, int, 256 * stack))
    ours = Runner(OURS, lambda: sum(range(1000)), 256 * stack, "bf16")
    race(benchmark, ours, others, CPU, rounds=3)

def test_other(benchmark):
    benchmark.pedantic(int, rounds=2)
"""


ENDS = ("png", "svg", "csv")


@pytest.fixture(scope="module")
def timings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A JSON that pytest-benchmark itself wrote."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("timings")
    (folder / "test_step.py").write_text(STEP)
    file = folder / "speed.json"
    patch.setattr("bench.benchmarks.interleave.TURN_SECONDS", 1e-3)
    patch.delenv("PYTEST_XDIST_WORKER", raising=False)  # under which nothing is timed
    assert 0 == pytest.main([
        str(folder), f"--rootdir={folder}", f"--confcutdir={folder}", "-c", "/dev/null", "-qq",
        "--no-header", "-p", "no:cacheprovider", "--benchmark-quiet", f"--benchmark-json={file}",
    ])  # fmt: skip
    yield file
    patch.undo()


def test_a_json_becomes_tables_and_figures(
    timings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = figures.read_benchmarks(timings)
    assert list(table["what"]) == ["ELBO forward", "optimiser step"]
    assert set(table["rounds"]) == {5}
    stats = json.loads(timings.read_text())["benchmarks"][0]["stats"]
    assert table["median_seconds"][0] == stats["median"]
    assert table["iqr_seconds"][0] == stats["iqr"]
    assert benchmarks_command.main([str(timings), "--out", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert "training, maf, D = 16, bf16, stack of 8: " in said
    assert "times tutorial loop" in said
    assert "times Pythae's get_nll" in said
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {f"{name}.{end}" for name in ("speed", "races") for end in ENDS}


def test_a_ratio_is_the_median_over_rounds_of_the_ratio_within_one(tmp_path: Path) -> None:
    # ours takes 10 calls of 256 images a turn, the baseline 2 of 128; the third round was slow
    facts = {"race": "training", "prior": "maf", "latent": 16, "stack": 1, "precision": "bf16"}
    facts |= {"data": "mnist", "device": "cpu", "calls": 10, "images": 256}
    facts["others"] = {
        "tutorial loop": {"calls": 2, "images": 128, "seconds": [0.4, 0.4, 4.4]},
        "floor": {"calls": 1, "images": 256, "seconds": [0.05, 0.05, 0.55]},
    }
    made = {"extra_info": facts, "stats": {"data": [1.0, 1.0, 10.0]}}
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"benchmarks": [made]}))
    races = figures.read_races(file).set_index("what")
    assert races.loc["ours", "median_seconds"] == pytest.approx(0.1)
    assert races.loc["ours", "images_per_second"] == pytest.approx(2560)
    assert races.loc["tutorial loop", "images_per_second"] == pytest.approx(640)
    assert races.loc["tutorial loop", "ratio"] == pytest.approx(4)
    assert races.loc["floor", "ratio"] == pytest.approx(0.5)
    assert races.loc["floor", "ratio_q3"] == pytest.approx(0.525)
    (line,) = figures.ratio_lines(figures.read_races(file))
    assert line.startswith("training, maf, D = 16, bf16: 100 ms a step, 2,560 images a second; 4 ")
    assert "; 50% of the floor (" in line


def test_the_races_figure_says_gain_and_share_beside_each_row(timings: Path) -> None:
    races = figures.read_races(timings)
    figure = figures.draw_races(races)
    assert [ax.get_xlabel().split(",")[0].split("  ")[0] for ax in figure.axes] == [
        "training images per second", "importance-weighted NLL",
    ]  # fmt: skip
    for ax, (_, rows) in zip(figure.axes, races.groupby("race", sort=False), strict=True):
        told = {text.get_text() for text in ax.texts}
        gains = rows[~rows["what"].isin(["ours", "floor"])]["ratio"]
        assert {figures._format_gain(gain) for gain in gains} <= told
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert labels == ["maf", "bf16", "bf16, stack of 8"]
    note = text(figure)
    assert "D = 16" in note
    assert "cpu: a machine" in note


def text(figure: Figure) -> str:
    return figure._supxlabel.get_text().replace("\n", " ")  # type: ignore[attr-defined]


def test_a_turn_of_several_calls_opens_with_one_that_is_not_timed() -> None:
    calls: list[int] = []
    runner = Runner("counted", lambda: calls.append(1), 1)
    turns = Turns(runner, torch.device("cpu"), seconds=0)
    assert turns.calls == 1
    assert not calls
    assert turns.time_turn() > 0
    assert len(calls) == 1
    turns = Turns(runner, torch.device("cpu"), seconds=1e-3)
    assert turns.calls > 1
    calls.clear()
    turns.time_turn()
    assert len(calls) == turns.calls + 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read"),
        ("", "is not JSON"),
        ("[]", "is not pytest-benchmark's"),
        ('{"benchmarks": []}', "has no timing of an ELBO step or an NLL (0 others)"),
        (
            '{"benchmarks": [{"extra_info": {}}]}',
            "has no timing of an ELBO step or an NLL (1 others)",
        ),
        ('{"benchmarks": [{"extra_info": {"what": "x"}, "stats": {}}]}', "KeyError: 'prior'"),
        ('{"benchmarks": [{"extra_info": {"race": "NLL"}, "stats": {}}]}', "KeyError: 'data'"),
    ],
)
def test_a_bad_file_is_one_line(
    content: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    if content is not None:
        file.write_text(content)
    assert benchmarks_command.main([str(file), "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert "--benchmark-json" in err


def test_a_folder_that_cannot_be_made_is_one_line(
    timings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmarks_command.main([str(timings), "--out", str(timings / "below")]) == 2
    assert "cannot write to --out" in capsys.readouterr().err


@pytest.mark.parametrize("prior", tutorial_loop.PRIORS)
def test_the_tutorial_takes_the_same_step_as_the_trainer(prior: str) -> None:
    pictures = RandomImages(8)
    images = (pictures.data >= 128).flatten(1).to(torch.uint8)
    trial = Trial(prior=prior, latent=3, dataset="mnist", precision="float64", batch=8)
    trainer = StepRunner([trial], images)
    vae = trainer.stack.models[0]
    loss = tutorial_loop.model(prior, latent=3).double()
    pairs: list[tuple[Any, Any]] = [
        (loss.encoder.hyper, vae.encoder),
        (loss.decoder.hyper, vae.decoder),
        (loss.prior, vae.prior),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    rows = torch.arange(8)
    with global_stream(0, "noise"):
        noise = torch.randn(8, 3, dtype=torch.float64)
    batch = torch.stack([pictures[i][0] for i in range(8)]).double()
    steps = tutorial_loop.steps(loss, [(batch, None)])
    with global_stream(0, "noise"):
        expected = next(steps)

    trainer.draws = [Epoch(rows.repeat(DRAWN_BATCHES), noise.repeat(DRAWN_BATCHES, 1))]
    elbo = trainer.step()[0]

    torch.testing.assert_close(-elbo.mean() / 8, expected, rtol=1e-12, atol=0)
    for theirs, ours in pairs:
        for name, value in theirs.named_parameters():
            torch.testing.assert_close(ours.get_parameter(name), value, rtol=0, atol=1e-8)


def test_a_stack_takes_the_step_of_its_members() -> None:
    images = (RandomImages(8).data >= 128).flatten(1).to(torch.uint8)
    trials = [
        Trial(
            prior="maf[hidden=8]", latent=2, dataset="mnist", precision="float64", batch=8,
            net="mlp[hidden=8]", seed=seed,
        )
        for seed in range(2)
    ]  # fmt: skip
    together = StepRunner(trials, images)
    alone = [StepRunner([trial], images) for trial in trials]
    for _ in range(2):
        sums = together.step()
        assert sums.shape == (3, 2)
        apart = torch.cat([trainer.step() for trainer in alone], dim=1)
        torch.testing.assert_close(sums, apart, rtol=1e-10, atol=0)


def test_pythaes_nll_is_ours_at_the_same_noise() -> None:
    trial = Trial(prior="gauss", latent=3, dataset="mnist", precision="float64")
    vae = build(trial, SHAPE)
    model = tutorial_loop.model("gauss", latent=3).double()
    model.encoder.hyper.load_state_dict(vae.encoder.state_dict())
    model.decoder.hyper.load_state_dict(vae.decoder.state_dict())
    count, samples, batch = 4, 30, 10
    images = (RandomImages(count).data >= 128).flatten(1).to(torch.float64)
    with global_stream(0, "noise"):
        found = pythae_nll.nll(model, images, samples, batch)
    with global_stream(0, "noise"):
        draws = [
            torch.randn(batch, 3, dtype=torch.float64) for _ in range(count * samples // batch)
        ]
    noise = torch.cat(draws).view(count, samples, 3)
    with torch.no_grad(), matrix_products("float64", images.device):
        weights = log_weights(vae, images.to(torch.uint8), noise).elbo
    ours = -(weights.logsumexp(dim=1) - math.log(samples)).mean()
    assert found == pytest.approx(float(ours), rel=1e-10)
    with pytest.raises(ValueError, match="samples that are a multiple of the batch 20"):
        pythae_nll.nll(model, images, samples, 20)
