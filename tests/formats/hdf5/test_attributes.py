"""Attributes found in the bytes of a file, held against h5py, and against damage HDF5 trusts."""

import struct
from contextlib import closing

import h5py
import numpy as np
import pytest

from ckptavg.formats.hdf5.attributes import AttributeReader
from ckptavg.formats.hdf5.object_headers import open_window, read_messages
from ckptavg.formats.hdf5.window import DamagedError
from ckptavg.storage.open_file import OpenFile
from tests.helpers.models import tiny_model

ATTRIBUTES = {
    "ascii": b"plain",
    "unicode": "vierfünf",
    "empty": "",
    "long": "x" * 100_000,
    "fixed": np.bytes_(b"fixed"),
    "names": np.array([b"a", b"bcd"]),
    "variable names": np.array(["a", "é"], h5py.string_dtype()),
    "no names": np.array([], "float64"),
    "number": 3,
    "numbers": np.ones(3),
    "table": np.array([[b"a"], [b"b"]]),
    "nothing": h5py.Empty("S1"),
}
EXPECTED = {
    "ascii": b"plain",
    "unicode": "vierfünf",
    "empty": "",
    "long": "x" * 100_000,
    "fixed": b"fixed",
    "names": (b"a", b"bcd"),
    "variable names": (b"a", "é".encode()),
    "no names": (),
    "number": None,
    "numbers": None,
    "table": None,
    "nothing": None,
}


def texts(path):
    """The attributes of every folder and tensor of a file."""
    found = {}
    with h5py.File(path) as file, closing(OpenFile(path)) as opened:
        window, _ = open_window(opened, 0, opened.size)
        reader = AttributeReader(window)

        def visit(name, entry):
            address = h5py.h5o.get_info(entry.id).addr
            found[name] = dict(reader.of(read_messages(window, address)))

        visit("/", file)
        file.visititems(visit)
    return found


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"track_order": True}])
@pytest.mark.parametrize("chosen", [list(ATTRIBUTES)[:6], list(ATTRIBUTES)[6:]])
def test_attributes_are_those_that_h5py_wrote(tmp_path, options, chosen):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", **options) as file:
        for place in (file.create_group("folder"), file.create_dataset("tensor", data=1.0)):
            for key in chosen:
                place.attrs[key] = ATTRIBUTES[key]
    for name in ("folder", "tensor"):
        assert texts(path)[name] == {key: EXPECTED[key] for key in chosen}


def test_names_of_layers_are_those_that_h5py_reads(tmp_path):
    path = tmp_path / "m.weights.h5"
    tiny_model().save_weights(path)
    with h5py.File(path) as file:
        for name, found in texts(path).items():
            assert found == dict(file[name].attrs)


@pytest.fixture
def one_text(tmp_path):
    """A file with one text, and where its reference lies."""
    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        file.attrs["text"] = "abcdefgh"
    data = path.read_bytes()
    heap = data.index(b"GCOL")
    place = data.index(struct.pack("<IQI", 8, heap, 1))
    return path, place, heap


@pytest.mark.parametrize("length", [1, 7, 9, 2**31, 2**32 - 1])
def test_a_length_that_the_heap_does_not_confirm(one_text, length):
    path, place, _ = one_text
    data = bytearray(path.read_bytes())
    data[place : place + 4] = length.to_bytes(4, "little")
    path.write_bytes(data)
    assert texts(path)["/"] == {"text": None}


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 0), (4, 9), (8, 0), (8, 255), (16, 0), (16, 2), (24, 255), (31, 255)]
)
def test_a_heap_that_is_damaged(one_text, offset, value):
    path, _, heap = one_text
    data = bytearray(path.read_bytes())
    data[heap + offset] = value
    path.write_bytes(data)
    assert texts(path)["/"] in ({"text": None}, {"text": "abcdefgh"})


def test_attributes_that_share_a_text_cannot_fill_the_memory(tmp_path):
    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        file.attrs["one"], file.attrs["two"] = "first", "other"
    data = path.read_bytes()
    heap = data.index(b"GCOL")
    references = [struct.pack("<IQI", 5, heap, index) for index in (1, 2)]
    path.write_bytes(data.replace(references[1], references[0]))
    assert texts(path)["/"] == {"one": "first", "two": None}


def test_headers_that_share_their_messages_cannot_fill_the_memory(tmp_path):
    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        file.attrs["names"] = np.array([b"x" * 50_000])
        address = h5py.h5o.get_info(file.id).addr
    with closing(OpenFile(path)) as opened:
        window, _ = open_window(opened, 0, opened.size)
        found = AttributeReader(window).of(read_messages(window, address))
        assert found["names"] == (b"x" * 50_000,)
        with pytest.raises(DamagedError, match="two places share the structure"):
            read_messages(window, address)
