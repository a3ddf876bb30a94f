"""Figures in a page: shorter than their files, and the same to the eye."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from support.synthetic_grids import make

from bench.figures.catalogue import nll_by_latent
from bench.figures.style import write_figure
from bench.report import embed as inlined
from bench.report.embed import MAX_WEBP_PIXELS, data_uri

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
SKIPPED = "metadata"


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A figure's PNG, its SVG beside it."""
    stem = tmp_path_factory.mktemp("drawn") / "nll_by_latent"
    write_figure(nll_by_latent(make().analysis()), stem, None, 100)
    return stem.with_suffix(".png")


def elements(text: str) -> list[ElementTree.Element]:
    """Return the elements of an SVG that are drawn, in order."""
    root = ElementTree.fromstring(text)
    for known in [each for each in root if each.tag.endswith(SKIPPED)]:
        root.remove(known)
    return list(root.iter())


def test_an_svg_is_shorter_and_every_place_is_where_it_was(figure: Path) -> None:
    whole = figure.with_suffix(".svg").read_text()
    uri = data_uri(figure, 10**9)
    assert uri.startswith("data:image/svg+xml,%3C")
    assert len(uri) < 0.8 * len(base64.b64encode(whole.encode()))
    assert not set('"<>&#\n') & set(uri)  # in an attribute of HTML it stands as it is
    some = elements(unquote(uri.partition(",")[2]))
    for one, other in zip(some, elements(whole), strict=True):
        assert one.tag == other.tag
        assert one.keys() == other.keys()
        for name, text in other.items():
            both = [" ".join(each.split()) for each in (one.get(name, ""), text)]
            assert NUMBER.split(both[0]) == NUMBER.split(both[1])
            places = [[float(number) for number in NUMBER.findall(each)] for each in both]
            error = 0.0051 if name in ("d", "x", "y", "points") else 0
            np.testing.assert_allclose(*places, rtol=0, atol=error)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P"])
def test_pixels_are_the_same(tmp_path: Path, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "some.png")
    uri = data_uri(tmp_path / "some.png", 0)
    assert uri.startswith("data:image/webp;base64,")
    with (
        Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as found,
        Image.open(tmp_path / "some.png") as drawn,
    ):
        assert np.array_equal(np.asarray(found.convert("RGBA")), np.asarray(drawn.convert("RGBA")))


def test_without_webp_the_png_is_taken(figure: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlined.features, "check", lambda _: False)
    monkeypatch.setattr(inlined, "_svg", lambda text: text * 9)
    data = base64.b64decode(data_uri(figure, 0).removeprefix("data:image/png;base64,"))
    assert data == figure.read_bytes()


@pytest.mark.parametrize(
    "size", [(2, MAX_WEBP_PIXELS), (2, MAX_WEBP_PIXELS + 1), (MAX_WEBP_PIXELS + 1, 2)]
)
def test_what_is_too_long_for_webp_stays_png(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "some.png")
    kind = "webp" if max(size) <= MAX_WEBP_PIXELS else "png"
    assert data_uri(tmp_path / "some.png", 0).startswith(f"data:image/{kind};base64,")
