"""The reference comparison: its commands are of this version, and it goes on where it was."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path

import pandas as pd
import pytest

from bench import audit, reference, run, sweep
from bench.command import COMPLETE, INTERRUPTED, UNFINISHED, USAGE
from bench.grid import make_grid
from bench.settings import SETTINGS
from bench.stages import STAGES, Stage
from flowvae.trial import Audit

ROOT = Path(__file__).parents[1]
GRIDS = [name for name, stage in STAGES.items() if stage.commands[0].startswith("bench.run ")]
GOOD, BAD = "json.tool good.json", "json.tool bad.json"
"""`python -m json.tool` ends with 0 for the one and with 1 for the other."""
ENDLESS = "http.server --bind 127.0.0.1 0"


def make(folder: Path, *arguments: str) -> int:
    return reference.main(["--folder", str(folder), "--device", "cpu", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "reference"
    made.mkdir()
    (made / "good.json").write_text("[1]")
    (made / "bad.json").write_text("[1")
    return made


def stages(monkeypatch: pytest.MonkeyPatch, *commands: str, least: float = 0.0) -> None:
    """Make each command a stage: a, b, and so on."""
    made = {
        name: Stage("", (command,), ("",), least=least)
        for name, command in zip("abc", commands, strict=False)
    }
    monkeypatch.setattr(reference, "STAGES", made)


def attempts(folder: Path) -> list[tuple[str, str]]:
    table = pd.read_csv(folder / "attempts.csv")
    return list(zip(table["stage"], table["status"], strict=True))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("tiny", [False, True])
def test_its_grids_can_be_made(name: str, tiny: bool) -> None:
    (command,), (more,) = STAGES[name].commands, STAGES[name].tiny
    words = shlex.split(command + (f" {more}" if tiny else ""))[1:]
    words = [word for word in words if word not in ("{several}", "{device}", "--device")]
    arguments = run._parser().parse(words)
    given = {key: getattr(arguments, key.replace("-", "_")) for key in SETTINGS}
    grid = make_grid(
        {key: text for key, text in given.items() if text is not None}, arguments.experiment, None
    )
    assert len({trial.seed for trial in grid.trials}) == (3 if tiny else 5)
    assert grid.evaluation.samples == (20 if tiny else 5000)
    assert {trial.labels["prior"].partition("[")[0] for trial in grid.trials} >= {"gauss"}
    assert all(trial.dataset.startswith("digits" if tiny else "mnist") for trial in grid.trials)


def test_both_parts_of_the_priors_score_the_same_images_of_one_experiment() -> None:
    fast, slow = (STAGES[name].commands[0] for name in ("priors", "priors-slow"))
    same = re.compile(r"--priors '([^']*)'")
    assert same.sub("", fast) == same.sub("", slow)
    named = {p for part in (fast, slow) for p in same.findall(part)[0].split(",")}
    given = run._parser().parse(["priors"])
    whole = {trial.prior for trial in make_grid({}, given.experiment, None).trials}
    assert len(named) == len(whole), "a prior of the experiment is in neither part, or in both"


@pytest.mark.parametrize(
    ("program", "module"), [("bench.sweep", sweep), ("bench.audit", audit)], ids=str
)
def test_its_flags_are_those_of_the_commands(program: str, module: object) -> None:
    usage = Path(str(module.__file__)).read_text()  # type: ignore[attr-defined]
    fields = Audit.__dataclass_fields__ if module is audit else ()
    known = {f"--{name}" for name in fields}  # its parser makes these flags of the fields
    for stage in STAGES.values():
        for command, more in zip(stage.commands, stage.tiny, strict=True):
            if command.startswith(program):
                for flag in re.findall(r"--[\w-]+", f"{command} {more}"):
                    assert flag in known or f'"{flag}"' in usage, flag


def test_what_is_tested_is_there() -> None:
    for stage in STAGES.values():
        for command in stage.commands:
            for path in re.findall(r"\{root\}/(\S+)", command):
                assert (ROOT / path).is_file()


def test_a_complete_stage_is_not_run_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    stages(monkeypatch, GOOD, BAD)
    assert make(folder) == UNFINISHED
    assert attempts(folder) == [("a", "complete"), ("b", "status 1")]
    told = capfdbinary.readouterr().out
    assert b"Expecting" in told, "what a command says is shown"
    assert b"Expecting" in (folder / "logs" / "b.txt").read_bytes()
    (folder / "bad.json").write_text("[2]")
    assert make(folder) == COMPLETE
    assert attempts(folder)[2:] == [("b", "complete")]
    capfdbinary.readouterr()
    assert make(folder, "a") == COMPLETE
    assert len(attempts(folder)) == 3
    told = capfdbinary.readouterr().out.decode()
    assert "== a: was complete" in told
    assert f"cd {folder} && mlflow ui" in told
    assert "status 1" not in told, "stages that were not asked for are not shown"
    assert make(folder, "a", "--force") == COMPLETE
    assert attempts(folder)[3:] == [("a", "complete")]


def test_other_code_is_measured_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages(monkeypatch, GOOD)
    assert make(folder) == COMPLETE
    monkeypatch.setattr(reference, "code", lambda: "other")
    assert make(folder) == COMPLETE
    assert len(attempts(folder)) == 2


def test_its_time_ends_a_command_and_begins_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages(monkeypatch, ENDLESS, GOOD)
    start = time.monotonic()
    assert make(folder, "--minutes", "0.03") == UNFINISHED
    assert time.monotonic() - start < 60
    assert attempts(folder) == [("a", "cut short"), ("b", "not begun: 0 s were left")]


def test_what_cannot_go_on_is_not_begun_shortly_before_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages(monkeypatch, GOOD, least=1000)
    assert make(folder, "--minutes", "1") == UNFINISHED
    assert attempts(folder) == [("a", "not begun: 60 s were left")]
    assert make(folder) == COMPLETE


@pytest.fixture
def lingering(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A command that leaves a process behind, and when it is asked to end says so first."""
    (folder / "lingering.py").write_text(
        "import signal, subprocess, sys, time\n"
        "def end(*_):\n"
        "    print('x' * 100_000, 'saved')\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('begun')\n"
        "time.sleep(600)\n"
    )
    return "lingering"


