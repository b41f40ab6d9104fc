"""Reads variables of MATLAB 5 files, the format of Stanford Cars' lists.

scipy's reader trusts the sizes that a file declares: a small file can take all memory or crash the process. Here every
size is compared with the bytes that are there. The format is described in MathWorks' "MAT-File Format".
"""

import struct
import zlib
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np


# The official files take some MB.
MAX_BYTES = 100 << 20
MAX_DEPTH = 8
_HEADER = 128
# The version of the format and the little-endian order of bytes.
_VERSION = b"\x00\x01IM"
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CODECS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
# The classes of arrays.
_CELL, _STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 2, 4, 6, 15

# Its type and its data.
Element = tuple[int, memoryview]


def read_variable(content: bytes, name: str) -> Any:
    """Reads a variable of a file.

    Args:
        content (`bytes`): The file.
        name (`str`): The variable.

    Returns:
        A struct array as a `dict` from each field to the `list` of its values, a cell array as a `list`, a text as
        `str`, a number as `int` or `float`, and other numeric arrays as (N,) `np.ndarray`. Shapes are flattened by
        columns.

    Raises:
        KeyError: If the file has no such variable.
        ValueError: If the file is damaged, of another version or nested too deeply, its compressed variables take more
            than `MAX_BYTES`, or the variable is of another class.
    """
    if content[_HEADER - len(_VERSION):_HEADER] != _VERSION:
        raise ValueError("it is no MATLAB 5 file, or of a big-endian machine")
    left = MAX_BYTES
    for kind, data in _elements(memoryview(content)[_HEADER:]):
        if kind == _COMPRESSED:
            data = memoryview(zlib.decompressobj().decompress(data, left + 1))
            left -= len(data)
            if left < 0:
                raise ValueError(
                    f"its compressed variables take more than {MAX_BYTES:,} bytes; if you trust it, save it "
                    "uncompressed"
                )
            kind, data = _next(_elements(data))
        if kind == _MATRIX and _name(data) == name:
            return _matrix(data, 0)
    raise KeyError(name)


def _elements(content: memoryview) -> Iterator[Element]:
    """The type and data of consecutive elements."""
    place = 0
    while place < len(content):
        if len(content) - place < 8:
            raise ValueError("it is cut short")
        kind, size = struct.unpack_from("<II", content, place)
        if kind >> 16:
            # A small element: up to four bytes of data in its tag.
            kind, size, start, place = kind & 0xFFFF, kind >> 16, place + 4, place + 8
            end = place
        else:
            start = place + 8
            end = start + size
            place = end if kind == _COMPRESSED else end + -size % 8
        if start + size > min(end, len(content)):
            raise ValueError("it is cut short, or declares more than it holds")
        yield kind, content[start:start + size]


def _name(content: memoryview) -> str:
    elements = _elements(content)
    *_, (_, name) = (_next(elements) for _ in range(3))
    return bytes(name).decode("latin-1")


def _next(elements: Iterator[Element]) -> Element:
    element = next(elements, None)
    if element is None:
        raise ValueError("it declares more than it holds")
    return element


def _matrix(content: memoryview, depth: int) -> Any:
    """The value of an array. An empty element is an empty array."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if not content:
        return []
    elements = _elements(content)
    (_, flags), (_, sizes), _ = (_next(elements) for _ in range(3))
    if len(flags) < 4 or len(sizes) % 4:
        raise ValueError("an array in it has no class or no shape")
    array_class = struct.unpack_from("<I", flags)[0] & 0xFF
    count = prod(np.frombuffer(sizes, "<i4").tolist())
    # Every item takes a byte at least.
    if not 0 <= count <= len(content):
        raise ValueError("an array in it declares more than it holds")
    if array_class == _CELL:
        return [_item(elements, depth) for _ in range(count)]
    if array_class == _STRUCT:
        return _structs(elements, count, depth)
    if array_class == _CHAR or _FIRST_NUMBER <= array_class <= _LAST_NUMBER:
        return _plain(*_next(elements), count, array_class == _CHAR)
    raise ValueError(f"an array in it is of class {array_class}, which is not read")


def _item(elements: Iterator[Element], depth: int) -> Any:
    kind, data = _next(elements)
    if kind != _MATRIX:
        raise ValueError("an item in it is no array")
    return _matrix(data, depth + 1)


def _structs(elements: Iterator[Element], count: int, depth: int) -> dict[str, list[Any]]:
    (_, length), (_, names) = _next(elements), _next(elements)
    width = int.from_bytes(length, "little")
    if width < 1 or len(names) % width:
        raise ValueError("the names of fields in it are damaged")
    padded = [bytes(names[place:place + width]) for place in range(0, len(names), width)]
    fields = [name.split(b"\0")[0].decode("latin-1") for name in padded]
    values: dict[str, list[Any]] = {field: [] for field in fields}
    for _ in range(count):
        for field in fields:
            values[field].append(_item(elements, depth))
    return values


def _plain(kind: int, data: memoryview, count: int, is_text: bool) -> Any:
    if is_text and kind in _CODECS:
        return bytes(data).decode(_CODECS[kind])
    if is_text or kind not in _NUMBERS:
        raise ValueError(f"data in it are of type {kind}, which is not read")
    dtype = np.dtype(f"<{_NUMBERS[kind]}")
    if len(data) != count * dtype.itemsize:
        raise ValueError("an array in it declares another size than it has")
    numbers = np.frombuffer(data, dtype)
    return numbers[0].item() if count == 1 else numbers


__all__ = ["MAX_BYTES", "read_variable"]
