"""MNIST in its fixed binarisation: small files as Larochelle published them, and damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flowvae.data import binarised_mnist, load_data
from flowvae.errors import InputError

SMALL = {"train": 6, "valid": 4, "test": 3}


def images(part: str) -> NDArray[np.uint8]:
    draw = np.random.default_rng(list(SMALL).index(part))
    return draw.integers(0, 2, (SMALL[part], 784), np.uint8)


def encode(rows: NDArray[np.uint8], *, gap: str = " ", end: str = "\n") -> bytes:
    return "".join(gap.join(map(str, row)) + end for row in rows).encode()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "BinarizedMNIST"
    place.mkdir()
    for part, count in SMALL.items():
        monkeypatch.setitem(binarised_mnist.COUNTS, part, count)
        (place / f"binarized_mnist_{part}.amat").write_bytes(encode(images(part)))
    return place


def test_counts_are_the_published_ones() -> None:
    assert binarised_mnist.COUNTS == {"train": 50_000, "valid": 10_000, "test": 10_000}


def test_images_are_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    data = load_data("mnist-fixed", tmp_path)
    for part in SMALL:
        assert np.array_equal(getattr(data, part), images(part)), part
    assert (data.levels, data.binarise, data.shape) == (1, "fixed", (28, 28))
    assert data.labels.tolist() == [0, 0, 0]
    assert data.describe() == ("mnist-fixed, 28x28, fixed binarisation: 6 train, 4 valid, 3 test")
    assert data.spec == "mnist-fixed[valid=10000,binarise=fixed]"


@pytest.mark.parametrize(
    "spacing",
    [{"end": " \n"}, {"end": "\r\n"}, {"gap": "  "}, {"gap": "\t"}, {"end": " \r\n"}],
    ids=repr,
)
def test_white_space_makes_no_difference(
    spacing: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    plain = load_data("mnist-fixed", tmp_path)
    path = folder / "binarized_mnist_test.amat"
    path.write_bytes(encode(images("test"), **spacing))
    assert load_data("mnist-fixed", tmp_path).hash == plain.hash
    path.write_bytes(path.read_bytes().rstrip())
    assert load_data("mnist-fixed", tmp_path).hash == plain.hash
    path.write_bytes(path.read_bytes() + b"\n\n")
    assert load_data("mnist-fixed", tmp_path).hash == plain.hash


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda rows: [rows[0], rows[1] + b" 1", *rows[2:]], "line 2 holds 785 values"),
        (lambda rows: [*rows[:-1], rows[-1][:-2]], "line 4 holds 783 values, expected 784"),
        (lambda rows: [*rows[:2], b"2" + rows[2][1:], rows[3]], "line 3 holds '2', expected"),
        (lambda rows: [b"10" + rows[0][1:], *rows[1:]], "line 1 holds '10', expected only 0 and"),
        (lambda rows: [b"\xff" + rows[0][1:], *rows[1:]], "line 1 holds '\ufffd', expected"),
        (lambda rows: [rows[0], b"", *rows[1:]], "line 2 holds 0 values"),
        (lambda rows: [], "line 1 holds 0 values"),
        (lambda rows: rows[:3], "expected 4 lines; got 3"),
        (lambda rows: [*rows, rows[0]], "expected 4 lines; got 5"),
    ],
    ids=["long", "short", "other digit", "ten", "no text", "blank", "empty", "few", "many"],
)
def test_damaged_file_is_refused_by_name_and_line(
    damage: object, found: str, folder: Path, tmp_path: Path
) -> None:
    path = folder / "binarized_mnist_valid.amat"
    path.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())) + b"\n")
    with pytest.raises(InputError) as caught:
        load_data("mnist-fixed", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path} is no file of MNIST in its fixed binarisation: ")
    assert found in message
    assert "; delete it and fetch it from http://www.cs.toronto.edu/~larocheh" in message


def test_absent_files_say_where_to_get_them_and_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_data("mnist-fixed", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"is not in {tmp_path / 'BinarizedMNIST'}. Two ways out: " in message
    for cure in ("--data-dir", "FLOWVAE_DATA", "copy the three files there", "larocheh/public"):
        assert cure in message
    for part in SMALL:
        assert f"binarized_mnist_{part}.amat" in message


def test_the_published_layout_is_read_as_one_table() -> None:
    """Line by line the three files take seconds."""
    content = encode(images("train"))
    assert np.array_equal(binarised_mnist._aligned(content), images("train") + ord("0"))
    assert binarised_mnist._aligned(content.replace(b"1", b"2", 1)) is None
