"""Encodes figures as data URIs, as short as possible without a visible loss.

    SVG     without comments, metadata and whitespace, coordinates to a hundredth of a point, and
            as text, which takes three quarters of the length of base64
    PNG     as a lossless WebP with the same pixels, or unchanged where it is too long for WebP

The files beside the page are not changed.
"""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from PIL import Image, features

__all__ = ["data_uri"]


INVISIBLE_PARTS = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
COORDINATES = re.compile(r'(?<= )(d|x|y|points)="[^"]*"')
LONG_DECIMALS = re.compile(r"-?\d+\.\d{3,}(?![\de])")
"""A number with more than two decimals and without a power of ten."""
SAFE_CHARACTERS = " =:/;,()+*'"
"""Characters that are not quoted: none that HTML interprets, nor the `#` of a fragment."""
MAX_WEBP_PIXELS = 16_383
"""The largest width or height of a WebP, pixels."""


def data_uri(png: Path, max_svg_characters: int) -> str:
    """Returns a figure as a data URI: its SVG where that is small, else the smaller of the two.

    Arguments:
        png: Its PNG file; its SVG lies beside it, if there is one.
        max_svg_characters: Characters up to which the SVG is taken, which is sharp at any size.
    """
    svg = png.with_suffix(".svg")
    drawn = _svg(svg.read_text(encoding="utf-8")) if svg.is_file() else ""
    if drawn and len(drawn) <= max_svg_characters:
        return drawn
    return min(filter(None, (drawn, _pixels(png))), key=len)


def _svg(text: str) -> str:
    text = INVISIBLE_PARTS.sub("", text)
    text = COORDINATES.sub(lambda match: LONG_DECIMALS.sub(_short, match[0]), text)
    text = " ".join(text.split()).replace("> <", "><")
    if "'" not in text:  # an apostrophe stays one character, a quoted quotation mark takes three
        text = text.replace('"', "'")
    return f"data:image/svg+xml,{quote(text, safe=SAFE_CHARACTERS)}"


def _short(number: re.Match[str]) -> str:
    short = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short


def _pixels(png: Path) -> str:
    data, kind = png.read_bytes(), "png"
    with BytesIO() as file, Image.open(png) as image:
        if features.check("webp") and max(image.size) <= MAX_WEBP_PIXELS:
            image.save(file, "WEBP", lossless=True, exact=True, quality=20)  # more: slow
            data, kind = file.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
