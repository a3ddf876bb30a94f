"""The README, executed: its commands and its code as they stand there, taken from its text.

A command is made small by flags that are appended, which win, and by nothing else; what stands for
a value (RUN_ID) is given one. One folder serves all, as it serves a reader who types them in turn.
What takes a team's machines is executed by a test that is named in ELSEWHERE.
"""

from __future__ import annotations

import importlib
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
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from support.services import free_port, service

import bench.store.runs
import flowvae
from bench import repair, run
from bench.audit import __main__ as audit_command
from bench.cli.parser import EXIT_COMPLETE, EXIT_UNFINISHED
from bench.grid.settings import SETTINGS
from bench.report import __main__ as report_command
from bench.studies import precision

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("results/*/README.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = list(FENCE.finditer(README))
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", README))]
PROGRAMS = {"python", "pip", "pytest", "mlflow", "dask"}
LINK = re.compile(r'\]\(([^)\s]+)\)|src="([^"]+)"')


def blocks(language: str) -> list[str]:
    return [block[2] for block in BLOCKS if block[1] == language]


def split(script: str) -> Iterator[str]:
    """Yield the commands of a shell script, without comments."""
    script = re.sub(r"(^|[ \t])#.*$", "", script.replace("\\\n", " "), flags=re.MULTILINE)
    for line in script.splitlines():
        yield from filter(None, (" ".join(part.split()) for part in line.split("&&")))


def find_modules() -> dict[str, str]:
    """Return the text of each module that the README writes, by the name said before it."""
    found = {}
    for block in BLOCKS:
        said = re.search(r"this is `(\w+\.py)`[^`]*\Z", README[: block.start()])
        if block[1] == "python" and said:
            found[said[1]] = block[2]
    return found


TYPED = [command for script in blocks("sh") for command in split(script)]
TYPED += [
    span.removeprefix("exec ")
    for span in SPANS
    if span.removeprefix("exec ").split()[0] in PROGRAMS
]
COMMANDS = list(dict.fromkeys(TYPED))
MODULES = find_modules()
CALLS = [span for span in SPANS if re.match(r"(flowvae|bench)[.\w]*\(", span)]
SETTING = [span for span in SPANS if re.match(r"--([\w-]+) \S", span)]
SETTING = [span for span in SETTING if span.split()[0].removeprefix("--") in SETTINGS]

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
"""What is appended, by program."""
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
    "python -m bench.report tutorial results/tutorial --nll-samples 5000 --only latent=16 "
    "--name both": "--nll-samples 7",
    "python -m bench.run latents --latents 2,4,8,16,32 --nll-precision tf32": (
        f"{ONE} --nll-precision float32"  # the other is CUDA's
    ),
    "python -m bench.run tutorial --nll-samples 5000": f"{TUTORIAL} --nll-samples 7",
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
"""What is appended to single commands, after that."""
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
    "python -m bench.report tutorial results/tutorial --nll-samples 5000 --only latent=16 "
    "--name both": ["python -m bench.run tutorial --nll-samples 5000"],
    "python -m bench.run --figures-only": ["python -m bench.run"],
    # nothing is left to do: to start a process takes as long as half of this file
    "python -m bench.run priors --executor local --workers 4": ["python -m bench.run priors"],
    "python -m bench.run tutorial --nll-samples 5000": ["python -m bench.run tutorial"],
    "python -m bench.benchmarks speed.json": [
        "pytest bench --benchmark-enable --benchmark-json speed.json"
    ],
}
"""What the README has a reader do first."""
TEAM = "test_team::test_a_worker_killed_in_the_middle_costs_no_trial_and_completes_none_twice"
ELSEWHERE = {
    "python -m bench.run priors --executor local": (
        "test_workers::test_other_processes_give_the_same_bits_and_tell_what_they_do"
    ),
    "python -m bench.run priors --executor local --per-gpu 2": (
        "test_workers::test_each_worker_is_given_a_gpu"
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
    """The folder of a reader who wrote down all modules, and installed his package."""
    folder = tmp_path_factory.mktemp("project")
    copyfile(make_store(folder), folder / "other.db")
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    images = np.random.default_rng(0).integers(0, 256, (2, 300, 8, 8), np.uint8)
    np.savez(folder / "shapes.npz", train=images[0], test=images[1])
    copytree(ROOT / "results" / "latents", folder / "results" / "latents")
    # stands for the published table, whose images are not here
    (folder / "results" / "tutorial").symlink_to(folder / "results" / "local" / "tutorial")
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = tomllib.loads("\n".join(blocks("toml")))["project"]["entry-points"]
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in p.items()) for g, p in points.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    return folder


@pytest.fixture(autouse=True)
def _reader(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the test into that folder, where it draws nothing: that takes longer than the rest."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # under which nothing is timed
    monkeypatch.setattr("bench.report.build.draw_all", lambda *_, **__: [])


def words_of(command: str) -> list[str]:
    """Return the program and its arguments, without variables before and a file after them."""
    words = list(dropwhile(re.compile(r"[A-Z_]+=").match, shlex.split(command)))
    return words[: words.index(">")] if ">" in words else words


def filled(words: Iterable[str]) -> Iterator[str]:
    """Yield arguments, with values for what stands for one."""
    for word in words:
        if word == "RUN_ID...":
            yield str(pd.read_csv("results/local/digits/trials.csv")["run_id"][0])
        elif word == "bench":
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
    argv = [*filled(argv), *SMALL.get(program, "").split(), *MORE.get(command, "").split()]
    if program == "pip":
        return install(argv)
    if program == "mlflow":
        return browse(argv)
    main = pytest.main if program == "pytest" else importlib.import_module(program).main
    # eight tables do not tell whether intervals hold the truth
    assert main(argv) in {
        EXIT_COMPLETE,
        EXIT_UNFINISHED if program == "bench.studies.coverage" else EXIT_COMPLETE,
    }
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


def parse(words: list[str]) -> None:
    """Have a program's own parser read its arguments."""
    program, name, *argv = words
    if program == "python":
        importlib.import_module(argv[0])._parser().parse(argv[1:])
        return
    if program == "mlflow":
        from mlflow.cli import cli

        cli.get_command(None, name).make_context(name, argv)
    else:
        pytest.importorskip("distributed", reason="needs flowvae[cluster]")
        importlib.import_module(f"distributed.cli.dask_{name}").main.make_context(name, argv)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_executed(command: str) -> None:
    if command in ELSEWHERE:
        module, _, test = ELSEWHERE[command].partition("::")
        assert f"def {test}(" in (ROOT / "tests" / f"{module}.py").read_text()
        parse(words_of(command))
    else:
        execute(command)


def test_no_command_is_passed_over() -> None:
    assert {block[1] for block in BLOCKS} == {"sh", "python", "toml"}
    assert len(re.findall(r"python\s+-m", README)) == sum("python -m" in c for c in TYPED)
    known = {*COMMANDS, *(command for earlier in BEFORE.values() for command in earlier)}
    assert {*ELSEWHERE, *BEFORE, *MORE} - known == set()


@pytest.mark.parametrize("flags", SETTING)
def test_a_setting_in_the_text_makes_a_plan(flags: str) -> None:
    """Of MNIST's recipe, as what is said of a default is."""
    command = ["mnist", *GRID.split(), *shlex.split(flags), "--dry-run"]
    assert run.main(command) == EXIT_COMPLETE


def test_flags_in_the_text_are_known() -> None:
    dask = importlib.import_module("distributed.cli.dask_worker").main.params
    from mlflow.cli import cli

    known = {
        flag for option in [*dask, *cli.get_command(None, "server").params] for flag in option.opts
    }
    for module in (audit_command, precision, repair, report_command, run):
        known |= module._parser()._option_string_actions.keys()
    said = {word for span in SPANS if span.startswith("--") for word in shlex.split(span)}
    assert {word for word in said if word.startswith("--")} - known == set()


def test_an_installed_prior_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == EXIT_COMPLETE
    assert "installed: my_module:my_prior" in capsys.readouterr().out


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What code may refer to, with a trial that is small whatever it is asked for."""
    small = {"epochs": 1, "net": "mlp[hidden=8]"}
    trial = flowvae.Trial
    monkeypatch.setattr(flowvae, "Trial", lambda **fields: trial(**{**fields, **small}))
    return {"__name__": "read", "flowvae": flowvae, "bench": bench}


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_code_runs(code: str, names: dict[str, Any]) -> None:
    exec(code, names)
    pyplot.close("all")  # that a figure leaves open


@pytest.mark.parametrize("call", CALLS)
def test_a_call_in_the_text_runs(call: str, names: dict[str, Any]) -> None:
    """With the names of the notebook, and a run's."""
    exec(next(code for code in blocks("python") if "flowvae.Trial(" in code), names)
    execute(FIRST)
    (run_id,) = filled(["RUN_ID..."])
    assert eval(call, names | {"run_id": run_id, "folder": "my-model"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = ["".join(found) for found in LINK.findall(page.read_text())]
    local = [link.partition("#")[0] for link in links if not re.match(r"\w+:|#", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []
