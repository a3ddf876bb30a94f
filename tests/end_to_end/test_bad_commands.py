"""Whole command lines that are wrong: status 2, one line, and nothing left in the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fast_commands import leave_undrawn
from support.malformed import LONGEST, NASTY, damaged, examples, garbled, refusal

from bench import run
from bench.audit import __main__ as audit_command
from bench.benchmarks import figures
from bench.cli.parser import EXIT_COMPLETE, EXIT_USAGE
from bench.report import __main__ as report_command
from bench.store.runs import load_run
from bench.studies import coverage, precision
from bench.studies.step_time import __main__ as step_time_command

TINY = ["--priors", "gauss", "--latents", "2", "--seeds", "0", "--nets", "mlp[hidden=4]"]
TINY += ["--epochs", "1", "--nll-samples", "2"]
STORES = [
    "foo://bar", "sqlite:", "sqlite://", "sqlite:///", "sqlite:////", "sqlite:///.", "sqlite:x",
    "sqlite:///:memory:", "sqlite:///x?mode=ro", "sqlite+foo:///x", "sqlite:///" + "x" * 300,
    "sqlite:///" + "x/" * 3000, "sqlite:////dev/null", "/tmp", "://",
    "http://[", "http://localhost:99999", "mysql://", "postgresql://u@h/db", "file:", "uc:x",
    "sqlite:///a\nb", "sqlite:///\udcff", "\x1b[31m",
]  # fmt: skip
# Of `--flag=--` argparse in Python 3.11 makes an empty list.
VALUES = [value for value in NASTY if value != "--"]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, without our variables in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("FLOWVAE_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], scratch: Path
) -> Callable[[Callable[[Sequence[str]], int], Sequence[str]], str]:
    """Runs a command that may do nothing but refuse or look; returns what it said against it."""

    def call(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> str:
        try:
            status = main(argv)
        except SystemExit as ended:  # --help
            status = int(ended.code or 0)
        said = capsys.readouterr().err
        assert not os.listdir(scratch), argv
        if status == EXIT_COMPLETE:
            return ""
        assert status == EXIT_USAGE
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert len(said) < LONGEST
        return said

    return call


FLAGS = {
    "--data-dir": ["."], "--device": ["cpu", "cuda:0"], "--stack": ["auto", "4"],
    "--name": ["my-study"], "--keep-weights": ["yes"], "--resolution": ["0.1"],
    "--priors": ["gauss,nsf[bins=16]"], "--latents": ["2,8"], "--seeds": ["0:2"],
}  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS)
@given(data=st.data())
@examples(30)
def test_run(flag: str, data: st.DataObject, refused: Callable[..., str]) -> None:
    value = data.draw(garbled(FLAGS[flag]).filter(lambda value: value != "--"))
    refused(run.main, [*TINY, f"{flag}={value}", "--dry-run"])


@given(argv=st.lists(st.sampled_from(VALUES) | st.text(max_size=5), max_size=3))
@examples(100)
def test_words(argv: list[str], refused: Callable[..., str]) -> None:
    refused(run.main, [*argv, "--dry-run", *TINY])


@pytest.mark.parametrize(
    ("main", "typed", "meant"),
    [
        (run.main, "--priors gauss maf", "--priors gauss,maf"),
        (run.main, "--priors=gauss maf", "--priors gauss,maf"),
        (run.main, "--priors gauss, maf, nsf", "--priors gauss,maf,nsf"),
        (run.main, "digits --priors gauss maf --epochs 1", "--priors gauss,maf"),
        (run.main, "--latents 2 8 16 --seeds 0", "--latents 2,8,16"),
        (run.main, "--priors gauss maf tutorial", "--priors gauss,maf"),
        (run.main, "--priors gauss tutorial maf", "--priors gauss,maf"),
        (run.main, "--priors gauss maf tutorail", "--priors gauss,maf"),
        (run.main, "--priors gauss maf mine.toml", "--priors gauss,maf"),
        (run.main, "--name maf --priors gauss maf", "--priors gauss,maf"),
        (step_time_command.main, "--latents 2 8", "--latents 2,8"),
        (report_command.main, "digits --only prior=gauss maf", "--only prior=gauss,maf"),
    ],
)
def test_a_list_with_spaces_is_told_to_take_commas(
    main: Callable[..., int], typed: str, meant: str, refused: Callable[..., str]
) -> None:
    said = refused(main, typed.split())
    told = said.partition(": lists are comma-separated, without spaces, such as ")[2]
    assert told.partition(" (")[0].strip() == meant
    assert "comma" not in refused(run.main, ["--priors", "gauss", "--device", "cpu", "maf"])
    assert "comma" not in refused(run.main, ["maf", "--priors", "gauss"])


def test_an_experiment_behind_a_list_is_none_of_it(refused: Callable[..., str]) -> None:
    said = refused(run.main, ["--latents", "2", "tutorail"])
    assert "unknown experiment 'tutorail'" in said
    assert "did you mean 'tutorial'?" in said
    assert "comma" not in said


def test_a_dry_run_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "flowvae.data.mnist_family._download", lambda *_: pytest.fail("it downloaded")
    )
    wanted = ["--dataset", "fashion-mnist", "--priors", "gauss,maf", "--latents", "2"]
    assert run.main([*wanted, "--seeds", "0:3", "--dry-run"]) == EXIT_COMPLETE
    said = capsys.readouterr().out
    assert "Fashion-MNIST is not in data/FashionMNIST/raw: a run downloads it first, from" in said
    assert "6 trials" in said
    assert not os.listdir(scratch)


@pytest.mark.parametrize("uri", STORES, ids=range(len(STORES)))
def test_stores(uri: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused(run.main, [*TINY, "--figures-only", f"--tracking-uri={uri}"])
    assert "--tracking-uri, else MLFLOW_TRACKING_URI" in said
    assert refused(run.main, [*TINY, f"--tracking-uri={uri}"]) == said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert refused(audit_command.main, ["0" * 32]) == said


@pytest.mark.parametrize("value", VALUES[::3], ids=range(len(VALUES[::3])))
def test_folders_of_data(
    value: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [*TINY, "--dataset", "omniglot", "--dry-run"]
    assert "--data-dir or FLOWVAE_DATA" in refused(run.main, [*wanted, f"--data-dir={value}"])
    if "\0" not in value and value != "\ud800":  # no environment holds these
        monkeypatch.setenv("FLOWVAE_DATA", value)
        assert "--data-dir or FLOWVAE_DATA" in refused(run.main, wanted)


@pytest.mark.parametrize("value", [*VALUES, *STORES], ids=range(len(VALUES) + len(STORES)))
def test_what_is_to_be_reported(value: str, refused: Callable[..., str]) -> None:
    for name in (value, f"{value}#digits", f"sqlite:///{value}", f"./{value}"):
        if not name.startswith("-"):
            assert refused(report_command.main, [name])
    assert refused(report_command.main, ["digits", f"--only={value}"])


OTHERS = {
    "audit": (
        audit_command.main,
        ["x"],
        ["images", "chains", "temperatures", "leapfrogs", "samples"],
    ),
    "precision": (precision.main, [*TINY, "--dry-run"], ["lower", "name", "resolution"]),
    "sweep": (
        step_time_command.main,
        ["--device=cpu", "--out=/dev/null/x"],
        ["priors", "latents", "batches", "stacks", "precision", "net", "seconds-per-point"],
    ),
    "report": (
        report_command.main,
        ["digits"],
        ["name", "resolution", "nll-samples", "nll-images", "nll-precision", "tracking-uri"],
    ),
    "coverage": (coverage.main, ["--out=/dev/null/x"], ["tables", "images", "seed"]),
}


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands(command: str, refused: Callable[..., str]) -> None:
    main, given, flags = OTHERS[command]
    for first, flag in enumerate(flags):  # each value meets one flag or two
        for value in VALUES[first % 3 :: 3]:
            said = refused(main, [*given, f"--{flag}={value}"])
            assert said or command == "precision"


@pytest.mark.parametrize(
    ("main", "argv", "told"),
    [
        (precision.main, [*TINY, "--lower", ","], "--lower ',' is empty"),
        (precision.main, [*TINY, "--lower", "bf16,half"], "bad --lower 'bf16,half'"),
        (step_time_command.main, ["--priors", ""], "--priors '' is empty"),
        (
            step_time_command.main,
            ["--batches", "9999999999"],
            "bad --batches '9999999999': expected sizes of",
        ),
        (audit_command.main, ["x", "--chains", "0"], "bad --chains '0': expected a whole number"),
        (coverage.main, ["--seed", "-1"], "--seed: expected a whole number in 0.."),
        (coverage.main, ["--images", "10000000000"], "--images: expected a whole number in 11.."),
        (coverage.main, ["--out", "/dev/null/x"], "cannot write to --out /dev/null/x"),
        (run.main, [*TINY, "--stack", "9" * 5000], "bad --stack '999"),
    ],
)
def test_what_is_said(
    main: Callable[..., int], argv: list[str], told: str, refused: Callable[..., str]
) -> None:
    assert told in refused(main, argv)


TIMED = {
    "benchmarks": [
        {
            "extra_info": {
                "race": "training", "prior": "maf", "latent": 16, "stack": 1, "data": "mnist",
                "precision": "float32", "device": "cpu", "calls": 2, "images": 512,
                "others": {"floor": {"calls": 3, "images": 512, "seconds": [0.1, 0.2]}},
            },
            "stats": {"data": [0.1, 0.2]},
        },
        {
            "extra_info": {
                "prior": "maf", "latent": 16, "what": "step", "device": "cpu", "batch": 256,
                "data": "mnist", "images_per_second": 3.5,
            },
            "stats": {"median": 0.1, "iqr": 0.1, "q1": 0.1, "q3": 0.2, "rounds": 3},
        },
    ]
}  # fmt: skip


@given(content=damaged(json.dumps(TIMED).encode()))
@examples(200)
def test_timings(content: bytes, scratch: Path) -> None:
    path = scratch / "timed.json"
    path.write_bytes(content)
    for read in (figures.read_races, figures.read_benchmarks):
        said = refusal(read, path)
        assert said is None or str(path) in said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], Path]) -> str:
    """A store with one run; its address."""
    folder = tmp_path_factory.mktemp("finished")
    make_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        leave_undrawn(patch)
        assert run.main([*TINY, "--name", "\u00fc [b]x[b] \u65e5\u672c ."]) == EXIT_COMPLETE
        assert (folder / "results" / "local" / "\u00fc [b]x[b] \u65e5\u672c .").is_dir()
    return f"sqlite:///{folder}/mlflow.db"


IDS = ["0" * 32, "../../etc", "x" * 10_000, "' OR 1=1 --", "%", "*", "\u0660" * 32, "a/b"]


@given(run_id=st.sampled_from([*IDS, *VALUES]) | st.text())
@examples(80)
def test_run_ids(run_id: str, finished: str) -> None:
    said = refusal(load_run, run_id, finished)
    assert said
    assert "no run" in said


def test_run_ids_of_an_audit(finished: str, refused: Callable[..., str]) -> None:
    for run_id in IDS:
        assert "no run" in refused(audit_command.main, ["--tracking-uri", finished, "--", run_id])


@pytest.mark.parametrize(
    "flags",
    [
        ["--nets", "mlp[hidden=99999999x99999999]"],
        ["--nets", "gated[hidden=99999999]", "--latents", "1000"],
        ["--nets", "resnet[channels=99999]"],
        ["--latents", "1000000000", "--nets", "mlp"],
    ],
)
def test_nets_of_absurd_size(flags: list[str], refused: Callable[..., str]) -> None:
    assert "weights: expected at most 4294967296" in refused(run.main, [*TINY, *flags])
