"""A user's own images: every form that is taken, and what is said of every other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowvae.data import Dataset, load_data
from flowvae.errors import InputError

SHAPE = (30, 3, 5)


def grey(count: int = 30, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 5)).astype(np.uint8)


def black(count: int = 30, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 2, (count, 3, 5)).astype(np.uint8)


def load(root: Path, options: str = "", **arrays: NDArray) -> Dataset:
    """Save arrays as an `.npz`, or a lone `npy` as that, and load it with some options."""
    if "npy" in arrays:
        np.save(root / "shapes.npy", arrays["npy"], allow_pickle=True)
    else:
        np.savez(root / "shapes.npz", **arrays)
    name = "shapes.npy" if "npy" in arrays else "shapes.npz"
    return load_data(f"file[path={name}{options and ','}{options}]", root)


def refused(root: Path, options: str = "", **arrays: NDArray) -> str:
    with pytest.raises(InputError) as caught:
        load(root, options, **arrays)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_npz_with_its_own_split_keeps_order(tmp_path: Path) -> None:
    parts = {"train": grey(20), "valid": grey(6, 1), "test": grey(4, 2)}
    data = load(tmp_path, **parts, labels=np.array([3, 1, 2, 255]))
    for part, images in parts.items():
        assert np.array_equal(getattr(data, part), images.reshape(-1, 15) >= 128)
    assert data.labels.tolist() == [3, 1, 2, 255]
    assert data.shape == (3, 5)
    assert data.spec == "file[path=shapes.npz,valid=none,test=none,binarise=threshold]"
    assert data.describe() == "shapes.npz, 3x5, threshold at half: 20 train, 6 valid, 4 test"
    assert load(tmp_path, "valid=6,test=4", **parts).labels.tolist() == [0, 0, 0, 0]


def test_npz_without_validation_images_holds_some_out(tmp_path: Path) -> None:
    train, test = grey(), grey(4, 1)
    data = load(tmp_path, "valid=7,binarise=stochastic", train=train, test=test)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [23, 7, 4]
    rows = Counter(row.tobytes() for row in train.reshape(-1, 15))
    assert Counter(row.tobytes() for row in data.train.numpy()) < rows
    assert load(tmp_path, train=train, test=test).describe().endswith("27 train, 3 valid, 4 test")


def test_npy_is_shuffled_once_and_for_all_and_split_from_the_end(tmp_path: Path) -> None:
    images = grey(100)
    data = load(tmp_path, "valid=20,test=30", npy=images)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [50, 20, 30]
    whole = torch.cat([data.train, data.valid, data.test]).numpy()
    expected = (images.reshape(-1, 15) >= 128).astype(np.uint8)
    assert not np.array_equal(whole, expected)
    assert Counter(map(bytes, whole)) == Counter(map(bytes, expected))
    fewer = load(tmp_path, "valid=0,test=10", npy=images)
    assert torch.equal(fewer.test, data.test[-10:])  # the last of the same order
    assert load(tmp_path, npy=images).describe().endswith("80 train, 10 valid, 10 test")
    assert load(tmp_path, "valid=20,test=30", npy=images).hash == data.hash
    assert data.labels.tolist() == [0] * 30


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_path_may_be_absolute(suffix: str, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    load(here, npy=grey()), load(here, train=grey(), test=grey())
    path = here / f"shapes{suffix}"
    assert load_data(f"file[path={path}]", elsewhere).name == path.name


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.float16, np.float32, np.float64])
def test_binary_images_of_any_type_are_one_data_set(kind: type, tmp_path: Path) -> None:
    """Of uint8 in 0..255, 1 would be all but black: where 1 is the most, it is full."""
    images = black()
    data = load(tmp_path, "binarise=fixed", npy=images.astype(kind))
    assert data.levels == 1
    assert data.hash == load(tmp_path, "binarise=fixed", npy=images).hash
    for rule in ("threshold", "stochastic"):
        same = load(tmp_path, f"binarise={rule}", npy=images.astype(kind))
        assert all(torch.equal(getattr(same, p), getattr(data, p)) for p in ("train", "test"))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_intensities_are_rounded_to_256_levels(kind: type, tmp_path: Path) -> None:
    whole = load(tmp_path, "binarise=stochastic", npy=grey())
    real = load(tmp_path, "binarise=stochastic", npy=(grey() / 255).astype(kind))
    assert real.levels == 255
    assert torch.equal(real.train, whole.train)


def test_a_last_axis_of_one_is_dropped(tmp_path: Path) -> None:
    assert load(tmp_path, npy=grey()[..., None]).hash == load(tmp_path, npy=grey()).hash


def test_without_a_path_it_is_said_how_to_give_one() -> None:
    with pytest.raises(InputError, match=r"needs a path, such as file\[path=shapes.npz\]"):
        load_data("file")


def test_absent_file_and_other_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shapes.npz does not exist: give a path relative to"):
        load_data("file[path=shapes.npz]", tmp_path)
    with pytest.raises(InputError, match="expected an .npz or .npy file; got .*shapes.png"):
        load_data("file[path=shapes.png]", tmp_path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "content", [b"", b"not numpy's", b"\x93NUMPY\x01\x00v\x00{", b"PK\x03\x04"]
)
def test_other_bytes_are_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"shapes{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a NumPy file.*write it with np.savez"):
        load_data(f"file[path={path.name}]", tmp_path)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    objects = np.array([[1], [1, 2]], dtype=object)
    for arrays in ({"npy": objects}, {"train": objects, "test": grey()}):
        message = refused(tmp_path, **arrays)
        assert "without pickled objects" in message
        assert "from plain arrays" in message


def test_names_of_arrays_are_held_against_the_known_ones(tmp_path: Path) -> None:
    message = refused(tmp_path, train=grey(), test=grey(), val=grey())
    assert "unknown array 'val'" in message
    assert "expected one of train, valid, test, labels; did you mean 'valid'?" in message
    message = refused(tmp_path, train=grey())
    assert "has no array 'test', only train: an .npz needs train and test" in message


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((9, 15)), r"must be images (N, H, W) or (N, H, W, 1); got shape (9, 15)"),
        (np.zeros((9, 3, 5, 3)), "got shape (9, 3, 5, 3)"),
        (np.zeros((9, 0, 5)), "got shape (9, 0, 5)"),
        (np.zeros((0, 3, 5)), "'train' of {} holds no image: expected at least one"),
        (
            np.zeros(SHAPE, np.int64),
            "bool, uint8 in 0..255 or floating in [0, 1]; got int64",
        ),
        (np.zeros(SHAPE, complex), "got complex128"),
        (np.full(SHAPE, np.nan), "must be grey in [0, 1]; got nan at [0, 0, 0]"),
        (np.full(SHAPE, 255.0), "got 255.0 at [0, 0, 0]"),
        (np.where(np.arange(5) == 4, -0.25, np.zeros(SHAPE)), "got -0.25 at [0, 0, 4]"),
    ],
    ids=["flat", "colour", "no rows", "none", "integers", "complex", "NaN", "above", "below"],
)
def test_other_arrays_are_refused(images: NDArray, found: str, tmp_path: Path) -> None:
    for name, arrays in (("npy", {"npy": images}), ("npz", {"train": images, "test": grey()})):
        if name == "npz" and images.dtype.kind == "f":
            arrays["test"] = grey() / 255
        path = tmp_path / f"shapes.{name}"
        message = refused(tmp_path, **arrays)
        assert found.format(path) in message
        assert f"'train' of {path}" in message


def test_parts_of_other_size_or_type_are_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, train=grey(), test=np.zeros((9, 5, 3), np.uint8))
    assert "must be of one size: those of 'train' are 3x5, those of 'test' 5x3" in message
    message = refused(tmp_path, train=grey(), test=grey() / 255)
    assert "must be of one type" in message
    assert "got 'train' uint8, 'test' float64" in message


def test_grey_is_not_taken_as_fixed(tmp_path: Path) -> None:
    test = black(4).astype(float)
    test[2, 1, 3] = 0.4
    message = refused(tmp_path, "binarise=fixed", train=black(), test=test)
    assert f"but 'test' of {tmp_path / 'shapes.npz'} holds 0.4 at [2, 1, 3]" in message
    assert "choose binarise=threshold or stochastic" in message


def test_holding_out_too_many_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, "test=30", npy=grey())
    assert message == "shapes.npy has 30 training images: cannot hold out 30 for test"
    message = refused(tmp_path, "test=10,valid=20", npy=grey())
    assert message == "shapes.npy has 20 training images: cannot hold out 20 for valid"
    assert "at least 1" in refused(tmp_path, "test=0", npy=grey())
    refused(tmp_path, npy=grey(1))
    assert load(tmp_path, npy=grey(3)).describe().endswith("1 train, 1 valid, 1 test")


def test_options_do_not_override_the_files_own_parts(tmp_path: Path) -> None:
    parts = {"train": grey(), "valid": grey(5), "test": grey(4)}
    assert "has its own 'test', 4 images; got test=9" in refused(tmp_path, "test=9", **parts)
    assert "has its own 'valid', 5 images; got valid=0" in refused(tmp_path, "valid=0", **parts)


@pytest.mark.parametrize(
    "labels",
    [np.arange(3), np.zeros((4, 1), int), np.zeros(4), np.array([0, 1, 2, 256]), np.full(4, -1)],
    ids=["few", "matrix", "floating", "large", "negative"],
)
def test_other_labels_are_refused(labels: NDArray, tmp_path: Path) -> None:
    message = refused(tmp_path, train=grey(), test=grey(4), labels=labels)
    assert "must be whole numbers in 0..255, one for each of the 4 test images" in message
