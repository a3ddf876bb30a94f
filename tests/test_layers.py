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
from flowvae.options import write
from flowvae.priors import PRIORS

ROOT = Path(__file__).parents[1]
MODULES = {path.stem: path for path in (ROOT / "flowvae").glob("*.py")}

LAYERS = [
    {"ahead", "errors", "options", "pareto", "splines"},
    {"precision", "registry", "streams"},
    {"boxes", "data", "nets", "priors"},
    {"trial"},
    {"vae"},
    {"stack", "evaluation", "folder"},
    {"steps"},
    {"train"},
    {"surgery"},
    {"annealing"},
    {"__init__"},
]
LAZY = {"trial": {"data", "nets", "priors"}}  # inside functions, so that --help needs no torch
FOREIGN = {"bench", "mlflow", "argparse", "seaborn", "pandas"}


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Yield the absolute names that run at import, or those inside functions."""
    for node in ast.iter_child_nodes(tree):
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if inside and lazy:
            yield from imports(node, lazy=False)
        elif not inside:
            if isinstance(node, ast.Import) and not lazy:
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not lazy:
                assert node.level < 2
                module = ".".join(filter(None, ["flowvae" if node.level else "", node.module]))
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)
            yield from imports(node, lazy=lazy)


def siblings(names: set[str]) -> set[str]:
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "flowvae" and len(p) > 1} & set(MODULES)


def test_every_module_has_a_layer() -> None:
    assert set().union(*LAYERS) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    height = next(i for i, layer in enumerate(LAYERS) if module in layer)
    below = set().union(*LAYERS[:height])
    if module == "trial":
        below -= LAZY["trial"]
    now, later = set(imports(tree, lazy=False)), set(imports(tree, lazy=True))
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


@pytest.mark.parametrize("module", set(MODULES) - {"__init__"})
def test_module_exports_exist(module: str) -> None:
    loaded = __import__(f"flowvae.{module}", fromlist=["__all__"])
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []


def test_readme_lists_every_prior() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| `gauss` |"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    found = [(name, published, options) for name, _, published, options in table]
    assert found == [
        (
            f"`{name}`",
            entry.source,
            ", ".join(f"`{option}={write(value)}`" for option, value in entry.options.items()),
        )
        for name, entry in PRIORS.items()
    ]
