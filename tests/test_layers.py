"""The package as a whole: imports point down, names resolve, README tells the truth."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowvae
from flowvae.data import DATASETS
from flowvae.nets import NETS
from flowvae.options import write
from flowvae.priors import PRIORS
from flowvae.registry import Registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flowvae"


def name_of(path: Path) -> str:
    """Name a module below flowvae: `vae`, `priors.flows`, `priors` for the package itself."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}

LAYERS = [
    {"ahead", "cells", "errors", "mixtures", "options", "pareto", "splines"},
    {"checkpoint", "linear", "precision", "registry", "room", "streams"},
    {
        "boxes",
        "nets",
        "data.matfile",
        "data.pixels",
        "data.source",
        "priors.latent",
        "priors.density",
    },
    {"data.dataset", "priors.flows", "priors.gaussians", "priors.posteriors", "priors.resampled"}
    | {"priors.continuous"},
    {"data.prepare", "priors"},
    {"data.bundled", "data.idx", "data.binarised", "data.matlab", "data.own"},
    {"data"},
    {"trial"},
    {"vae", "progress"},
    {"stack", "evaluation", "folder"},
    {"steps"},
    {"feed"},
    {"train"},
    {"surgery"},
    {"annealing", "quadrature"},
    {"__init__"},
]
LAZY = {"trial": {"data", "nets", "priors"}}  # inside functions, so that --help needs no torch
TITLES = {"prior": "prior", "net": "net", "dataset": "data set"}  # of the README's tables
FOREIGN = {"bench", "mlflow", "argparse", "seaborn", "pandas"}


def imports(tree: ast.AST, package: str, *, lazy: bool) -> Iterator[str]:
    """Yield the absolute names that run at import, or those inside functions."""
    for node in ast.iter_child_nodes(tree):
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if inside and lazy:
            yield from imports(node, package, lazy=False)
        elif not inside:
            if isinstance(node, ast.Import) and not lazy:
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not lazy:
                above = package.split(".")[: 1 + package.count(".") - (node.level - 1)]
                module = ".".join(filter(None, [*(above if node.level else []), node.module]))
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)
            yield from imports(node, package, lazy=lazy)


def siblings(names: set[str]) -> set[str]:
    found = set()
    for name in names:
        first, _, rest = name.partition(".")
        while first == "flowvae" and rest and rest not in MODULES:
            rest = rest.rpartition(".")[0]
        found |= {rest} if first == "flowvae" and rest else set()
    return found


def test_every_module_has_a_layer() -> None:
    assert set().union(*LAYERS) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    height = next(i for i, layer in enumerate(LAYERS) if module in layer)
    below = set().union(*LAYERS[:height])
    if module == "trial":
        below -= LAZY["trial"]
    path = MODULES[module]
    package = ".".join(path.relative_to(ROOT).parent.parts)
    now, later = (set(imports(tree, package, lazy=lazy)) for lazy in (False, True))
    assert siblings(now) <= below
    assert siblings(later) <= below | LAZY.get(module, set())
    assert not {name.split(".")[0] for name in now | later} & FOREIGN


@pytest.mark.parametrize(
    "module", ["flowvae", "flowvae.trial", "flowvae.registry", "flowvae.options"]
)
def test_import_leaves_torch_alone(module: str) -> None:
    heavy = "{'torch', 'numpy', 'zuko', 'sklearn'}"
    code = f"import sys, {module}; sys.exit(str({heavy} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("name", flowvae.__all__)
def test_public_name_resolves(name: str) -> None:
    home = flowvae._HOME[name]
    module = __import__(f"flowvae.{home}", fromlist=[name])
    assert getattr(flowvae, name) is getattr(module, name)
    assert name in module.__all__


def test_unknown_attribute_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trail'"):
        _ = flowvae.Trail


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__"}))
def test_module_exports_exist(module: str) -> None:
    loaded = __import__(f"flowvae.{module}", fromlist=["__all__"])
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("registry", [PRIORS, NETS, DATASETS], ids=lambda r: r.kind)
def test_readme_lists_every_builder(registry: Registry) -> None:
    """In order; whatever is registered of each stands somewhere in its row."""
    lines = (ROOT / "README.md").read_text().splitlines()
    first = lines.index(
        next(ln for ln in lines if ln.startswith(f"| {TITLES[registry.kind]} | what it is"))
    )
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2 :]))
    assert [row.split("|")[1].strip() for row in rows] == [f"`{name}`" for name in registry]
    for row, entry in zip(rows, registry.values(), strict=True):
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        options = ", ".join(f"`{key}={write(value)}`" for key, value in entry.options.items())
        assert {entry.source, entry.caveat, options} - {""} <= set(cells)
