"""Files of images from anybody: a data set or a line of refusal; nothing is run or written."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.io import savemat
from support.malformed import NASTY, damaged, examples, refusal

from flowvae.data import Dataset, binarised_mnist, load_data, matlab_sets, mnist_family
from flowvae.data.matlab_format import read_arrays

GREY = np.random.default_rng(0).integers(0, 256, (6, 2, 3)).astype(np.uint8)
LABELS = np.arange(6) % 10
VERSIONS: list[tuple[int, int]] = [(1, 0), (2, 0), (3, 0)]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def npy(array: NDArray, version: tuple[int, int] | None = None) -> bytes:
    np.lib.format.write_array(file := io.BytesIO(), array, version=version)
    return file.getvalue()


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


PARTS = {"train.npy": npy(GREY), "test.npy": npy(GREY), "labels.npy": npy(LABELS)}
NPY = [npy(GREY, version) for version in VERSIONS]
NPY += [
    npy(GREY / 255),
    npy(np.asfortranarray(GREY)),
    npy(GREY > 99),
    npy((GREY / 255).astype(">f2")),
]
NPZ = [npz(PARTS, method) for method in METHODS]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the data sets, in an empty one that is watched."""
    above = tmp_path_factory.mktemp("above")
    (above / "data").mkdir()
    yield above / "data"
    assert os.listdir(above) == ["data"]


def own(root: Path, content: bytes, suffix: str) -> str | None:
    """Load a file of these bytes; return what is said against it."""
    path = root / f"mine{suffix}"
    path.write_bytes(content)
    said = refusal(load_data, f"file[path={path.name}]", root)
    assert said is None or "mine" in said
    assert os.listdir(root) == [path.name]
    path.unlink()
    return said


@given(data=st.data())
@examples(600)
def test_damaged_arrays(data: st.DataObject, root: Path) -> None:
    sources, suffix = data.draw(st.sampled_from([(NPY, ".npy"), (NPZ, ".npz")]))
    content = data.draw(damaged(data.draw(st.sampled_from(sources))))
    own(root, content, data.draw(st.sampled_from([suffix, suffix, ".npy", ".npz"])))


@given(data=st.data())
@examples(200)
def test_headers_of_arrays(data: st.DataObject, root: Path) -> None:
    """What a header may say: any type, any shape, and what is no header at all."""
    sizes = st.lists(
        st.sampled_from([0, 1, 2, 3, 6, -1, 10**9, 10**12, 2**63, 10**400]), max_size=4
    )
    header = {
        "descr": data.draw(
            st.sampled_from(
                ["|u1", "<f8", "|O", "|b1", "<M8[s]", "<U3", "|V5", "", "x", "<c16", "<f16", ">i2"]
            )
            | st.lists(st.tuples(st.text(max_size=2), st.sampled_from(["|u1", "|O"])), max_size=2)
        ),
        "fortran_order": data.draw(st.booleans() | st.integers()),
        "shape": data.draw(sizes.map(tuple) | sizes | st.just("(6, 2, 3)")),
    }
    text = repr(header) if data.draw(st.booleans()) else data.draw(st.sampled_from(NASTY))
    filled = f"{text}\n".encode(errors="replace")
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(filled)) + filled + GREY.tobytes()
    if data.draw(st.booleans()):
        own(root, npz(PARTS | {"train.npy": content}), ".npz")
    else:
        own(root, content, ".npy")


def test_a_header_of_python_2_is_read(root: Path) -> None:
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (6L, 2L, 3L)}\n"
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    assert own(root, header + GREY.tobytes(), ".npy") is None


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickles_are_not_run(suffix: str, root: Path, tmp_path: Path) -> None:
    bomb = _Bomb(tmp_path / "executed")
    objects = npy(np.array([bomb, bomb], dtype=object))
    plain = pickle.dumps(bomb)
    for content in (plain, objects, npz({"train.npy": objects}), npz({"train.npy": plain}),
                    npz(PARTS | {"test.npy": plain}), npz(PARTS | {"x.pkl": plain})):  # fmt: skip
        assert own(root, content, suffix)
    assert not bomb.marker.exists()
    pickle.loads(plain)  # the bomb itself works
    assert bomb.marker.exists()


@pytest.mark.parametrize(
    "name",
    ["../../evil.npy", "/tmp/evil.npy", "..\\evil.npy", "train.npy/../../evil.npy", "C:evil.npy",
     "a/train.npy", "../train.npy", "train.npy.npy", ".npy", "x" * 60_000, "\u202e.npy"],
    ids=range(11),
)  # fmt: skip
def test_paths_of_archives_are_names_of_arrays(name: str, root: Path) -> None:
    said = own(root, npz(PARTS | {name: npy(GREY)}), ".npz")
    assert said
    assert "unknown array" in said
    assert said.endswith("expected one of train, valid, test, labels") or "did you mean" in said


def test_what_numpy_returns_as_bytes_is_no_array(root: Path) -> None:
    assert "is no array" in (own(root, npz(PARTS | {"train.npy": b"raw"}), ".npz") or "")
    assert "is no array" in (own(root, npz(PARTS | {"labels": b""}), ".npz") or "")


