"""Write a report: one HTML file that needs nothing else, markdown, the table as LaTeX, a note.

What the templates are filled with is escaped as it goes in, each time by its format's own rule: a
prior may be called `gmm[components=3]`, or worse.
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

__all__ = ["note", "publish"]


TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "\N{DAGGER}": r"\dag{}", "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{MIDDLE DOT}": r"$\cdot$",
}  # fmt: skip
MARK = re.compile(r"[\\`*_<>|~$&]|\](?=[(\[:])")
"""What markdown would take for more than a letter, wherever it stands in a line."""
SIGN = re.compile(r"(?<![\w.=)\]])-(?=\d)")
"""A minus before a number, not a hyphen between words or the sign of a power of ten."""
LONGEST = 5000
"""Characters of a note: earlier MLflows do not take more."""


def _line(value: object) -> str:
    return " ".join(str(value).split())


def _markdown(value: object) -> Markup:
    r"""Return a text that markdown shows as it is.

    Example:
        >>> print(_markdown("gmm[components=3](x) <script> a|b"))
        gmm[components=3\](x) \<script\> a\|b
    """
    if isinstance(value, Markup):
        return value
    return Markup(MARK.sub(r"\\\g<0>", _line(value)))


def _spans(text: str) -> Markup:
    r"""Return a sentence in markdown whose commands, between backticks, stay code.

    Example:
        >>> print(_spans("`--select best` keeps a_b"))
        `--select best` keeps a\_b
    """
    parts = re.split("(`[^`]+`)", _line(text))
    escaped = (part if part[:1] == "`" else MARK.sub(r"\\\g<0>", part) for part in parts)
    return Markup("".join(escaped))


def _tex(value: object) -> str:
    r"""Return a text that LaTeX sets as it is, minus signs as such.

    Example:
        >>> print(_tex("gmm[a_b] 50% -1.5"))
        gmm[a\_b] 50\% $-$1.5
    """
    text = "".join(TEX.get(letter, letter) for letter in _line(value))
    return SIGN.sub("$-$", text)


def _minus(text: str) -> Markup:
    """Return a number with a minus sign that is as wide as a plus."""
    return escape(SIGN.sub("\N{MINUS SIGN}", text))


def _breaks(text: str) -> Markup:
    """Return a text whose names may be broken between their options."""
    return Markup(re.sub(r",(?=[^\s\d])", ",<wbr>", str(escape(text))))


def _prose(text: str) -> Markup:
    """Return a sentence with minus signs, and commands, between backticks, set as such."""
    text = SIGN.sub("\N{MINUS SIGN}", text)
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(_breaks(text))))


def _environment(**settings: Any) -> Environment:  # noqa: ANN401
    made = Environment(
        loader=PackageLoader("bench.report"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, **settings,
    )  # fmt: skip
    made.globals["zip"] = zip
    return made


def _for_markdown() -> Environment:
    made = _environment(finalize=_markdown)
    made.filters |= {"quote": quote, "spans": _spans}
    return made


def note(page: Page, experiment: str, run: str) -> str:
    """Return what MLflow shows above the runs of an experiment: a report in short, in markdown.

    The findings are left out where that would be too long, then the table.

    Arguments:
        page: The report.
        experiment: The experiment's id.
        run: The id of the run that holds the report's files.
    """
    template = _for_markdown().get_template("note.md")
    shorter = replace(page, findings=[])
    text = ""
    for each in (page, shorter, replace(shorter, rows=[])):
        text = template.render(page=each, experiment=experiment, run=run)
        text = text.replace(r"\<", "&lt;")  # MLflow shows the backslash of some
        if len(text) <= LONGEST:
            break
    return text[:LONGEST]


def publish(page: Page, folder: Path) -> list[Path]:
    """Write `report.html`, `report.md` and `table.tex` into a folder; return these files."""
    html = _environment(autoescape=True)
    html.filters |= {"breaks": _breaks, "minus": _minus, "prose": _prose}
    # LaTeX has uses of its own for all kinds of braces
    tex = _environment(
        finalize=_tex, variable_start_string="<<", variable_end_string=">>",
        block_start_string="<%", block_end_string="%>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    written = []
    for name, made in (("report.html", html), ("report.md", _for_markdown()), ("table.tex", tex)):
        path = folder / name
        path.write_text(made.get_template(name).render(page=page), encoding="utf-8")
        written.append(path)
    return written
