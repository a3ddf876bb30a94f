"""Reports of synthetic grids, for the tests of pages and of their upload."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.synthetic_grids import Made

from bench.report.build import find_sentences
from bench.report.page import About, Page, make_page
from bench.results.read import Results


def results(made: Made) -> Results:
    """Return the results of a grid as they are read back."""
    frame = made.frame.assign(versions="python 3.12, torch 2.11", commit="abc123")
    return Results(**{**made._asdict(), "frame": frame})


def content(made: Made, drawn: Iterable[Path] = (), **more: Any) -> Page:  # noqa: ANN401
    """Return the report of a grid."""
    analysis = results(made).analyse(0.1)
    about = About("digits", more.pop("command", "python -m bench.run"), **more)
    return make_page(analysis, about, find_sentences(analysis), drawn)
