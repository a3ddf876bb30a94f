"""Links, paths and tables of the documents, held against what they speak of."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, get_origin

import pytest
from support.documents import DOCUMENTS, GUIDES, RECORDS, ROOT, Document

import flowvae
from bench.cli.parser import EXIT_COMPLETE, EXIT_INTERRUPTED, EXIT_UNFINISHED, EXIT_USAGE
from bench.figures.catalogue import FIGURES
from bench.grid.experiment_file import question
from flowvae.specs import values
from flowvae.specs.registry import Registry
from flowvae.trial import registries

LINK = re.compile(r'\]\(([^)\s]+)\)|src="([^"]+)"')
PATH = re.compile(r"(?:bench|flowvae|tests|experiments)/[\w./-]*|results/[\w-]+/[\w./-]*")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Document) -> None:
    anchors = {other.path: other.anchors for other in DOCUMENTS}
    for link in ("".join(found) for found in LINK.findall(document.text)):
        if not re.match(r"\w+:", link):
            name, _, anchor = link.partition("#")
            path = (document.path.parent / name).resolve() if name else document.path
            assert path.exists(), link
            assert not anchor or anchor in anchors[path], link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_paths_in_the_text_exist(document: Document) -> None:
    paths = [span for span in document.spans if PATH.fullmatch(span)]
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {span for span in document.spans if re.fullmatch(r"test_\w+\.py", span)} <= tests
    made = ("results/local/", *document.files)
    assert [
        path for path in paths if not (ROOT / path).exists() and not path.startswith(made)
    ] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_row_has_a_cell_for_each_column(document: Document) -> None:
    for header, *rows in document.tables():
        assert [row for row in rows if len(row) != len(header)] == []


def table(column: str, document: str = "") -> dict[str, list[str]]:
    """Return the rows of the one table whose first column has this title, by their first cell."""
    (found,) = (
        rows
        for guide in GUIDES
        if document in ("", guide.name)
        for header, *rows in guide.tables()
        if header[0] == column
    )
    names = [re.sub(r"^\[(.*)\]\(.*\)$", r"\1", row[0]).strip("`") for row in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("registry", registries().values(), ids=lambda registry: registry.kind)
def test_a_table_lists_every_builder(registry: Registry[Any]) -> None:
    """In order; whatever is registered of each stands somewhere in its row."""
    rows = table({"dataset": "data set"}.get(registry.kind, registry.kind))
    assert list(rows) == list(registry)
    for name, entry in registry.items():
        typed = ", ".join(f"`{key}={values.write(v)}`" for key, v in entry.options.items())
        assert {entry.source, entry.caveat, typed} - {""} <= set(rows[name])


def test_a_table_lists_every_figure() -> None:
    assert list(table("figure")) == list(FIGURES)


def test_a_table_lists_every_experiment() -> None:
    rows = table("experiment")
    assert {name: row[1] for name, row in rows.items()} == {
        path.stem: question(path) for path in (ROOT / "experiments").glob("*.toml")
    }


@pytest.mark.parametrize("package", ["bench", "flowvae"])
def test_a_table_lists_every_package(package: str) -> None:
    folder = ROOT / package
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py", "conftest.py"}
    assert set(table("package", f"{package}/README.md")) == packages | modules


def test_a_table_lists_every_folder_of_tests() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("**/*.py"))}
    assert set(table("folder", "tests/README.md")) == folders


def test_a_table_lists_every_folder_of_results() -> None:
    folders = {document.path.parent.name for document in RECORDS}
    assert set(table("folder", "results/README.md")) == folders


def test_a_table_lists_the_functions_of_the_library() -> None:
    names = {name for cell in table("function") for name in re.findall(r"\w+", cell)}
    assert names == {n for n in flowvae.__all__ if inspect.isfunction(getattr(flowvae, n))}


def test_a_table_lists_the_types_of_options() -> None:
    rows = table("type")
    assert {n for n in values.__all__ if get_origin(getattr(values, n)) is Annotated} <= set(rows)
    for name, (_, _, example) in rows.items():
        annotation = eval(name.replace("\\|", "|"), vars(values) | {"bool": bool})
        assert values.write(values.read(example.strip("`"), annotation))


def test_a_table_lists_the_arguments_of_register() -> None:
    arguments = inspect.signature(Registry.register).parameters
    assert set(table("argument")) <= set(arguments)


def test_a_table_lists_the_exit_statuses() -> None:
    known = {EXIT_COMPLETE, EXIT_UNFINISHED, EXIT_USAGE, EXIT_INTERRUPTED}
    assert {int(status) for status in table("exit status")} == known
