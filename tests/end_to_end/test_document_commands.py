"""The documents, executed: commands and code as they stand in all README.md files.

Guides are executed. The records below `results/` hold commands that took hours and a GPU: their
arguments are parsed and their grids made. A command is made small by appended flags, which win,
and by nothing else; a placeholder (RUN_ID) is given a value. One folder serves all, as it serves a
reader who types them in turn. What needs a team's machines is executed by a test that ELSEWHERE
names.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from support.documents import DOCUMENTS, GUIDES, README, RECORDS, ROOT, Document, split
from support.services import free_port, service

import bench
import flowvae
from bench import run
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED
from bench.grid.grid import make_grid
from bench.grid.settings import SETTINGS

SPANS = [span for document in DOCUMENTS for span in document.spans]
COMMANDS = list(dict.fromkeys(c for document in GUIDES for c in document.commands))
RUNS = list(dict.fromkeys(c for document in RECORDS for c in document.commands))
CODE = [code for document in DOCUMENTS for code in document.written("python")]
CALLS = list(dict.fromkeys(s for s in SPANS if re.match(r"(flowvae|bench)[.\w]*\(", s)))
GIVEN = list(dict.fromkeys(s for document in GUIDES for s in document.spans if s[:2] == "--"))
GIVEN = [s for s in GIVEN if re.match(rf"--({'|'.join(SETTINGS)}) \S", s)]
(NOTEBOOK,) = README.written("python")

GRID = "--dataset digits --latents 2 --nets mlp[hidden=8] --seeds 0 --epochs 1 --nll-samples 5"
SMALL = {
    "bench.run": GRID,
    "bench.studies.precision": GRID,
    "bench.audit": "--images 9 --chains 3 --temperatures 5 --leapfrogs 2 --samples 20",
    "bench.studies.coverage": "--tables 8 --images 20",
    "bench.studies.step_time": "--net mlp[hidden=8] --priors gauss --latents 2 --batches 16 "
    "--stacks 1 --seconds-per-point 0.01",
    "pytest": "-n0 -p no:cacheprovider --device cpu",
    "pip": "--no-deps --no-index --no-build-isolation -q",
}
"""Appended, by program."""
ONE, TWO = "--priors gauss", "--priors gauss,diagonal"
TUTORIAL = f"{TWO} --latents 16"
SOME = str(ROOT / "tests" / "harness" / "execution" / "test_plan_text.py")
MORE = {
    "python -m bench.studies.precision digits --priors gauss,maf,nsf --latents 8 "
    "--seeds 0:20": ONE,
    "python -m bench.studies.precision digits": ONE,
    "python -m bench.run --dataset my_data:blobs --priors gauss,maf --latents 2 --epochs 20": (
        "--dataset my_data:blobs"
    ),
    "python -m bench.run --priors gauss,maf --nets 'mlp[hidden=64],my_nets:tanh'": (
        f"{ONE} --nets my_nets:tanh[width=8]"
    ),
    "python -m bench.report tutorial results/tutorial --estimator encoder --only latent=16 "
    "--name both": "--nll-samples 7",
    "python -m bench.run latents --latents 2,4,8,16,32 --nll-precision tf32": (
        f"{ONE} --nll-precision float32"  # the other is CUDA's
    ),
    "python -m bench.run tutorial --estimator encoder --nll-samples 5000": (
        f"{TUTORIAL} --nll-samples 7"
    ),
    "python -m bench.run tutorial --seeds 0:5 --nll-samples 5000": f"{TUTORIAL} --nll-samples 7",
    "python -m bench.run gated": f"{ONE} --warmup 0",
    "python -m bench.run matched": ONE,
    "python -m bench.run priors": TWO,
    "python -m bench.run priors --executor local --workers 4": f"{TWO} --workers 1",
    "python -m bench.run priors --tracking-uri sqlite:///other.db": ONE,
    "python -m bench.run trouble": ONE,
    "python -m bench.run tuned --tune-lr 3e-4,1e-3,3e-3": ONE,
    "python -m bench.run tutorial": TUTORIAL,
    "python -m bench.run two-stage": TWO,
    "pytest": SOME,
    "pytest --device cuda": SOME,
    "pytest bench --benchmark-enable --benchmark-json speed.json": "-k gauss-z2-forward",
}
"""Appended to single commands, after that."""
FIRST = "python -m bench.run --priors gauss,maf"
BEFORE = {
    "mlflow ui": [FIRST],
    "python -m bench.audit RUN_ID...": [FIRST],
    "python -m bench.repair": [FIRST],
    "python -m bench.report priors matched sqlite:///other.db#priors": [
        "python -m bench.run priors",
        "python -m bench.run matched",
        "python -m bench.run priors --tracking-uri sqlite:///other.db",
    ],
    "python -m bench.report tutorial results/tutorial --estimator encoder --only latent=16 "
    "--name both": ["python -m bench.run tutorial --estimator encoder --nll-samples 5000"],
    "python -m bench.run --figures-only": ["python -m bench.run"],
    # nothing is left to do: to start a process takes as long as half of this file
    "python -m bench.run priors --executor local --workers 4": ["python -m bench.run priors"],
    "python -m bench.run tutorial --estimator encoder --nll-samples 5000": [
        "python -m bench.run tutorial"
    ],
    "python -m bench.benchmarks speed.json": [
        "pytest bench --benchmark-enable --benchmark-json speed.json"
    ],
}
"""What the documents have a reader do first."""
TEAM = "test_team::test_a_worker_killed_in_the_middle_costs_no_trial_and_completes_none_twice"
REFERENCE = "test_reference::test_its_commands_are_of_this_version"
ELSEWHERE = {
    "bash experiments/reference.sh cuda": REFERENCE,
    "TINY=1 bash experiments/reference.sh cpu": REFERENCE,
    "python -m bench.run priors --executor local": (
        "test_local::test_other_processes_give_the_same_bits_and_tell_what_they_do"
    ),
    "python -m bench.run priors --executor local --per-gpu 2": (
        "test_local::test_each_worker_is_given_a_gpu"
    ),
    "python -m bench.run priors --executor dask --scheduler tcp://10.0.0.1:8786 "
    "--tracking-uri http://10.0.0.1:5000": TEAM,
    "mlflow server --backend-store-uri postgresql+psycopg2://USER:PASSWORD@127.0.0.1/flowvae "
    "--serve-artifacts --artifacts-destination /srv/flowvae --host 0.0.0.0 "
    "--allowed-hosts '10.0.0.1:5000'": TEAM,
    "mlflow server --backend-store-uri sqlite:///mlflow.db": TEAM,
    "dask scheduler": TEAM,
    "CUDA_VISIBLE_DEVICES=0 FLOWVAE_DATA=/data dask worker tcp://10.0.0.1:8786 --nthreads 1 "
    "--memory-limit 0 --resources GPU=1": TEAM,
    "dask worker tcp://127.0.0.1:8786 --nthreads 1": TEAM,
}
"""The test that executes what needs services, machines or many minutes."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], Path]) -> Path:
    """The folder of a reader who wrote down all files, and installed his package."""
    folder = tmp_path_factory.mktemp("project")
    copyfile(make_store(folder), folder / "other.db")
    for document in GUIDES:
        for name, text in document.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    images = np.random.default_rng(0).integers(0, 256, (2, 300, 8, 8), np.uint8)
    np.savez(folder / "shapes.npz", train=images[0], test=images[1])
    copytree(ROOT / "results" / "latents", folder / "results" / "latents")
    # stands for the published table, whose images are not here
    (folder / "results" / "tutorial").symlink_to(folder / "results" / "local" / "tutorial")
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    toml = (tomllib.loads(text) for document in GUIDES for text in document.written("toml"))
    (points,) = (content["project"]["entry-points"] for content in toml if "project" in content)
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in p.items()) for g, p in points.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    return folder


