"""Protocol buffers as bytes, and the two messages of the index of a TensorFlow checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. Groups, 3 and 4, were deprecated before these formats existed."""

BUNDLE_VERSION = 1
"""The only version of the checkpoint format that exists."""

_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
_RANK_LIMIT = 254
"""TensorFlow's own limit."""

_HEADER = {1: VARINT, 2: VARINT, 3: BYTES}
_VERSION = {1: VARINT, 2: VARINT}
_ENTRY = {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 6: FIXED32, 7: BYTES}
_SHAPE = {2: BYTES, 3: VARINT}
_DIMENSION = {1: VARINT}


class Refused(Exception):  # noqa: N818
    """The bytes are not what they should be; the caller, who knows the file, adds its name."""


class Field(NamedTuple):
    """One field of a message."""

    number: int
    wire_type: int
    integer: int
    """The value, unless the wire type is `BYTES`."""
    content: bytes
    """The value if the wire type is `BYTES`: bytes, a string or a message."""
    encoded: bytes
    """The whole field as it is stored."""


class Message:
    """The known fields of a message; where a single value is expected, the last one counts."""

    def __init__(self, data: bytes, wire_types: Mapping[int, int]) -> None:
        """Decodes a message.

        Args:
            data: the message.
            wire_types: that of each known field, by its number; other fields are skipped.

        Raises:
            Refused: the bytes are not such a message.
        """
        self._fields: dict[int, list[Field]] = {}
        for field in fields(data):
            if field.number in wire_types:
                if field.wire_type != wire_types[field.number]:
                    raise Refused(f"field {field.number} of a message has an unexpected wire type")
                self._fields.setdefault(field.number, []).append(field)

    def integer(self, number: int) -> int:
        return self._fields[number][-1].integer if number in self._fields else 0

    def content(self, number: int) -> bytes:
        return self._fields[number][-1].content if number in self._fields else b""

    def contents(self, number: int) -> list[bytes]:
        """The values of a repeated field."""
        return [field.content for field in self._fields.get(number, ())]

    def __contains__(self, number: int) -> bool:
        return number in self._fields


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """The facts about a whole checkpoint: `BundleHeaderProto`."""

    num_shards: int
    big_endian: bool = False
    min_consumer: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Self:
        found = Message(data, _HEADER)
        version = Message(found.content(3), _VERSION)
        return cls(found.integer(1), found.integer(2) != 0, version.integer(2))

    def encode(self) -> bytes:
        return number(1, self.num_shards) + text(3, number(1, BUNDLE_VERSION))


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """The facts about one tensor: `BundleEntryProto`.

    Attributes:
        dtype: TensorFlow's number of its dtype.
        shape: dimensions; None if they are unknown.
        shard: number of the file that holds it.
        offset: its first byte there.
        size: its bytes there.
        crc: masked CRC-32C.
        sliced: whether it is stored in parts, under other keys.
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
        found = Message(data, _ENTRY)
        return cls(
            dtype=found.integer(1),
            shape=_shape(found.content(2)),
            shard=found.integer(3),
            offset=found.integer(4),
            size=found.integer(5),
            crc=found.integer(6),
            sliced=7 in found,
        )

    def encode(self) -> bytes:
        dimensions = b"".join(text(2, number(1, size)) for size in self.shape or ())
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


def fields(data: bytes) -> Iterator[Field]:
    """The fields of a message, in order.

    Raises:
        Refused: the bytes are not a message.
    """
    position = 0
    while position < len(data):
        start, integer, content = position, 0, b""
        tag, position = read_varint(data, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            integer, position = read_varint(data, position)
        elif wire_type == BYTES:
            length, position = read_varint(data, position)
            content, position = data[position : position + length], position + length
        elif wire_type in _FIXED_SIZES:
            end = position + _FIXED_SIZES[wire_type]
            integer, position = int.from_bytes(data[position:end], "little"), end
        else:
            raise Refused("a message has a field of an unknown wire type")
        if position > len(data) or field == 0:
            raise Refused("a message is truncated or damaged")
        yield Field(field, wire_type, integer, content, data[start:position])


def number(field: int, value: int) -> bytes:
    """A field that holds an integer; 0, the default, takes no bytes."""
    return varint(field << 3 | VARINT) + varint(value) if value else b""


def text(field: int, value: bytes) -> bytes:
    """A field that holds bytes, a string or a message."""
    return varint(field << 3 | BYTES) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A nonnegative integer in groups of 7 bits, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """An integer of up to 64 bits, and the position after it.

    Raises:
        Refused: it is truncated or too large.
    """
    if position < len(data) and data[position] < 0x80:  # most are a single byte
        return data[position], position + 1
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:  # ten groups of 7 bits have room for 70
                break
            return value, position
        shift += 7
    raise Refused("an integer is truncated or too large")


def _shape(data: bytes) -> tuple[int, ...] | None:
    found = Message(data, _SHAPE)
    if found.integer(3):
        return None
    dimensions = found.contents(2)
    if len(dimensions) > _RANK_LIMIT:
        raise Refused(f"a tensor has {len(dimensions)} dimensions")
    shape = tuple(Message(dimension, _DIMENSION).integer(1) for dimension in dimensions)
    return None if any(size >> 63 for size in shape) else shape  # -1 means unknown
