"""OMNIGLOT and CalTech 101 Silhouettes: small MATLAB files of the published keys and layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from flowvae.data import Dataset, load_data, matlab_sets
from flowvae.errors import InputError

PLACES = {
    "omniglot": "omniglot/chardata.mat",
    "caltech101-silhouettes": "caltech101_silhouettes/caltech101_silhouettes_28_split1.mat",
}


def stroke() -> NDArray[np.float64]:
    """An image that no flip or transposition maps on itself: an L in the upper left."""
    image = np.zeros((28, 28))
    image[2:12, 3] = 1
    image[11, 3:7] = 0.5
    return image


def columns(images: NDArray) -> NDArray:
    """Stack the columns of images (N, 28, 28), as MATLAB's `reshape` does: (N, 784)."""
    return np.stack([image.ravel(order="F") for image in images])


@pytest.fixture
def omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray]:
    """The arrays of a small `chardata.mat`: 12 training images and 3 of the test."""
    draw = np.random.default_rng(0)
    train, test = draw.random((12, 28, 28)), draw.random((3, 28, 28))
    train[0], test[0] = stroke(), stroke()
    arrays = {"data": columns(train).T, "testdata": columns(test).T}
    arrays["testtarget"] = np.eye(50)[:, [49, 0, 7]]
    for key, array in arrays.items():
        monkeypatch.setitem(matlab_sets.OMNIGLOT_SHAPES, key, array.shape)
    save(tmp_path, "omniglot", arrays)
    return arrays


@pytest.fixture
def silhouettes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray]:
    """The arrays of a small `caltech101_silhouettes_28_split1.mat`: 5, 3 and 4 images."""
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in {"train": 5, "val": 3, "test": 4}.items():
        images = draw.integers(0, 2, (count, 28, 28), np.uint8)
        images[0] = stroke() == 0  # the object is black, 0, on white
        arrays[f"{part}_data"] = columns(images)
    arrays["test_labels"] = np.array([[1], [101], [7], [7]], np.uint8)
    for key, array in arrays.items():
        monkeypatch.setitem(matlab_sets.SILHOUETTES_SHAPES, key, array.shape)
    save(tmp_path, "caltech101-silhouettes", arrays)
    return arrays


def save(root: Path, name: str, arrays: dict[str, NDArray]) -> Path:
    path = root / PLACES[name]
    path.parent.mkdir(exist_ok=True)
    savemat(path, arrays)
    return path


def load(root: Path, name: str) -> Dataset:
    return load_data("omniglot[valid=4]" if name == "omniglot" else name, root)


def test_shapes_are_the_published_ones() -> None:
    assert matlab_sets.OMNIGLOT_SHAPES == {
        "data": (784, 24_345), "testdata": (784, 8_070), "testtarget": (50, 8_070),
    }  # fmt: skip
    assert matlab_sets.SILHOUETTES_SHAPES == {
        "train_data": (4_100, 784), "val_data": (2_264, 784), "test_data": (2_307, 784),
        "test_labels": (2_307, 1),
    }  # fmt: skip


def test_omniglot_is_grey_upright_and_drawn(omniglot: dict[str, NDArray], tmp_path: Path) -> None:
    data = load_data("omniglot[valid=4]", tmp_path)
    assert data.spec == "omniglot[valid=4,binarise=stochastic]"
    assert (data.levels, len(data.train), len(data.valid), len(data.test)) == (255, 8, 4, 3)
    assert data.labels.tolist() == [49, 0, 7]
    sure = stroke() != 0.5
    assert np.array_equal(data.test[0].view(28, 28)[sure], stroke()[sure])
    # As in the paper's code: RandomState(123) permutes, the last are held out.
    order = np.random.RandomState(123).permutation(12)
    grey = omniglot["data"].T[order].reshape(12, 28, 28).swapaxes(1, 2).reshape(12, 784)
    assert abs(data.train.numpy() / 255 - grey[:8]).max() <= 0.5 / 255 + 1e-9
    half = load_data("omniglot[valid=4,binarise=threshold]", tmp_path)
    assert np.array_equal(half.test[0].view(28, 28), stroke() >= 0.5)
    clear = abs(grey - 0.5) > 0.5 / 255
    assert np.array_equal(half.train.numpy()[clear[:8]], (grey >= 0.5)[:8][clear[:8]])
    assert np.array_equal(half.valid.numpy()[clear[8:]], (grey >= 0.5)[8:][clear[8:]])


