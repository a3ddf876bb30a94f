"""The MNIST family: small files in IDX format; what is absent, damaged or half downloaded."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowvae.data import load_data, mnist_family
from flowvae.data.mnist_family import FAMILIES, MNIST_SHA256
from flowvae.errors import InputError

RAW = {
    "mnist": "MNIST/raw",
    "fashion-mnist": "FashionMNIST/raw",
    "kmnist": "KMNIST/raw",
    "emnist-letters": "EMNIST/raw",
}
UNHASHED = list(RAW)[1:]
TRAIN, TEST = 9, 4


def encode(array: NDArray[np.uint8]) -> bytes:
    """Write an array as an IDX file of bytes, after its description by LeCun et al."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def contents(name: str) -> list[NDArray[np.uint8]]:
    """Training images and labels, test images and labels: all of other numbers."""
    draw = np.random.default_rng(0)
    least = 1 if name == "emnist-letters" else 0
    return [
        array.astype(np.uint8)
        for count in (TRAIN, TEST)
        for array in (draw.integers(0, 256, (count, 28, 28)), least + np.arange(count) % 10)
    ]


@pytest.fixture(params=list(RAW))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set in its folder."""
    monkeypatch.setitem(
        FAMILIES, name, replace(FAMILIES[name], train=TRAIN, test=TEST, sha256=None)
    )
    raw = tmp_path / RAW[name]
    raw.mkdir(parents=True)
    for path, array in zip(FAMILIES[name].source.files, contents(name), strict=True):
        (raw / path).write_bytes(encode(array))
    return raw


def test_counts_and_labels_are_the_published_ones() -> None:
    counts = {name: (family.train, family.test) for name, family in FAMILIES.items()}
    assert counts == {name: (60_000, 10_000) for name in RAW} | {
        "emnist-letters": (124_800, 20_800)
    }
    assert [*FAMILIES["emnist-letters"].classes] == [*range(1, 27)]
    assert [*FAMILIES["kmnist"].classes] == [*range(10)]
    defaults = [mnist_family.DATASETS[name].options["valid"] for name in RAW]
    assert defaults == [10_000, 10_000, 10_000, 20_800]


def test_files_and_folders_are_where_torchvision_has_them(name: str, tmp_path: Path) -> None:
    from torchvision import datasets

    family = FAMILIES[name]
    loader = getattr(datasets, family.loader)
    shell = loader.__new__(loader)
    shell.root, shell.split = tmp_path, family.split
    assert Path(shell.raw_folder) == tmp_path / family.source.folder
    if family.split is None:
        names = [Path(url).stem for url, _ in loader.resources]
    else:
        names = []
        for shell.train in (True, False):
            names += [Path(shell.images_file).name, Path(shell.labels_file).name]
        assert family.source.address == loader.url
    assert names == list(family.source.files)


def test_images_are_read_split_and_upright(name: str, folder: Path, tmp_path: Path) -> None:
    data = load_data(f"{name}[valid=3]", tmp_path)
    train, _, test, labels = contents(name)
    if name == "emnist-letters":
        assert not np.array_equal(test, test.swapaxes(1, 2))
        train, test = train.swapaxes(1, 2), test.swapaxes(1, 2)
    assert data.shape == (28, 28)
    assert np.array_equal(data.train, train[:6].reshape(6, 784) >= 128)
    assert np.array_equal(data.valid, train[6:].reshape(3, 784) >= 128)
    assert np.array_equal(data.test, test.reshape(4, 784) >= 128)
    assert np.array_equal(data.labels, labels)
    assert data.spec == f"{name}[valid=3,binarise=threshold]"
    drawn = load_data(f"{name}[valid=3,binarise=stochastic]", tmp_path)
    assert drawn.levels == 255
    assert np.array_equal(drawn.train, train[:6].reshape(6, 784))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda content: content[:-1], "expected 3152 bytes; got 3151"),
        (lambda content: content + b"0", "expected 3152 bytes; got 3153"),
        (lambda content: b"", "got nothing"),
        (lambda content: b"\x1f\x8b" + content, "got 1f8b0000 08030000"),  # still compressed
        (lambda content: encode(np.zeros((5, 28, 28), np.uint8)), "00000005 0000001c 0000001c"),
        (lambda content: encode(np.zeros((4, 28, 27), np.uint8)), "0000001c 0000001b"),
        (lambda content: encode(np.zeros(4, np.uint8)), "got 00000801 00000004"),
    ],
    ids=["truncated", "longer", "empty", "compressed", "other count", "other size", "labels"],
)
@pytest.mark.parametrize("name", UNHASHED, indirect=True)
def test_damaged_images_are_refused_by_name(
    name: str, damage: object, found: str, folder: Path, tmp_path: Path
) -> None:
    path = folder / FAMILIES[name].source.files[2]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        load_data(f"{name}[valid=3]", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path} is no file of {FAMILIES[name].source.title}: ")
    assert found in message
    assert message.endswith("; delete it to have it downloaded again")


@pytest.mark.parametrize(
    ("name", "wrong"), [("kmnist", 10), ("emnist-letters", 0)], indirect=["name"]
)
@pytest.mark.parametrize("which", [1, 3])
def test_labels_of_other_classes_are_refused(
    name: str, wrong: int, which: int, folder: Path, tmp_path: Path
) -> None:
    path = folder / FAMILIES[name].source.files[which]
    labels = contents(name)[which]
    labels[-1] = wrong
    path.write_bytes(encode(labels))
    with pytest.raises(InputError, match=r"expected labels in \d+\.\.\d+; got some in") as caught:
        load_data(f"{name}[valid=3]", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damaged", MNIST_SHA256)
def test_truncated_file_of_known_hash_is_refused_by_name(
    damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_SHA256:  # stand-ins with a known hash
        whole = name.encode() * 100
        (raw / name).write_bytes(whole[:-1] if name == damaged else whole)
        monkeypatch.setitem(MNIST_SHA256, name, hashlib.sha256(whole).hexdigest())
    with pytest.raises(InputError) as caught:
        load_data("mnist", tmp_path)
    message = str(caught.value)
    assert str(raw / damaged) in message
    assert f"({100 * len(damaged) - 1} bytes)" in message
    assert "delete it" in message
    assert not any(name in message for name in MNIST_SHA256 if name != damaged)


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried https://..."),
        URLError("Name or service not known"),
        TimeoutError(),
        IncompleteRead(b""),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_absent_files_without_network_name_three_ways_out(
    name: str,
    failure: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def download(_: object) -> NoReturn:
        print("Tried a mirror")
        raise failure

    source = FAMILIES[name].source
    monkeypatch.setattr(f"torchvision.datasets.{FAMILIES[name].loader}.download", download)
    monkeypatch.setenv("FLOWVAE_DATA", str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_data(name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{source.title} is not in {tmp_path / RAW[name]} and cannot be")
    cures = ("network", "FLOWVAE_DATA", f"holds {RAW[name]}", "copy the four", source.address)
    for cure in (*cures, *source.files):
        assert cure in message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["kmnist"], indirect=True)
def test_old_processed_files_are_not_taken_for_a_download(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """Torchvision reads them, unverified, and downloads nothing."""
    (folder / "t10k-images-idx3-ubyte").unlink()
    processed = folder.parent / "processed"
    processed.mkdir()
    for part in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28), torch.zeros(1)), processed / part)
    with pytest.raises(InputError, match="without t10k-images-idx3-ubyte: delete .*KMNIST and"):
        load_data(name, tmp_path)


def test_without_torchvision_it_is_said_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError, match="install both from one index"):
        load_data(name, tmp_path)
