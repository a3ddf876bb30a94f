"""Renders a report: a self-contained HTML file, markdown, a LaTeX table, a note for MLflow.

All text is escaped by the rules of its format: a prior may be called `gmm[components=3]`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bench.report.page import Page

__all__ = ["make_note", "write_pages"]


TEX_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "\N{DAGGER}": r"\dag{}", "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{MIDDLE DOT}": r"$\cdot$",
}  # fmt: skip
MARKDOWN_CHARACTERS = re.compile(r"[\\`*_<>|~$&]|\](?=[(\[:])")
"""Characters that are markup in markdown, at any place in a line."""
NUMBER_SIGN = re.compile(r"(?<![\w.=)\]])-(?=\d)")
"""A minus sign before a number; no hyphen between words, no sign of a power of ten."""
MAX_NOTE_CHARACTERS = 5000
"""The longest note that earlier versions of MLflow accept."""


def _line(value: object) -> str:
    return " ".join(str(value).split())


def _markdown(value: object) -> Markup:
    r"""Returns a text escaped for markdown.

    Example:
        >>> print(_markdown("gmm[components=3](x) <script> a|b"))
        gmm[components=3\](x) \<script\> a\|b
    """
    if isinstance(value, Markup):
        return value
    return Markup(MARKDOWN_CHARACTERS.sub(r"\\\g<0>", _line(value)))


def _spans(text: str) -> Markup:
    r"""Returns a sentence escaped for markdown, except commands between backticks.

    Example:
        >>> print(_spans("`--select best` keeps a_b"))
        `--select best` keeps a\_b
    """
    parts = re.split("(`[^`]+`)", _line(text))
    escaped = (
        part if part[:1] == "`" else MARKDOWN_CHARACTERS.sub(r"\\\g<0>", part) for part in parts
    )
    return Markup("".join(escaped))


def _tex(value: object) -> str:
    r"""Returns a text escaped for LaTeX, with minus signs.

    Example:
        >>> print(_tex("gmm[a_b] 50% -1.5"))
        gmm[a\_b] 50\% $-$1.5
    """
    text = "".join(TEX_ESCAPES.get(letter, letter) for letter in _line(value))
    return NUMBER_SIGN.sub("$-$", text)


def _minus(text: str) -> Markup:
    """Returns a number as HTML, with a minus sign in place of a hyphen."""
    return escape(NUMBER_SIGN.sub("\N{MINUS SIGN}", text))


def _breaks(text: str) -> Markup:
    """Returns a text as HTML that allows line breaks between the options of a name."""
    return Markup(re.sub(r",(?=[^\s\d])", ",<wbr>", str(escape(text))))


def _prose(text: str) -> Markup:
    """Returns a sentence as HTML, with minus signs, and commands between backticks as code."""
    text = NUMBER_SIGN.sub("\N{MINUS SIGN}", text)
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(_breaks(text))))


def _environment(**settings: Any) -> Environment:  # noqa: ANN401
    environment = Environment(
        loader=PackageLoader("bench.report"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, **settings,
    )  # fmt: skip
    environment.globals["zip"] = zip
    return environment


def _for_markdown() -> Environment:
    environment = _environment(finalize=_markdown)
    environment.filters |= {"quote": quote, "spans": _spans}
    return environment


def make_note(page: Page, experiment: str, run: str) -> str:
    """Returns the note that MLflow shows above the runs of an experiment: a short report.

    Where the note would be too long, the findings are left out, then the table.

    Arguments:
        page: The report.
        experiment: The experiment's id.
        run: The id of the run that holds the report's files.
    """
    template = _for_markdown().get_template("note.md")
    shorter = replace(page, findings=[])
    text = ""
    for version in (page, shorter, replace(shorter, rows=[])):
        text = template.render(page=version, experiment=experiment, run=run)
        text = text.replace(r"\<", "&lt;")  # MLflow shows the backslash of some of them
        if len(text) <= MAX_NOTE_CHARACTERS:
            break
    return text[:MAX_NOTE_CHARACTERS]


def write_pages(page: Page, folder: Path) -> list[Path]:
    """Writes `report.html`, `report.md` and `table.tex` into a folder; returns their paths."""
    html = _environment(autoescape=True)
    html.filters |= {"breaks": _breaks, "minus": _minus, "prose": _prose}
    # other delimiters than the usual ones, as LaTeX uses braces itself
    tex = _environment(
        finalize=_tex, variable_start_string="<<", variable_end_string=">>",
        block_start_string="<%", block_end_string="%>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    environments = {"report.html": html, "report.md": _for_markdown(), "table.tex": tex}
    for name, environment in environments.items():
        text = environment.get_template(name).render(page=page)
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in environments]
