"""Protocol buffers as bytes, and what the index of a TensorFlow checkpoint says of one tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Self

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. Groups, 3 and 4, were deprecated before these formats existed."""

_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
_RANK_LIMIT = 254
"""TensorFlow's own limit."""

_ENTRY = {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 6: FIXED32, 7: BYTES}


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


_ABSENT = Field(0, VARINT, 0, b"", b"")


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
        found = last_fields(data, _ENTRY)
        return cls(
            dtype=found[1].integer,
            shape=_shape(found[2].content),
            shard=found[3].integer,
            offset=found[4].integer,
            size=found[5].integer,
            crc=found[6].integer,
            sliced=found[7] is not _ABSENT,
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


def last_fields(data: bytes, wire_types: Mapping[int, int]) -> dict[int, Field]:
    """The fields of a message that hold single values: of those that occur twice, the last counts.

    Args:
        data: the message.
        wire_types: that of each expected field, by its number; other fields are skipped.

    Returns:
        Each expected field by its number; an absent one holds 0 and no bytes.

    Raises:
        Refused: the bytes are not such a message.
    """
    found = dict.fromkeys(wire_types, _ABSENT)
    for field in fields(data):
        if field.number in found:
            found[field.number] = _of_type(field, wire_types[field.number])
    return found


def repeated(data: bytes, number: int) -> Iterator[Field]:
    """All fields of this number, which hold bytes, one by one: a message may have millions.

    Raises:
        Refused: the bytes are not such a message.
    """
    return (_of_type(field, BYTES) for field in fields(data) if field.number == number)


def _of_type(field: Field, wire_type: int) -> Field:
    if field.wire_type != wire_type:
        raise Refused(
            f"field {field.number} of a message is damaged: it has an unexpected wire type"
        )
    return field


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
    if last_fields(data, {3: VARINT})[3].integer:
        return None
    dimensions = [field.content for field in islice(repeated(data, 2), _RANK_LIMIT + 1)]
    if len(dimensions) > _RANK_LIMIT:
        raise Refused(f"a tensor has at least {len(dimensions)} dimensions")
    shape = tuple(last_fields(dimension, {1: VARINT})[1].integer for dimension in dimensions)
    return None if any(size >> 63 for size in shape) else shape  # -1 means unknown
