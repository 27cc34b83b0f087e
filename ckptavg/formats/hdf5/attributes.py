"""String attributes of an HDF5 file, read from its bytes without HDF5.

HDF5 is not safe with damaged attributes: it allocates any length that an attribute declares, and
loops forever in a damaged heap. Only what Keras writes is parsed here (HDF5 File Format
Specification 3.0: object headers, IV.A; attribute messages, IV.A.2.m; global heap, III.E).
See docs/decisions/0009-hdf5-strings-are-read-from-the-bytes.md.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckptavg.formats.reader import Attribute
from ckptavg.storage.open_file import OpenFile

NAMES_LIMIT = 64512
"""Bytes of a list of names; Keras splits a longer one among several attributes."""

_NAME_LIMIT = 512
"""Bytes of an attribute's name, so that a list of `NAMES_LIMIT` fits beside it."""

_TOTAL_LIMIT = 64 * 1024 * 1024
"""Bytes of headers and strings of one file; the configuration of a large model takes megabytes."""

_CONTINUATION, _ATTRIBUTE = 0x10, 0x0C
"""Types of messages in an object header."""

_SHARED = 2
"""Flag of a message that is stored elsewhere."""

_NULL = 2
"""Kind of a dataspace without elements."""

_FIXED_STRING, _VARIABLE_LENGTH = 3, 9
"""Classes of datatypes."""

_MESSAGE = struct.Struct("<HHB3x")
"""Type, size and flags of a message in a header of version 1."""
_MESSAGE_2, _NUMBERED_MESSAGE_2 = struct.Struct("<BHB"), struct.Struct("<BHB2x")
"""The same in a header of version 2, without and with the order of creation."""
_BLOCK = struct.Struct("<QQ")
"""Address and length of a block of further messages."""
_PARTS = struct.Struct("<BBHHH")
"""An attribute: version, flags, and the sizes of its name, datatype and dataspace."""
_REFERENCE = struct.Struct("<IQI")
"""Length of a string, address of its heap, index there."""
_HEAP = struct.Struct("<4sB3xQ")
"""Signature, version and size of a heap."""
_OBJECT = struct.Struct("<H6xQ")
"""Index and size of an object in a heap; index 0 is the free space, which comes last."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an HDF5 file lies in a checkpoint: the number of the file, and the bytes there."""

    file: int
    base: int
    size: int


