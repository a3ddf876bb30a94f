"""MATLAB's files of level 5 (versions 5 to 7), as far as images take them: arrays of numbers.

scipy reads them too, but a single wrong byte can make its reader end the process; here it is a
`ValueError`. A file is a header of 128 bytes and a chain of elements, each a type, a size and that
many bytes, filled up to a multiple of 8. An array is an element made of four: flags, dimensions,
name, numbers. It may lie in an element that zlib compressed.

References:
    MAT-File Format (The MathWorks),
    https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_arrays"]


HEADER = 128
NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
"""NumPy's types by the types of elements."""
MATRIX, COMPRESSED = 14, 15
NUMERIC = range(6, 16)
"""The classes of arrays of numbers; those below are cells, structures, texts and the like."""
COMPLEX = 0x800


def read_arrays(content: bytes, names: Collection[str], most: int) -> dict[str, NDArray]:
    """Reads arrays of real numbers; their type is that in which they are stored.

    Arguments:
        content: The file.
        names: The arrays that are wanted; others are passed over.
        most: The most bytes that an array may take when it is no longer compressed.

    Returns:
        The wanted arrays that are there, by name.

    Raises:
        ValueError: It is no such file, or it is damaged.

    Example:
        >>> import io
        >>> from scipy.io import savemat
        >>> savemat(file := io.BytesIO(), {"a": [[1.0, 2.0]], "b": "text"})
        >>> read_arrays(file.getvalue(), ["a", "b"], most=100)
        {'a': array([[1., 2.]])}
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:HEADER])
    if order is None:
        raise ValueError("it is no MATLAB file of version 5 to 7")
    found = {}
    for kind, element in _elements(memoryview(content)[HEADER:], order):
        if kind == COMPRESSED:
            try:
                whole = zlib.decompressobj().decompress(element, most + 1024)
            except zlib.error as error:
                raise ValueError(f"it is compressed, and damaged ({error})") from None
            kind, element = next(_elements(memoryview(whole), order), (0, memoryview(b"")))
        if kind == MATRIX:
            name, array = _array(element, order, names)
            if array is not None:
                found[name] = array
    return found


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yields each element's type and bytes."""
    at = 0
    while at < len(content):
        if len(content) < at + 8:
            raise ValueError("it ends within an element")
        kind, size = struct.unpack_from(f"{order}II", content, at)
        start = at + 8
        if kind >> 16:  # a short one: type and size in one word, its bytes in the other
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if size > len(content) - start or (start < at + 8 and size > 4):
            raise ValueError("it ends within an element")
        yield kind, content[start : start + size]
        at = start + size
        if kind != COMPRESSED:
            at += -at % 8


def _array(element: memoryview, order: str, names: Collection[str]) -> tuple[str, NDArray | None]:
    """Reads the name of an array, and the array if it is one of numbers that is wanted."""
    parts = list(itertools.islice(_elements(element, order), 4))
    if len(parts) < 3:
        raise ValueError("one of its arrays is cut off")
    flags, dimensions, name = (bytes(part) for _, part in parts[:3])
    text = name.decode("latin-1")
    if text not in names:
        return text, None
    if len(parts) < 4 or len(flags) < 4:
        raise ValueError(f"its '{text}' is cut off")
    (flag,) = struct.unpack_from(f"{order}I", flags)
    kind, numbers = parts[3]
    if (flag & 0xFF) not in NUMERIC:
        return text, None
    if flag & COMPLEX or kind not in NUMBERS:
        raise ValueError(f"its '{text}' holds no real numbers")
    shape = np.frombuffer(dimensions, f"{order}i4")
    array = np.frombuffer(numbers, order + NUMBERS[kind])
    if (shape < 0).any() or np.prod(shape, dtype=object) != len(array):
        raise ValueError(f"its '{text}' holds {len(array)} numbers, and not as many as its shape")
    return text, array.reshape(shape, order="F")