@pytest.fixture(autouse=True)
def _reader(
    project: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None, own_registries: None
) -> None:
    """Puts the test into that folder, where it draws nothing: that takes longer than the rest."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # under which nothing is timed


def words_of(command: str) -> list[str]:
    """Return the program and its arguments, without variables before and a file after them."""
    words = list(dropwhile(re.compile(r"[A-Z_]+=").match, shlex.split(command)))
    return words[: words.index(">")] if ">" in words else words


def program_of(name: str) -> ModuleType:
    """Import what `python -m NAME` executes."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def filled(words: Iterable[str]) -> Iterator[str]:
    """Yield arguments, with values for what stands for one."""
    for word in words:
        if word == "RUN_ID...":
            yield str(pd.read_csv("results/local/digits/trials.csv")["run_id"][0])
        elif word == "bench" or word.startswith("tests/"):
            yield str(ROOT / word)
        elif word != "...":
            yield word


@cache  # what came before another need not be executed again
def execute(command: str) -> None:
    """Execute a command, small, in this folder, and what comes before it."""
    for earlier in BEFORE.get(command, []):
        execute(earlier)
    program, *argv = words_of(command)
    if program == "python":
        program, argv = argv[1], argv[2:]
    more = MORE.get(command, "")
    if program == "pytest" and "tests/" in command:  # that there are such tests
        more = "--collect-only"
    argv = [*filled(argv), *SMALL.get(program, "").split(), *more.split()]
    if program == "pip":
        return install(argv)
    if program == "mlflow":
        return browse(argv)
    main = pytest.main if program == "pytest" else program_of(program).main
    # eight tables do not tell whether intervals hold the truth
    unsure = EXIT_UNFINISHED if program == "bench.studies.coverage" else EXIT_COMPLETE
    assert main(argv) in {EXIT_COMPLETE, unsure}
    return None


