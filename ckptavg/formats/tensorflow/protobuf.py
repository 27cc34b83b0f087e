"""Protocol buffers as bytes, and the messages that the index of a TensorFlow checkpoint holds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Kinds of values on the wire; groups, 3 and 4, were given up before these formats began."""

_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
BUNDLE_VERSION = 1
"""Of the format that this is; its only one."""

_RANK_LIMIT = 254
"""TensorFlow's own."""

_HEADER = {1: VARINT, 2: VARINT, 3: BYTES}
_VERSION = {1: VARINT, 2: VARINT}
_ENTRY = {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 6: FIXED32, 7: BYTES}
_SHAPE = {2: BYTES, 3: VARINT}
_DIMENSION = {1: VARINT}


class Refused(Exception):  # noqa: N818
    """Why bytes are not taken for what they should be; their reader adds the name of the file."""


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """What an index says of its checkpoint: `BundleHeaderProto`."""

    num_shards: int
    big_endian: bool = False
    min_consumer: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Self:
        found = message(data, _HEADER)
        version = message(_last(found, 3, b""), _VERSION)
        return cls(_last(found, 1, 0), _last(found, 2, 0) != 0, _last(version, 2, 0))

    def encode(self) -> bytes:
        return number(1, self.num_shards) + text(3, number(1, BUNDLE_VERSION))


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """What an index says of a tensor: `BundleEntryProto`.

    Attributes:
        dtype: number of its type among TensorFlow's.
        shape: dimensions; None if they are unknown.
        shard: number of the file that holds it.
        offset: its first byte there.
        size: of its bytes there.
        crc: masked CRC-32C.
        sliced: stored in parts, under other keys.
    """

    dtype: int
    shape: tuple[int, ...] | None
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool = False

    @classmethod
    def decode(cls, data: bytes) -> Self:
        found = message(data, _ENTRY)
        return cls(
            dtype=_last(found, 1, 0),
            shape=_shape(_last(found, 2, b"")),
            shard=_last(found, 3, 0),
            offset=_last(found, 4, 0),
            size=_last(found, 5, 0),
            crc=_last(found, 6, 0),
            sliced=7 in found,
        )

    def encode(self) -> bytes:
        dimensions = b"".join(text(2, number(1, size)) for size in self.shape)
        return b"".join(
            (
                number(1, self.dtype),
                text(2, dimensions),
                number(3, self.shard),
                number(4, self.offset),
                number(5, self.size),
                varint(6 << 3 | FIXED32) + self.crc.to_bytes(4, "little"),
            )
        )


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes, bytes]]:
    """The fields of a message: number, kind, value, and all bytes of the field.

    Raises:
        Refused: the bytes are no message.
    """
    position = 0
    while position < len(data):
        start = position
        tag, position = read_varint(data, position)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, position = read_varint(data, position)
        elif kind == BYTES:
            length, position = read_varint(data, position)
            value, position = data[position : position + length], position + length
        elif kind in _FIXED_SIZES:
            end = position + _FIXED_SIZES[kind]
            value, position = int.from_bytes(data[position:end], "little"), end
        else:
            raise Refused("a message in it has a field of unknown kind")
        if position > len(data) or field == 0:
            raise Refused("a message in it is cut off or damaged")
        yield field, kind, value, data[start:position]


def message(data: bytes, known: Mapping[int, int]) -> dict[int, list]:
    """Values of the fields whose kinds are known, by number; others are left out.

    Raises:
        Refused: the bytes are no such message.
    """
    found: dict[int, list] = {}
    for field, kind, value, _ in fields(data):
        if field in known:
            if kind != known[field]:
                raise Refused(f"field {field} of a message in it has another kind than it should")
            found.setdefault(field, []).append(value)
    return found


def number(field: int, value: int) -> bytes:
    """A field that holds a whole number; one that is 0 is left out."""
    return varint(field << 3 | VARINT) + varint(value) if value else b""


def text(field: int, value: bytes) -> bytes:
    """A field that holds bytes or a message."""
    return varint(field << 3 | BYTES) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A whole number in groups of 7 bits, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of up to 64 bits and the position after it.

    Raises:
        Refused: it is cut off or too large.
    """
    if position < len(data) and data[position] < 0x80:  # nearly always
        return data[position], position + 1
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
        shift += 7
    raise Refused("a number in it is cut off or too large")


def _last(found: Mapping[int, list], field: int, default: int | bytes) -> int | bytes:
    """The value of a field that is there once at most; of several, the last counts."""
    return found[field][-1] if field in found else default


def _shape(data: bytes) -> tuple[int, ...] | None:
    found = message(data, _SHAPE)
    if _last(found, 3, 0):
        return None
    dimensions = found.get(2, [])
    if len(dimensions) > _RANK_LIMIT:
        raise Refused(f"a tensor in it has {len(dimensions)} dimensions")
    shape = tuple(_last(message(dimension, _DIMENSION), 1, 0) for dimension in dimensions)
    return None if any(size >> 63 for size in shape) else shape  # -1 stands for unknown
