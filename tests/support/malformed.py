"""Malformed input for the tests: noise, and valid input with a few parts of it changed.

FLOWVAE_EXAMPLES multiplies the number of examples and draws others each time:
`FLOWVAE_EXAMPLES=50 pytest tests -k bad`. Without it, all runs see the same ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flowvae.errors import InputError

__all__ = ["LONGEST", "NASTY", "damaged", "examples", "garbled", "refusal"]

FACTOR = int(os.environ.get("FLOWVAE_EXAMPLES", "0"))
LONGEST = 2000
"""Characters that a message may take, with a path or two in it."""

NASTY = [
    "", " ", ",", ",,", ":", "::", "=", "[", "]", "][", "[[", "[]", "a[b]", "a[=]", "a[b=[c]]",
    "a[b=1,b=2]", "[" * 300, "a[b=" * 300, "0", "-0", "-1", "+1", "1.", ".5", "1e3", "1e400",
    "-1e400", "nan", "inf", "-inf", "none", "None", "true", "null", "1_0", "0x10", "1e-400",
    "9" * 30, "9" * 400, "9" * 5000, "-" + "9" * 5000, "5:5", "5:", ":5", "-3:2", "0:5:2",
    "0:1000000", f"0:{10**12}", f"{10**12}:0", "0:" + "9" * 5000, "0:100000,0:100000", "\u0663",
    "\u00bd", "\u00b2", "\uff11", "\0", "a\0b", "\n", "a\nb", "\x1b[31m", "\u202e", "\ud800",
    "\udcff", "\U0001f600", "gau\u00df", "x" * 300, "x" * 10_000, ".", "..", "../../etc", "/",
    "/dev/null", "a/b", "~", "-", "--", "a.", "con", "%s", "{0}", "$HOME", "'", '"', "\\",
    "gauss", "GAUSS", "gauss ", "gauss[]", "gauss[x=1]", "maf[transforms=1e9]",
    "maf[transforms=-1]", f"maf[transforms={'9' * 400}]", "maf[hidden=x]", "maf[hidden=]",
    "maf[hidden=8x]", f"maf[hidden={'8x' * 500}8]", "nsf[bound=1e400]",
    "mlp[hidden=99999999x99999999]", f"mlp[hidden={10**30}]", "mlp[logvar_min=nan]",
    "mlp[logvar_min=3,logvar_max=2]", "resnet[channels=99999999999]", "lars[truncation=0]",
    ":maf", "maf:", "os:", ":", "os:nothing", "os:sep", "math:sin", "datetime:datetime", ".a:b",
    "..:b", "flowvae.priors:maf", "no such:thing", "a" * 300 + ":b", "json:loads", "json:dumps",
    "file", "file[path=none]", "file[path=\0.npz]", "file[path=..]", "file[path=.npz]",
    "digits[valid=99999999999]", "digits[valid=1797]", "digits[binarise=fixed]",
    "mnist[valid=-1]",
]  # fmt: skip
"""Texts that have broken some program."""


OVERWRITTEN = [b"\xff" * 8, b"\0" * 8, b"9" * 20, b"-1", b"\xef\xbb\xbf"]


def examples(count: int) -> Callable[[Any], Any]:
    """Sets how many examples a test takes: the same in each run unless FLOWVAE_EXAMPLES is set."""
    return settings(
        max_examples=count * max(1, FACTOR),
        derandomize=not FACTOR,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def garbled(draw: st.DrawFn, valid: list[str]) -> str:
    """Draws a text: a nasty one, noise, or one of `valid` with some characters changed."""
    kind = draw(st.integers(0, 9))
    if kind < 4:
        return draw(st.sampled_from(NASTY))
    if kind == 4:
        return draw(st.text(st.characters(), max_size=30))
    text = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        gone = draw(st.integers(0, 2))
        new = draw(
            st.one_of(
                st.sampled_from([*"[]=,:x0-9.e_ \0\n", "", "999999999999", "none", "1e400"]),
                st.text(st.characters(), max_size=3),
            )
        )
        text = text[:at] + new + text[at + gone :]
    return text


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draws bytes: `valid` with bits flipped, parts cut out, repeated or overwritten; or noise."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 6))
        # Headers are where a format decides: half of all changes are among the first bytes.
        last = max(0, len(content) - 1)
        at = draw(st.one_of(st.integers(0, min(200, last)), st.integers(0, last)))
        if kind == 0 and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == 3:
            content[at:at] = content[at : at + draw(st.integers(1, 40))]
        elif kind == 4:
            new = draw(
                st.sampled_from([b"\xff" * 8, b"\0" * 8, b"9" * 20, b"-1", b"\xef\xbb\xbf"])
            )
            content[at : at + len(new)] = new
        elif kind == 5:
            content[at:at] = draw(st.binary(max_size=20))
        else:
            content[at : at + 4] = draw(st.integers(0, 2**32 - 1)).to_bytes(4, "little")
    return bytes(content)


def refusal(call: Callable[..., Any], *args: Any, **options: Any) -> str | None:  # noqa: ANN401
    """Calls; returns what an InputError says, held against what all of them must be, or None."""
    try:
        call(*args, **options)
    except InputError as error:
        said = str(error)
        assert said
        assert len(said) <= LONGEST
        assert said.isprintable(), repr(said)
        return said
    return None
