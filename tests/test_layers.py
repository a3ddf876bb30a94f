"""The packages as a whole: imports go down a list of floors, in no circle; names resolve."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.documents import GUIDES

import flowvae

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"flowvae.errors", "flowvae.estimator"},
    {"flowvae.specs", "flowvae.numerics", "flowvae.checkpoint"},
    {"flowvae.posteriors", "flowvae.likelihoods"},
    {"flowvae.data", "flowvae.nets", "flowvae.priors"},
    {"flowvae.trial"},
    {"flowvae.models"},
    {"flowvae.training", "flowvae.evaluation"},
    {"flowvae"},
    {"bench.statistics", "bench.grid", "bench.system"},
    {"bench.figures", "bench.cli", "bench.store"},
    {"bench.results", "bench.audit", "bench.benchmarks", "bench.repair"},
    {"bench.report", "bench.execution"},
    {"bench.run"},
    {"bench.studies"},
    {"bench", "bench.conftest"},
]
"""What imports what: a part imports from floors before its own, and from itself."""
HEIGHTS = {part: height for height, floor in enumerate(FLOORS) for part in floor}
MAX_MODULES = 25
"""Modules in a folder."""
FOREIGN = {"mlflow", "argparse", "seaborn", "pandas"}
"""Libraries of the harness, which the library must do without."""


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    _name(path): path
    for top in ("flowvae", "bench")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def _part(module: str) -> str:
    """Name what has a floor: a package or module right below `flowvae` or `bench`, or these."""
    return ".".join(module.split(".")[:2])


def _imports(module: str) -> Iterator[str]:
    """Yield the modules that one imports anywhere: at the top, in functions, for types only."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            assert node.module
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in MODULES else node.module


IMPORTS = {module: set(_imports(module)) for module in MODULES}


def test_every_part_has_a_floor() -> None:
    assert {_part(module) for module in MODULES} == set(HEIGHTS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    part = _part(module)
    ours = {_part(name) for name in IMPORTS[module] if name in MODULES} - {part}
    assert {name for name in ours if HEIGHTS[name] >= HEIGHTS[part]} == set()
    if module.startswith("flowvae"):
        assert not {name.split(".")[0] for name in IMPORTS[module]} & FOREIGN


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports of types only and those inside functions count, too."""
    TopologicalSorter({m: names & set(MODULES) for m, names in IMPORTS.items()}).prepare()


def test_folders_are_small() -> None:
    folders = [path.parent for path in MODULES.values()]
    assert {str(f) for f in folders if folders.count(f) > MAX_MODULES} == set()


def test_packages_say_what_they_are() -> None:
    """The front door of each has a docstring."""
    doors = [path for path in MODULES.values() if path.name == "__init__.py"]
    assert [p for p in doors if not ast.get_docstring(ast.parse(p.read_text()))] == []


@pytest.mark.parametrize(
    "module", ["flowvae", "flowvae.trial", "flowvae.specs.registry", "flowvae.specs.values"]
)
def test_import_leaves_torch_alone(module: str) -> None:
    heavy = "{'torch', 'numpy', 'zuko', 'sklearn'}"
    code = f"import sys, {module}; sys.exit(str({heavy} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("name", flowvae.__all__)
def test_public_name_resolves(name: str) -> None:
    module = importlib.import_module(f"flowvae.{flowvae._HOME[name]}")
    assert getattr(flowvae, name) is getattr(module, name)
    assert name in module.__all__


def test_unknown_attribute_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trail'"):
        _ = flowvae.Trail


@pytest.mark.parametrize("module", [m for m in MODULES if "conftest" not in m])
def test_module_exports_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    assert [name for name in getattr(loaded, "__all__", []) if not hasattr(loaded, name)] == []


def test_the_readme_draws_the_floors() -> None:
    (readme,) = (guide for guide in GUIDES if guide.name == "bench/README.md")
    (drawing,) = readme.written("text")
    harness = [
        {part.removeprefix("bench.") for part in floor}
        for floor in FLOORS
        if all(part.startswith("bench.") for part in floor)
    ]
    assert [set(line.split()) for line in drawing.splitlines()] == [
        *reversed(harness),
        {"flowvae"},
    ]