def test_a_signal_ends_the_command_and_is_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lingering: str
) -> None:
    stages(monkeypatch, lingering)
    log = folder / "logs" / "a.txt"

    def end() -> None:
        while not (log.exists() and "begun" in log.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)  # as others send it: the main thread wakes

    threading.Thread(target=end, daemon=True).start()
    assert make(folder) == INTERRUPTED
    assert attempts(folder) == [("a", "interrupted")]
    assert log.read_text().endswith(" saved\n"), "what it says when it ends is read, too"


def test_what_a_command_leaves_behind_does_not_keep_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lingering: str
) -> None:
    stages(monkeypatch, lingering)
    start = time.monotonic()
    assert make(folder, "--minutes", "0.05") == UNFINISHED
    assert time.monotonic() - start < 300
    assert attempts(folder) == [("a", "cut short")]


def test_its_record_is_read_as_it_was_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages(monkeypatch, GOOD)
    monkeypatch.setattr(reference, "code", lambda: "0123456789012345")
    for _ in range(2):
        assert make(folder) == COMPLETE
    assert len(attempts(folder)) == 1
    (folder / "attempts.csv").write_text("stage,status\na,complete\n")
    assert make(folder) == USAGE
    assert "attempts.csv is of another version" in capsys.readouterr().err


def test_data_are_found_from_where_it_is_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tell.py").write_text("import os; print(os.environ['FLOWVAE_DATA'])")
    stages(monkeypatch, "tell")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("FLOWVAE_DATA", "mine")
    assert make(folder) == COMPLETE
    assert (folder / "logs" / "a.txt").read_text().strip() == str(folder.parent / "mine")


def test_audited_models_are_those_of_the_experiment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited = Stage("", ("json.tool {models}",), ("",), ("toy", {"latent": [2], "seed": [0, 1]}))
    monkeypatch.setattr(reference, "STAGES", {"a": audited})
    assert make(folder) == UNFINISHED
    assert attempts(folder) == [("a", "nothing to audit")]
    table = folder / "results" / "local" / "toy" / "trials.csv"
    table.parent.mkdir(parents=True)
    pd.DataFrame(
        [
            ("good.json", 2, 0, "complete"),
            ("other-size", 16, 0, "complete"),
            ("other-seed", 2, 5, "complete"),
            ("lost", 2, 1, "diverged"),
        ],
        columns=["run_id", "latent", "seed", "status"],
    ).to_csv(table)
    assert make(folder) == COMPLETE
    assert pd.read_csv(folder / "attempts.csv")["command"].iloc[-1] == "json.tool good.json"


def test_all_but_the_weights_is_packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages(monkeypatch, GOOD)
    (folder / "model.safetensors").write_bytes(b"0" * 100)
    file = folder.parent / "new" / "packed.tar.xz"
    assert make(folder, "--pack", str(file)) == COMPLETE
    with tarfile.open(file) as archive:
        names = archive.getnames()
    assert {"reference/good.json", "reference/logs/a.txt", "reference/attempts.csv"} <= set(names)
    assert not any(name.endswith("safetensors") for name in names)


def test_bad_input_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in [
        (["tutorials"], "did you mean 'tutorial'?"),
        (["--pack", "all.zip"], "bad --pack 'all.zip': expected a name that ends in .tar.xz"),
        (["--minutes", "soon"], "bad --minutes 'soon': expected a number"),
    ]:
        assert make(folder, *arguments) == USAGE
        assert told in capsys.readouterr().err


def in_this_process(words: Sequence[str], folder: Path, log: Path, limit: float | None) -> str:
    """Do what a command does, without the seconds that a process of its own takes."""
    program, *arguments = words
    with chdir(folder):
        status = importlib.import_module(program).main(arguments)
    return "complete" if status == COMPLETE else f"status {status}"


@pytest.mark.usefixtures("no_figures")
def test_a_rehearsal_runs_grids_and_audits_their_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_store: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(reference, "_call", in_this_process)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_store(tmp_path)
    names = ["latents", "latents-audit", "gated"]
    assert make(tmp_path, *names, "--tiny") == COMPLETE
    assert attempts(tmp_path) == [(name, "complete") for name in names]
    results = tmp_path / "results" / "local"
    trials = pd.read_csv(results / "latents" / "trials.csv")
    audited = pd.read_csv(results / "latents" / "audit.csv")
    assert set(audited["run_id"]) == set(trials["run_id"])
    assert len(trials) == len(pd.read_csv(results / "gated" / "trials.csv")) == 2 * 3