def test_shapes_take_no_memory(root: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in ((10**12, 8, 8), (10**10, 1, 1), (3 * 10**9, 1, 1), (2**62, 2**62, 1)):
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(100)
        assert own(root, content, ".npy")
        assert own(root, npz(PARTS | {"train.npy": content}, zipfile.ZIP_DEFLATED), ".npz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB on Linux


@given(text=st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=40)))
@examples(200)
def test_paths(text: str, root: Path) -> None:
    for path in (text, f"{text}.npz", f"../{text}.npy"):
        assert refusal(load_data, f"file[path={path}]", root)


FAMILY = replace(mnist_family.FAMILIES["kmnist"], train=5, test=3, sha256=None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of a few images under their published names."""
    monkeypatch.setitem(mnist_family.FAMILIES, "kmnist", FAMILY)
    monkeypatch.setattr(binarised_mnist, "COUNTS", {"train": 2, "valid": 1, "test": 1})
    for shapes in (matlab_sets.OMNIGLOT_SHAPES, matlab_sets.SILHOUETTES_SHAPES):
        for key, array in ARRAYS.items():
            if key in shapes:
                monkeypatch.setitem(shapes, key, array.shape)


def _idx(array: NDArray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


draw = np.random.default_rng(0)
ARRAYS = {
    "data": draw.random((784, 4)), "testdata": draw.random((784, 2)),
    "testtarget": np.eye(50)[:, :2],
    "train_data": draw.integers(0, 2, (3, 784), np.uint8),
    "val_data": draw.integers(0, 2, (2, 784), np.uint8),
    "test_data": draw.integers(0, 2, (2, 784), np.uint8),
    "test_labels": np.array([[1], [101]], np.uint8),
}  # fmt: skip


def _mat(names: list[str], *, compressed: bool = False) -> bytes:
    arrays = {name: ARRAYS[name] for name in names} | {"other": "text", "cell": {"a": 1}}
    savemat(file := io.BytesIO(), arrays, do_compression=compressed)
    return file.getvalue()


ROW = b" ".join([b"0", b"1"] * 392)
PUBLISHED = {
    "kmnist[valid=1]": {
        f"KMNIST/raw/{name}": _idx(array)
        for name, array in zip(
            FAMILY.source.files,
            [np.zeros((n, *s), np.uint8) for n in (5, 3) for s in ((28, 28), ())],
            strict=True,
        )
    },
    "mnist-fixed": {
        f"BinarizedMNIST/{name}": b"\n".join([ROW] * count) + b"\n"
        for name, count in zip(binarised_mnist.SOURCE.files, (2, 1, 1), strict=True)
    },
    "omniglot[valid=1]": {"omniglot/chardata.mat": _mat(list(ARRAYS)[:3])},
    "caltech101-silhouettes": {
        f"caltech101_silhouettes/{matlab_sets.SILHOUETTES.files[0]}": _mat(list(ARRAYS)[3:])
    },
}


@pytest.mark.parametrize("spec", PUBLISHED)
@pytest.mark.usefixtures("small")
@given(data=st.data())
@examples(80)
def test_damaged_files_of_published_data(
    spec: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = PUBLISHED[spec]
    root = tmp_path_factory.getbasetemp() / "published" / spec.partition("[")[0]
    for place, content in files.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(content)
    assert isinstance(load_data(spec, root), Dataset)
    bad = data.draw(st.sampled_from(sorted(files)))
    (root / bad).write_bytes(data.draw(damaged(files[bad])))
    said = refusal(load_data, spec, root)
    assert said is None or Path(bad).name in said


@given(content=damaged(_mat(list(ARRAYS)[:3])) | damaged(_mat(list(ARRAYS)[:3], compressed=True)))
@examples(300)
def test_damaged_matlab_files(content: bytes) -> None:
    try:
        found = read_arrays(content, list(ARRAYS)[:3], most=8 * 784 * 4)
    except ValueError:
        return
    assert all(array.nbytes <= 8 * 784 * 4 for array in found.values())


def test_matlab_files_of_both_byte_orders_and_bombs() -> None:
    content = _mat(list(ARRAYS)[:3], compressed=True)
    found = read_arrays(content, ARRAYS, most=8 * 784 * 4)
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in list(ARRAYS)[:3])
    savemat(file := io.BytesIO(), {"data": np.zeros((10**4, 10**3))}, do_compression=True)
    with pytest.raises(ValueError, match="ends within an element"):
        read_arrays(file.getvalue(), ["data"], most=10**4)
    order = struct.Struct(">III4xII8sHH4sIIdd")
    array = order.pack(6, 8, 6, 5, 8, struct.pack(">ii", 1, 2), 1, 1, b"a\0\0\0", 9, 16, 0.5, 2.0)
    swapped = b"MATLAB".ljust(124) + b"\1\0MI" + struct.pack(">II", 14, len(array)) + array
    (read,) = read_arrays(swapped, ["a"], most=100).values()
    assert read.tolist() == [[0.5, 2.0]]