def test_silhouettes_are_upright_with_the_object_as_one(
    silhouettes: dict[str, NDArray], tmp_path: Path
) -> None:
    data = load_data("caltech101-silhouettes", tmp_path)
    assert data.spec == "caltech101-silhouettes[valid=2264,binarise=fixed]"
    assert (data.levels, len(data.train), len(data.valid), len(data.test)) == (1, 5, 3, 4)
    assert data.labels.tolist() == [1, 101, 7, 7]
    for part, key in (("train", "train"), ("valid", "val"), ("test", "test")):
        images = getattr(data, part).view(-1, 28, 28)
        assert np.array_equal(images[0], stroke() > 0), part
        assert np.array_equal(columns(images.numpy()), 1 - silhouettes[f"{key}_data"])


def test_silhouettes_may_be_floating(silhouettes: dict[str, NDArray], tmp_path: Path) -> None:
    before = load_data("caltech101-silhouettes", tmp_path)
    arrays = {key: array.astype(float) for key, array in silhouettes.items()}
    save(tmp_path, "caltech101-silhouettes", arrays)
    assert load_data("caltech101-silhouettes", tmp_path).hash == before.hash


@pytest.mark.parametrize("name", PLACES)
def test_absent_file_says_where_to_get_it_and_where_to_put_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / PLACES[name]
    with pytest.raises(InputError) as caught:
        load(tmp_path, name)
    message = str(caught.value)
    assert "\n" not in message
    assert f"is not in {path.parent}. Two ways out: " in message
    for cure in ("--data-dir", "FLOWVAE_DATA", f"copy the file there: {path.name}, from https://"):
        assert cure in message


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("keep", [0, 10, 200, 2_000])
@pytest.mark.usefixtures("omniglot", "silhouettes")
def test_truncated_file_is_refused_by_name(name: str, keep: int, tmp_path: Path) -> None:
    path = tmp_path / PLACES[name]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        load(tmp_path, name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path} is no file of ")
    assert "; delete it and fetch it from https://" in message


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        ("omniglot", {"data": None}, r"expected 'data' of shape \(784, 12\); got nothing"),
        ("omniglot", {"testdata": np.zeros((784, 2))}, r"'testdata'.*got \(784, 2\)"),
        ("omniglot", {"data": np.full((784, 12), 1.5)}, r"in \[0, 1\]; got 1.5 at \[0, 0\]"),
        ("omniglot", {"data": np.full((784, 12), np.nan)}, r"got nan at \[0, 0\]"),
        ("caltech101-silhouettes", {"val_data": None}, r"'val_data'.*got nothing"),
        ("caltech101-silhouettes", {"test_data": np.full((4, 784), 3)}, r"got 3 at \[0, 0\]"),
    ],
    ids=["no key", "few", "above one", "NaN", "no part", "other value"],
)
def test_other_content_is_refused_by_name(
    name: str,
    changes: dict[str, NDArray | None],
    found: str,
    omniglot: dict[str, NDArray],
    silhouettes: dict[str, NDArray],
    tmp_path: Path,
) -> None:
    arrays = (omniglot if name == "omniglot" else silhouettes) | changes
    save(tmp_path, name, {key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=found) as caught:
        load(tmp_path, name)
    assert str(caught.value).startswith(f"{tmp_path / PLACES[name]} is no file of ")