class AttributeReader:
    """Reads the string attributes of one HDF5 file, in total no more bytes than the file has."""

    def __init__(self, file: OpenFile, place: Place) -> None:
        self._file = file
        self._place = place
        self._left = min(place.size, _TOTAL_LIMIT)
        self._heaps: dict[int, dict[int, bytes]] = {}

    def of(self, address: int) -> Mapping[str, Attribute | None]:
        """The attributes of a folder or tensor; None for those that are damaged or not strings.

        Args:
            address: position of its object header.

        Raises:
            ValueError: the header is damaged.
        """
        found: dict[str, Attribute | None] = {}
        for message in self._attributes(address):
            name, kind, shape, data = _parts(message)
            # A name that occurs twice is damage, and neither value can be trusted.
            found[name] = None if name in found else self._value(kind, shape, data)
        return found

    def _attributes(self, address: int) -> Iterator[bytes]:
        """The attribute messages of an object header, of version 1 or 2."""
        start = self._read(address, 16)
        if start.startswith(b"OHDR"):  # version 2
            # After signature, version and flags: 16 bytes of times and 4 of limits, if flagged.
            flags = start[5]
            address += 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            size = int.from_bytes(self._read(address, width), "little")
            header = _NUMBERED_MESSAGE_2 if flags & 4 else _MESSAGE_2
            blocks, frame = (
                [(address + width, size)],
                4,
            )  # further blocks have a signature and a checksum
        else:
            header, frame = _MESSAGE, 0
            blocks = [(address + 16, int.from_bytes(start[8:12], "little"))]
        for place, length in blocks:  # grows by continuations; `_read` bounds their bytes
            block, position = self._read(place, length), 0
            while position + header.size <= length:
                kind, size, flags = header.unpack_from(block, position)
                position += header.size + size
                message = block[position - size : position]
                if kind == _CONTINUATION:
                    following, length_there = _unpack(_BLOCK, message)
                    blocks.append((following + frame, length_there - 2 * frame))
                elif kind == _ATTRIBUTE and not flags & _SHARED:
                    yield message

    def _value(self, kind: bytes, shape: bytes, data: bytes) -> Attribute | None:
        """An attribute's value; None if it is damaged or not a string."""
        try:
            dimensions = _dimensions(shape)
            count, size = math.prod(dimensions), int.from_bytes(kind[4:8], "little")
            if count == 0:
                return ()
            if len(dimensions) > 1 or count * size > len(data):
                return None
            items = [data[start : start + size] for start in range(0, count * size, size)]
            if kind[0] & 0x0F == _VARIABLE_LENGTH and kind[1] & 0x0F == 1:
                items = [self._stored(item) for item in items]
            elif kind[0] & 0x0F != _FIXED_STRING:
                return None
            names = tuple(item.split(b"\0", 1)[0] for item in items)
            if dimensions:
                return names if len(names) * max(map(len, names)) <= NAMES_LIMIT else None
            # The character set stands in other bits of fixed-length strings than of variable ones.
            unicode = (kind[1] >> 4 if kind[0] & 0x0F == _FIXED_STRING else kind[2]) & 0x0F
            return names[0].decode() if unicode else names[0]
        except (ValueError, LookupError):
            return None

    def _stored(self, reference: bytes) -> bytes:
        """A string of variable length, from the global heap."""
        length, heap, index = _unpack(_REFERENCE, reference)
        if length == 0:
            return b""
        if heap not in self._heaps:
            self._heaps[heap] = self._objects(heap)
        found = self._heaps[heap].pop(index)  # two attributes cannot share a string
        if len(found) != length:
            raise ValueError("a string has another length than its attribute declares")
        return found

    def _objects(self, heap: int) -> dict[int, bytes]:
        """The objects of a heap, by their index."""
        signature, version, size = _unpack(_HEAP, self._read(heap, _HEAP.size))
        if signature != b"GCOL" or version != 1 or size < _HEAP.size:
            raise ValueError("a heap is damaged")
        data = self._read(heap + _HEAP.size, size - _HEAP.size)
        found: dict[int, bytes] = {}
        position = 0
        while position + _OBJECT.size <= len(data):
            index, length = _OBJECT.unpack_from(data, position)
            if index == 0:  # the free space, which comes last; its size may be damaged
                break
            position += _OBJECT.size
            found.setdefault(index, data[position : position + length])
            position += -(-length // 8) * 8  # objects are padded to 8 bytes
        return found

    def _read(self, address: int, length: int) -> bytes:
        self._left -= max(length, 1)  # so that a cycle of empty blocks ends, too
        if self._left < 0 or length < 0 or address + length > self._place.size:
            raise ValueError("its attributes take more bytes than the file has")
        return self._file.read(self._place.base + address, length)


def _parts(message: bytes) -> tuple[str, bytes, bytes, bytes]:
    """Name, datatype, dataspace and data of an attribute message."""
    version, _, *sizes = _unpack(_PARTS, message[: _PARTS.size])
    position = _PARTS.size + (version == 3)  # which adds a byte: the character set of the name
    parts: list[bytes] = []
    for size in sizes:
        parts.append(message[position : position + size])
        position += -(-size // 8) * 8 if version == 1 else size  # only version 1 pads them
    stored_name, kind, shape = parts
    name = stored_name.split(b"\0", 1)[0].decode()
    if not 0 < len(name) <= _NAME_LIMIT:
        raise ValueError("the name of an attribute is damaged")
    return name, kind, shape, message[position:]


def _dimensions(shape: bytes) -> tuple[int, ...]:
    version, rank = shape[0], shape[1]
    if version == 2 and shape[3] == _NULL:
        raise ValueError("an attribute has no value")
    return struct.unpack_from(f"<{rank}Q", shape, 4 if version == 2 else 8)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[Any, ...]:
    if len(data) < layout.size:
        raise ValueError("an object header is damaged")
    return layout.unpack_from(data)