def install(argv: list[str]) -> None:
    """Install a copy of this repository, once, without what it needs; check what extras it has."""
    builders = metadata.distributions(name="setuptools")
    if find_spec("pip") is None or all(int(b.version.split(".")[0]) < 77 for b in builders):
        pytest.skip("needs pip, and setuptools as pyproject.toml asks for")
    copy, site = Path("checkout"), Path("site").absolute()
    if not site.exists():
        for name in ("flowvae", "bench"):
            copytree(ROOT / name, copy / name, ignore=ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            copyfile(ROOT / name, copy / name)
        # apart from what is installed, which pip would else take away
        apart = ["--prefix", str(site), "--ignore-installed"]
        command = [sys.executable, "-m", "pip", *argv, *apart]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    folders = [str(found.parent) for found in site.rglob("flowvae-*.dist-info")]
    (installed,) = metadata.distributions(name="flowvae", path=folders)
    wanted = {name for word in argv if word.startswith(".[") for name in re.findall(r"\w+", word)}
    assert wanted <= set(installed.metadata.get_all("Provides-Extra"))


def browse(argv: list[str]) -> None:
    """Start MLflow in the folder, and ask it for an experiment that was run there."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", *argv, "--port", str(port), "--workers", "1"]
    asked = (
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits"
    )
    with service(command, Path.cwd(), "mlflow") as process:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(asked, timeout=5) as answer:
                    assert json.load(answer)["experiment"]["name"] == "digits"
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)


def flags_of(module: ModuleType) -> set[str]:
    """Return the flags of a command."""
    if hasattr(module, "_parser"):
        return {*module._parser()._option_string_actions}
    return {*re.findall(r'"(--[\w-]+)"', inspect.getsource(module))}


def parse(words: list[str]) -> None:
    """Have a program's own parser read its arguments; those of a grid make one."""
    program, name, *argv = words
    if shlex.join(words) in COMMANDS:
        pass  # it is executed
    elif program == "python":
        module = program_of(argv[0])
        if argv[0] == "bench.studies.precision":  # whose other arguments are a grid's
            argv = ["bench.run", *module._parser().parse_known_args(argv[1:])[1]]
        if argv[0] == "bench.run":
            arguments = run._parser().parse(argv[1:])
            given = {key: getattr(arguments, key.replace("-", "_")) for key in SETTINGS}
            flags = {key: text for key, text in given.items() if text is not None}
            assert make_grid(flags, arguments.experiment, arguments.name).trials
        elif hasattr(module, "_parser"):
            module._parser().parse(argv[1:])
        else:
            assert {word for word in argv if word[:2] == "--"} <= flags_of(module)
    elif program == "bash":
        stages = re.findall(r"^stage (\S+)", (ROOT / name).read_text(), re.MULTILINE)
        assert {*argv[2:]} <= {*stages}
    elif program == "mlflow":
        from mlflow.cli import cli

        cli.get_command(None, name).make_context(name, argv)
    elif program == "dask":
        pytest.importorskip("distributed", reason="needs flowvae[cluster]")
        importlib.import_module(f"distributed.cli.dask_{name}").main.make_context(name, argv)
    else:
        raise AssertionError(f"nothing executes or parses {shlex.join(words)}")


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_executed(command: str) -> None:
    if command in ELSEWHERE:
        module, _, test = ELSEWHERE[command].partition("::")
        (path,) = (ROOT / "tests").rglob(f"{module}.py")
        assert f"def {test}(" in path.read_text()
        parse(words_of(command))
    else:
        execute(command)


@pytest.mark.parametrize("command", RUNS, ids=str)
def test_a_command_of_a_record_is_of_this_version(command: str) -> None:
    parse(words_of(command))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_no_block_or_command_is_passed_over(document: Document) -> None:
    assert {block[1] for block in document.blocks} <= {"sh", "python", "toml", "text"}
    for script in document.written("sh"):
        assert {*split(script)} <= {*document.commands}
    typed = sum("python -m" in command for command in document.commands)
    assert len(re.findall(r"python\s+-m", document.text)) == typed


def test_no_exception_is_left_over() -> None:
    known = {*COMMANDS, *(command for earlier in BEFORE.values() for command in earlier)}
    assert {*ELSEWHERE, *BEFORE, *MORE} - known == set()


@pytest.mark.parametrize("flags", GIVEN)
def test_a_setting_in_the_text_makes_a_plan(flags: str) -> None:
    """Of MNIST's recipe, as what is said of a default is."""
    command = ["mnist", *GRID.split(), "--epochs", "64", *shlex.split(flags), "--dry-run"]
    assert run.main(command) == EXIT_COMPLETE


def test_flags_in_the_text_are_known() -> None:
    dask = importlib.import_module("distributed.cli.dask_worker").main.params
    from mlflow.cli import cli

    known = {
        flag for option in [*dask, *cli.get_command(None, "server").params] for flag in option.opts
    }
    for program in {word for c in COMMANDS for word in c.split() if word[:6] == "bench."}:
        known |= flags_of(program_of(program))
    said = {word for span in SPANS if span.startswith("--") for word in shlex.split(span)}
    assert {word for word in said if word.startswith("--")} - known == set()


def test_an_installed_prior_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == EXIT_COMPLETE
    assert "installed: my_module:my_prior" in capsys.readouterr().out


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the notebook, whose trial is small whatever it is asked for."""
    small = {"epochs": 1, "net": "mlp[hidden=8]"}
    trial = flowvae.Trial
    monkeypatch.setattr(flowvae, "Trial", lambda **fields: trial(**{**fields, **small}))
    known = {"__name__": "read", "flowvae": flowvae, "bench": bench}
    exec(NOTEBOOK, known)
    return known


@pytest.mark.parametrize("code", CODE, ids=lambda code: code.splitlines()[0])
def test_code_runs(code: str, names: dict[str, Any]) -> None:
    exec(code, names)
    pyplot.close("all")  # that a figure leaves open


@pytest.mark.parametrize("call", CALLS)
def test_a_call_in_the_text_runs(call: str, names: dict[str, Any]) -> None:
    execute(FIRST)
    (run_id,) = filled(["RUN_ID..."])
    flowvae.save(names["fitted"].vae, names["trial"], "my-model")
    assert eval(call, names | {"run_id": run_id, "folder": "my-model"})


def test_the_output_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Its plan, without the machine's lines, and the titles of its table."""
    (output,) = README.written("text")
    told = re.compile(r"(question|data|priors|latents|seeds|nets|recipe|score) ")
    plan = [line for line in output.splitlines() if told.match(line)]
    assert len(plan) == 8
    flags = words_of(FIRST)[3:]
    assert run.main([*flags, "--dry-run"]) == EXIT_COMPLETE
    assert {*plan} <= {*capsys.readouterr().out.splitlines()}
    execute(FIRST)
    capsys.readouterr()
    assert run.main([*flags, *GRID.split(), "--figures-only"]) == EXIT_COMPLETE
    titles = re.compile(r"  D   prior .*")
    (shown,), (printed,) = map(titles.findall, (output, capsys.readouterr().out))
    assert printed.split()[: len(shown.split())] == shown.split()
