"""Builders that are not ours: from a module in the folder, and from an installed package."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from bench.cli.parser import EXIT_UNFINISHED
from bench.report import __main__ as report_command
from bench.run import main
from bench.store.run_info import columns_from_json, run_params, trial_columns
from flowvae.data import DATASETS
from flowvae.errors import InputError
from flowvae.priors import PRIORS, Latent
from flowvae.trial import Trial

pytestmark = pytest.mark.usefixtures("own_registries")

MODULE = '''
import zuko
from flowvae.specs.values import Count


def my_prior(space, *, width: Count = 32):
    """A small flow of my own."""
    return zuko.flows.MAF(space.features, transforms=1, hidden_features=[width])


def careless(space, *, width=32):
    return my_prior(space)


def unsure(space, *, width: Count):
    return my_prior(space)


number = 3
'''
DATA = """
from flowvae.data.splits import Images, prepare
from flowvae.specs.values import Natural
import torch


def few(root, *, valid: Natural = 20, bright: bool = False, binarise: str = "threshold",
        share: float = 0.5, small: float = 1e-5, shift: int = -2):
    grey = torch.randint(0, 256, (80, 4, 4), generator=torch.Generator().manual_seed(0))
    grey = grey.to(torch.uint8)
    images = Images(grey[: 60 - valid], grey[60 - valid : 60], grey[60:], levels=255)
    return prepare(
        f"{__name__}:few", binarise, images,
        {"valid": valid, "bright": bright, "share": share, "small": small, "shift": shift},
    )
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of a user's in the path, under a name of this test's own."""
    name = f"mine_{abs(hash(request.node.nodeid)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_function_of_any_module_is_a_prior(module: str) -> None:
    spec = f"{module}:my_prior"
    assert PRIORS.resolve(f"{spec}[width=8]") == f"{spec}[width=8]"
    assert PRIORS.label(f"{spec}[width=32]") == spec
    prior = PRIORS.build(f"{spec}[width=8]", Latent(3))
    assert prior().sample((2,)).shape == (2, 3)
    assert not PRIORS[spec].stackable
    assert PRIORS[spec].summary == "A small flow of my own"
    assert spec not in list(PRIORS)


def test_an_edited_module_is_another_prior(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(prior=f"{module}:my_prior", latent=2)
    before = trial.id
    monkeypatch.delitem(PRIORS._others, f"{module}:my_prior")
    assert trial.id == before
    with (tmp_path / f"{module}.py").open("a") as file:
        file.write("# edited\n")
    monkeypatch.delitem(PRIORS._others, f"{module}:my_prior")
    assert trial.id != before


def test_a_registered_function_keeps_what_it_was_registered_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decorated.py").write_text(
        "from flowvae.priors import PRIORS, gauss\n"
        "def mine(space):\n    return gauss(space)\n"
        "PRIORS.register('mine', source='me, 2026', caveat='it is a Gaussian')(mine)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = PRIORS["decorated:mine"]
    assert (entry.source, entry.caveat) == ("me, 2026", "it is a Gaussian")
    assert entry.stackable
    assert PRIORS["mine"].build is entry.build


def test_installed_functions_keep_the_hash_of_their_module_if_it_registers_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "both.py").write_text(
        "from flowvae.priors import PRIORS, gauss\n"
        "@PRIORS.register('both', source='me, 2026')\n"
        "def mine(space):\n    return gauss(space)\n"
        "@PRIORS.register('again', source='me, 2026')\n"
        "def other(space):\n    return gauss(space)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = {"both": "both:mine", "again": "both:other"}
    points = {name: EntryPoint(name, path, "flowvae.priors") for name, path in paths.items()}
    monkeypatch.setattr(PRIORS, "installed", lambda: points)
    for name in points:  # the module is imported for the first one, which registers the second
        entry = PRIORS[name]
        assert entry is PRIORS[name]
        assert len(str(entry.version)) == 12
        assert entry.source == "me, 2026"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:prior", "cannot import 'no_such_module' for the prior .*current folder"),
        (":prior", "cannot import '' for the prior"),
        ("{}:my_priro", "unknown function 'my_priro' of module '.*did you mean 'my_prior'"),
        ("{}:number", "is a int: expected a function"),
        ("{}:careless", "option 'width' of the prior .* has no annotation or no default"),
        ("{}:unsure", "option 'width' of the prior .* has no annotation or no default"),
        ("{}:my_prior[width=0]", "bad value '0' for option 'width'.*at least 1"),
    ],
)
def test_what_is_no_prior_is_refused(spec: str, message: str, module: str) -> None:
    with pytest.raises(InputError, match=message):
        PRIORS.resolve(spec.format(module))


def test_a_module_that_fails_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_prior.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="fails: ZeroDivisionError: division by zero"):
        PRIORS.resolve("broken_prior:mine")


@pytest.mark.usefixtures("empty_store", "no_figures")
@pytest.mark.parametrize("flags", [[], ["--executor", "local", "--workers", "2"]])
def test_a_builder_that_ends_its_process_fails_its_trial_alone(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ending.py").write_text("import sys\ndef mine(space):\n    sys.exit()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tiny = ["--priors", "ending:mine,gauss", "--latents", "2", "--seeds", "0", "--epochs", "1"]
    tiny += ["--nets", "mlp[hidden=8]", "--nll-samples", "5"]
    assert main([*tiny, *flags]) == EXIT_UNFINISHED
    said = capsys.readouterr().out
    assert "ending:mine-z2-s0    failed: SystemExit\n" in said
    assert "gauss-z2-s0          test NLL" in said


def wheel(folder: Path) -> Path:
    """Write a package that brings a prior, as its build would; returns the wheel."""
    path = folder / "tiny_prior-1.0-py3-none-any.whl"
    info = "tiny_prior-1.0.dist-info"
    files = {
        "tiny_prior.py": MODULE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-prior\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": "[flowvae.priors]\ntiny = tiny_prior:my_prior\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(name, text)
    return path


@pytest.mark.usefixtures("empty_store", "no_figures")
def test_an_installed_package_brings_a_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Installed by pip, listed, and compared with ours and with a module in the folder."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target"]
    if find_spec("pip") is None:
        pytest.skip("needs pip")
    subprocess.run([*pip, str(site), str(wheel(tmp_path))], check=True, capture_output=True)
    (tmp_path / "local_prior.py").write_text(MODULE)

    for folder in (site, tmp_path):  # of `python -m` the second is the folder it is called from
        monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)

    assert main(["--list"]) == 0
    assert "  tiny  " in capsys.readouterr().out
    recipe = ["--latents", "2", "--seeds", "0", "--epochs", "1", "--nll-samples", "2"]
    recipe += ["--nets", "mlp[hidden=8]"]
    priors = "gauss,tiny[width=8],local_prior:my_prior[width=8]"
    assert main(["--priors", priors, *recipe]) == 0
    out = capsys.readouterr().out
    assert "tiny[width=8]" in out
    assert "local_prior:my_prior[width=8]" in out
    trials = (tmp_path / "results" / "local" / "digits" / "trials.csv").read_text()
    assert trials.count(",complete,") == 3


def test_a_trial_is_retold_as_it_was_described(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / f"{module}.py").open("a") as file:
        file.write(DATA)
    trial = Trial(prior="gauss", dataset=f"{module}:few[share=0.25]", latent=2)
    before, content = trial_columns(trial), json.loads(trial.to_json())
    params = run_params(trial)
    monkeypatch.delitem(DATASETS._others, f"{module}:few")
    (tmp_path / f"{module}.py").unlink()
    monkeypatch.delitem(sys.modules, module)
    after = columns_from_json(
        content, {**params, "ended_as": "complete", "trial": content["id"], "more": "1"}
    )
    assert after == before
    assert {k: type(v) for k, v in after.items()} == {k: type(v) for k, v in before.items()}


@pytest.mark.usefixtures("empty_store", "no_figures")
def test_trials_are_reported_where_their_modules_are_not(
    module: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with (tmp_path / f"{module}.py").open("a") as file:
        file.write(DATA)
    spec = f"{module}:my_prior"
    tiny = ["--latents", "2", "--seeds", "0:3", "--nets", "mlp[hidden=8]", "--epochs", "1"]
    tiny += ["--dataset", f"{module}:few", "--training", "joint,post-hoc", "--nll-samples", "5"]
    tiny += ["--name", "mine", "--priors", f"gauss,{spec}[width=8],{spec}"]
    assert main(tiny) == 0
    folder = tmp_path / "results" / "local" / "mine"
    paths = [folder / f"{table}.csv" for table in ("trials", "summary", "pairs")]
    before = [pd.read_csv(path, dtype=str) for path in paths]
    (tmp_path / f"{module}.py").unlink()
    for known in (PRIORS, DATASETS):
        for name in [name for name in known._others if name.startswith(module)]:
            monkeypatch.delitem(known._others, name)
    monkeypatch.delitem(sys.modules, module)
    capsys.readouterr()
    assert report_command.main(["mine"]) == 0
    said = capsys.readouterr().out
    assert f"not available here: prior {spec}[width=8]: cannot import '{module}'" in said
    assert "Its trials in mine are described by their runs, without caveats" in said
    assert f"{spec}[width=8]" in pd.read_csv(folder / "summary.csv")["prior"].to_list()
    for path, table in zip(paths, before, strict=True):
        pd.testing.assert_frame_equal(pd.read_csv(path, dtype=str), table, check_like=True)
