"""Indexes that are compressed by Snappy, as TensorFlow 1 wrote them."""

import tracemalloc
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import ckptavg
from ckptavg.formats.tensorflow.protobuf import Refused, read_varint, varint
from ckptavg.formats.tensorflow.snappy import unpack
from ckptavg.formats.tensorflow.table import mask, read_table
from tests.helpers.files import read_tensors
from tests.helpers.tensorflow_checkpoints import save

SAMPLE = Path(__file__).parents[2] / "data" / "snappy_index" / "variables"
LIMIT = 2**20


def literal(data: bytes) -> bytes:
    size = len(data) - 1
    if size < 60:
        return bytes([size << 2]) + data
    width = (size.bit_length() + 7) // 8
    return bytes([(59 + width) << 2]) + size.to_bytes(width, "little") + data


def copy(offset: int, size: int, width: int) -> bytes:
    if width == 1:
        return bytes([(offset >> 8) << 5 | (size - 4) << 2 | 1, offset & 0xFF])
    return bytes([(size - 1) << 2 | (2 if width == 2 else 3)]) + offset.to_bytes(width, "little")


def packed(data: bytes) -> bytes:
    """A stream of literals, and of copies of each kind where bytes come again."""
    found, position, begun, number = bytearray(varint(len(data))), 0, 0, 0
    while position < len(data):
        size = next((n for n in (64, 11, 4) if data.find(data[position : position + n], 0,
                     position + n - 1) >= 0 and position + n <= len(data)), 0)  # fmt: skip
        if not size:
            position += 1
            continue
        offset = position - data.rfind(data[position : position + size], 0, position + size - 1)
        kinds = [w for w in (1, 2, 4) if offset < 1 << min(8 * w + 3 * (w == 1), 32)]
        kinds = kinds if size <= 11 else [w for w in kinds if w > 1]
        if begun < position:
            found += literal(data[begun:position])
        found += copy(offset, size, kinds[number % len(kinds)])
        number, position = number + 1, position + size
        begun = position
    return bytes(found + literal(data[begun:])) if begun < len(data) else bytes(found)


@given(
    st.lists(st.sampled_from([b"a", b"bc", b"layers/dense/vars/0", bytes(70), b"xyz" * 30]))
    .map(b"".join)
    .flatmap(lambda data: st.binary(max_size=200).map(lambda more: data + more + data))
)
def test_what_was_packed_is_unpacked(data):
    assert unpack(packed(data), LIMIT) == data


def test_copies_that_reach_into_themselves_repeat():
    assert unpack(varint(10) + literal(b"ab") + copy(2, 8, 1), LIMIT) == b"ab" * 5
    assert unpack(varint(65) + literal(b"a") + copy(1, 64, 4), LIMIT) == b"a" * 65


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\xff" * 10,
        varint(5),
        varint(5) + literal(b"abcd"),
        varint(3) + literal(b"abcd"),
        varint(8) + literal(b"abcd") + copy(5, 4, 1),
        varint(8) + literal(b"abcd") + copy(0, 4, 1),
        varint(8) + literal(b"abcd") + copy(4, 4, 2)[:-1],
        varint(100) + bytes([60 << 2]),
        varint(100) + bytes([63 << 2]) + b"\xff" * 4,
        varint(LIMIT + 1) + bytes(LIMIT),
        varint(2**40) + literal(b"a"),
    ],
)
def test_damaged_streams_are_refused(stream):
    with pytest.raises(Refused):
        unpack(stream, LIMIT)


@given(st.binary(max_size=60), st.integers(0, 300))
def test_no_stream_gives_more_than_it_declares(stream, length):
    with suppress(Refused):
        assert len(unpack(varint(length) + stream, 200)) == length <= 200


def test_memory_is_bounded_by_the_limit():
    bomb = varint(2**20) + literal(b"a") + copy(1, 64, 2) * 10**6
    tracemalloc.start()
    with pytest.raises(Refused, match="does not unpack to the declared length"):
        unpack(bomb, 2**24)
    assert tracemalloc.get_traced_memory()[1] < 3 * 2**20
    tracemalloc.stop()


def compressed(index: bytes) -> bytes:
    """An index of one block, with its blocks compressed."""
    entries = list(read_table(index))
    start, position = read_varint(index, len(index) - 48)
    size, position = read_varint(index, position)
    data, found = index[: start - 5], bytearray()

    def append(block: bytes) -> bytes:
        handle = varint(len(found)) + varint(len(packed(block)))
        stored = packed(block) + b"\1"
        found.extend(stored + mask(google_crc32c.value(stored)).to_bytes(4, "little"))
        return handle

    last, ends = entries[-1][0], bytes(4) + (1).to_bytes(4, "little")
    place = append(data)
    meta = append(index[start : start + size])
    top = append(varint(0) + varint(len(last)) + varint(len(place)) + last + place + ends)
    return bytes(found) + (meta + top).ljust(40, b"\0") + index[-8:]


def test_it_is_read_as_tensorflow_reads_it(tmp_path):
    values = {f"layer_{n}/kernel": np.float32([n, -n]) for n in range(40)}
    prefix = save(tmp_path / "c", {name: tf.constant(value) for name, value in values.items()})
    index = tmp_path / "c.index"
    plain = index.read_bytes()
    index.write_bytes(compressed(plain))
    assert len(plain) > index.stat().st_size
    reader = tf.train.load_checkpoint(str(prefix))
    found = read_tensors(prefix)
    assert sorted(found) == sorted(values)
    for name, value in values.items():
        assert found[name].tolist() == reader.get_tensor(name).tolist() == value.tolist()
    data = bytearray(index.read_bytes())
    data[40] ^= 1
    index.write_bytes(data)
    with pytest.raises(ckptavg.errors.FormatError, match="fails its checksum"):
        read_tensors(prefix)


def test_one_that_tensorflow_1_wrote(tmp_path):
    expected = tf.train.load_checkpoint(str(SAMPLE))
    names = list(expected.get_variable_to_shape_map())
    found = read_tensors(SAMPLE)
    assert sorted(found) == sorted(names) == ["a", "a2", "b", "c", "c2"]
    assert {n: float(v) for n, v in found.items()} == {
        n: float(expected.get_tensor(n)) for n in names
    }
    ckptavg.merge(SAMPLE, tmp_path / "out")
    assert tf.train.load_checkpoint(str(tmp_path / "out")).get_tensor("a") == found["a"]
    assert [v.average for v in ckptavg.verify(tmp_path / "out")] == ["reproduced"]
