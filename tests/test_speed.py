"""The benchmarks: both loops compute the same step, and a JSON of timings becomes a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import speed, tutorial
from bench.test_elbo_step import Pictures, Trainer
from flowvae.streams import global_stream
from flowvae.trial import Trial

STEP = """
import pytest

@pytest.mark.parametrize("what", ["optimiser step", "tutorial loop"])
def test_step(benchmark, what):
    facts = {"prior": "maf", "latent": 16, "what": what, "device": "cpu: a machine, 2 threads"}
    benchmark.extra_info |= facts | {"batch": 256, "data": "mnist", "images_per_second": 1e4}
    benchmark.pedantic(lambda: sum(range(1000)), rounds=5, warmup_rounds=1)

def test_other(benchmark):
    benchmark.pedantic(int, rounds=2)
"""


@pytest.fixture(scope="module")
def timings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON that pytest-benchmark itself wrote."""
    folder = tmp_path_factory.mktemp("timings")
    (folder / "test_step.py").write_text(STEP)
    file = folder / "speed.json"
    assert 0 == pytest.main([
        str(folder), f"--rootdir={folder}", f"--confcutdir={folder}", "-c", "/dev/null", "-qq",
        "--no-header", "-p", "no:cacheprovider", "--benchmark-quiet", f"--benchmark-json={file}",
    ])  # fmt: skip
    return file


def test_a_json_becomes_a_table_and_a_figure(
    timings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = speed.read_benchmarks(timings)
    assert list(table["what"]) == ["optimiser step", "tutorial loop"]
    assert set(table["rounds"]) == {5}
    stats = json.loads(timings.read_text())["benchmarks"][0]["stats"]
    assert table["median_seconds"][0] == stats["median"]
    assert table["iqr_seconds"][0] == stats["iqr"]
    assert speed.main([str(timings), "--out", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert "maf, D = 16: tutorial loop" in said
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"speed.png", "speed.svg", "speed.csv"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read"),
        ("", "is not JSON"),
        ("[]", "is not pytest-benchmark's"),
        ('{"benchmarks": []}', "holds no timing of an ELBO step (0 others)"),
        ('{"benchmarks": [{"extra_info": {}}]}', "holds no timing of an ELBO step (1 others)"),
        ('{"benchmarks": [{"extra_info": {"what": "x"}, "stats": {}}]}', "KeyError: 'prior'"),
    ],
)
def test_a_bad_file_is_one_line(
    content: str | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    if content is not None:
        file.write_text(content)
    assert speed.main([str(file), "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert "--benchmark-json" in err


def test_a_folder_that_cannot_be_made_is_one_line(
    timings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speed.main([str(timings), "--out", str(timings / "below")]) == 2
    assert "cannot write to --out" in capsys.readouterr().err


@pytest.mark.parametrize("prior", tutorial.PRIORS)
def test_the_tutorial_takes_the_same_step_as_the_trainer(prior: str) -> None:
    pictures = Pictures(8)
    images = (pictures.data >= 128).flatten(1).to(torch.uint8)
    trial = Trial(prior=prior, latent=3, dataset="mnist", precision="float64", batch=8)
    trainer = Trainer(trial, images)
    vae = trainer.stack.models[0]
    loss = tutorial.model(prior, latent=3).double()
    pairs: list[tuple[Any, Any]] = [
        (loss.encoder.hyper, vae.encoder),
        (loss.decoder.hyper, vae.decoder),
        (loss.prior, vae.prior),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    rows = torch.arange(8)[None]
    with global_stream(0, "noise"):
        noise = torch.randn(8, 3, dtype=torch.float64)[None]
    batch = torch.stack([pictures[i][0] for i in range(8)]).double()
    steps = tutorial.steps(loss, [(batch, None)])
    with global_stream(0, "noise"):
        expected = next(steps)

    trainer.batches = iter([(rows, noise)])
    terms = trainer.step()

    torch.testing.assert_close(-terms.elbo.mean(), expected, rtol=1e-12, atol=0)
    for theirs, ours in pairs:
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-8)
