"""MATLAB files: what scipy writes is read alike, and no size that a file declares is trusted."""

import struct
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from dcal_hf.data.matlab import read_variable


RECORDS = np.array([[("a b.jpg", 3, np.arange(4.0)), ("é.jpg", 4, np.zeros(0))]],
                   dtype=[("fname", object), ("class", object), ("box", object)])
VARIABLES = {
    "annotations": RECORDS,
    "class_names": np.array([["owl", "auk"]], dtype=object),
    "nested": np.array([[np.array([["deep"]], dtype=object), 7]], dtype=object),
    "text": "a text",
    "number": 2.5,
    "numbers": np.array([[1, 2, 3], [4, 5, 6]], np.int16),
}


def flat(value):
    """What scipy reads, in the form of `read_variable`."""
    if isinstance(value, np.ndarray) and value.dtype.names:
        return {field: [flat(item) for item in value[field].flatten("F")] for field in value.dtype.names}
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return "".join(value.tolist())
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [flat(item) for item in value.flatten("F")]
    return value.item() if value.size == 1 else value.flatten("F")


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def file(request, tmp_path):
    savemat(tmp_path / "all.mat", VARIABLES, do_compression=request.param)
    return tmp_path / "all.mat"


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_is_what_scipy_reads(file, name):
    found = read_variable(file.read_bytes(), name)
    np.testing.assert_equal(found, flat(loadmat(file)[name]))


def test_a_variable_that_is_not_there(file):
    with pytest.raises(KeyError, match="birds"):
        read_variable(file.read_bytes(), "birds")


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(array_class: int, sizes: tuple[int, ...], *parts: bytes, name: bytes = b"x") -> bytes:
    flags, shape = struct.pack("<II", array_class, 0), struct.pack(f"<{len(sizes)}i", *sizes)
    return element(14, b"".join([element(6, flags), element(5, shape), element(1, name), *parts]))


def read(*elements: bytes):
    return read_variable(bytes(124) + b"\x00\x01IM" + b"".join(elements), "x")


DEEP = b""
for _ in range(12):
    DEEP = array(1, (1, 1), DEEP or array(6, (0, 0), element(9, b"")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (array(6, (2**31 - 1, 2**31 - 1), element(9, bytes(8))), "declares more than it holds"),
        (array(1, (2**31 - 1, 1)), "declares more than it holds"),
        (array(1, (-1, 1)), "declares more than it holds"),
        (array(1, (1, 3), array(6, (0, 0), element(9, b""))), "declares more than it holds"),
        (array(6, (2, 1), element(9, bytes(8))), "declares another size than it has"),
        (array(6, (1, 1), element(99, bytes(8))), "data in it are of type 99"),
        (array(2, (1, 1), element(5, struct.pack("<i", 0)), element(1, b"")), "the names of fields in it are damaged"),
        (array(2, (1, 1), element(5, struct.pack("<i", 2**30)), element(1, b"ab")), "the names of fields"),
        (array(17, (1, 1)), "of class 17, which is not read"),
        (array(1, (1, 1), element(9, bytes(8))), "an item in it is no array"),
        (DEEP, "nested too deeply"),
        (struct.pack("<II", 14, 2**31), "is cut short, or declares more than it holds"),
        (b"abc", "it is cut short"),
        (element(15, zlib.compress(b"")), "declares more than it holds"),
    ],
)
def test_no_size_and_no_depth_is_trusted(content, reason):
    with pytest.raises(ValueError, match=reason):
        read(content)
