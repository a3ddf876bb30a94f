"""Put a figure into a page, as short as it can be with nothing lost that an eye could see.

    SVG     without comments, metadata and blanks, its places to a hundredth of a point, and as
            text, which is three quarters of what base64 takes
    PNG     as a lossless WebP: pixel for pixel the same, or as it is where it is too long for one

What is beside the page stays as it was drawn.
"""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from PIL import Image, features

__all__ = ["inline"]


SPARE = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
PLACES = re.compile(r'(?<= )(d|x|y|points)="[^"]*"')
FINE = re.compile(r"-?\d+\.\d{3,}(?![\de])")
"""A number with more decimals than are kept, and no power of ten."""
PLAIN = " =:/;,()+*'"
"""What stands in an address as it is: nothing that HTML reads, nor the sign of a fragment."""
LONGEST = 16_383
"""Pixels of a WebP's longer side."""


def inline(png: Path, sharp: int) -> str:
    """Return a figure as a data URI: its SVG where that is small, else the smaller of the two.

    Arguments:
        png: Its PNG file; its SVG lies beside it, if there is one.
        sharp: Characters up to which the SVG is taken, which is sharp at any size.
    """
    svg = png.with_suffix(".svg")
    drawn = _svg(svg.read_text(encoding="utf-8")) if svg.is_file() else ""
    if drawn and len(drawn) <= sharp:
        return drawn
    return min(filter(None, (drawn, _pixels(png))), key=len)


def _svg(text: str) -> str:
    text = PLACES.sub(lambda found: FINE.sub(_short, found[0]), SPARE.sub("", text))
    text = " ".join(text.split()).replace("> <", "><")
    if "'" not in text:  # it takes one character of an address, the other quote three
        text = text.replace('"', "'")
    return f"data:image/svg+xml,{quote(text, safe=PLAIN)}"


def _short(number: re.Match[str]) -> str:
    short = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short


def _pixels(png: Path) -> str:
    data, kind = png.read_bytes(), "png"
    with BytesIO() as file, Image.open(png) as image:
        if features.check("webp") and max(image.size) <= LONGEST:
            image.save(file, "WEBP", lossless=True, exact=True, quality=20)  # more: slow
            data, kind = file.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
