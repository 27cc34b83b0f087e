"""Texts among the attributes of an HDF5 file, found in its bytes, because HDF5 trusts too much.

It reserves whatever length a damaged attribute states, copies an object of any other length there,
and runs in circles in a damaged heap. What Keras needs of it is little (HDF5 file format
specification 3.0: object headers, IV.A; attribute messages, IV.A.2.m; the global heap, III.E).
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckptavg.storage.open_file import OpenFile

Text = str | bytes | tuple[bytes, ...]
"""A text in UTF-8; one in ASCII; a list of names."""

NAMES_LIMIT = 64512
"""Bytes that a list of names may take; Keras splits a longer one among several attributes."""

_NAME_LIMIT = 512
"""Bytes of an attribute's own name, so that a list beside it can be written again."""

_TOTAL_LIMIT = 64 * 1024 * 1024
"""Of headers and texts of one file; the configuration of a large model takes some megabytes."""

_CONTINUATION, _ATTRIBUTE = 0x10, 0x0C
"""Types of messages in an object header."""
_SHARED = 2
"""Flag of a message that lies elsewhere."""
_NULL = 2
"""Kind of a shape that holds nothing."""
_FIXED_TEXT, _VARIABLE = 3, 9
"""Classes of types."""

_MESSAGE = struct.Struct("<HHB3x")
"""Type, size and flags of a message; in the newer headers it is shorter."""
_NEW_MESSAGE, _NUMBERED_MESSAGE = struct.Struct("<BHB"), struct.Struct("<BHB2x")
_BLOCK = struct.Struct("<QQ")
"""Address and length of further messages."""
_PARTS = struct.Struct("<BBHHH")
"""Of an attribute: version, flags, and the sizes of its name, type and shape."""
_REFERENCE = struct.Struct("<IQI")
"""Length of a text, address of its heap, index there."""
_HEAP = struct.Struct("<4sB3xQ")
"""Signature, version and size of a heap."""
_OBJECT = struct.Struct("<H6xQ")
"""Index and size of an object in a heap; index 0 is the free space, which comes last."""


@dataclass(frozen=True, slots=True)
class Place:
    """An HDF5 file inside a checkpoint: which of its files, and the bytes that it spans there."""

    file: int
    base: int
    size: int


class Texts:
    """Reads attributes of one file: no more bytes, all in all, than the file has."""

    def __init__(self, file: OpenFile, place: Place) -> None:
        self._file = file
        self._place = place
        self._left = min(place.size, _TOTAL_LIMIT)
        self._heaps: dict[int, dict[int, bytes]] = {}

    def of(self, address: int) -> Mapping[str, Text | None]:
        """The attributes of a folder or tensor; None for those that are damaged or no text.

        Args:
            address: where its object header lies.

        Raises:
            ValueError: the header is damaged.
        """
        found: dict[str, Text | None] = {}
        for message in self._attributes(address):
            name, kind, shape, data = _parts(message)
            found[name] = None if name in found else self._value(kind, shape, data)
        return found

    def _attributes(self, address: int) -> Iterator[bytes]:
        start = self._read(address, 16)
        if start.startswith(b"OHDR"):
            flags = start[5]
            address += 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            size = int.from_bytes(self._read(address, width), "little")
            header = _NUMBERED_MESSAGE if flags & 4 else _NEW_MESSAGE
            blocks, frame = [(address + width, size)], 4  # a signature before, a sum after
        else:
            header, frame = _MESSAGE, 0
            blocks = [(address + 16, int.from_bytes(start[8:12], "little"))]
        for place, length in blocks:
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

    def _value(self, kind: bytes, shape: bytes, data: bytes) -> Text | None:
        """An attribute's value; None if it is damaged or no text."""
        try:
            dimensions = _dimensions(shape)
            count, size = math.prod(dimensions), int.from_bytes(kind[4:8], "little")
            if count == 0:
                return ()
            if len(dimensions) > 1 or count * size > len(data):
                return None
            items = [data[start : start + size] for start in range(0, count * size, size)]
            if kind[0] & 0x0F == _VARIABLE and kind[1] & 0x0F == 1:
                items = [self._stored(item) for item in items]
            elif kind[0] & 0x0F != _FIXED_TEXT:
                return None
            names = tuple(item.split(b"\0", 1)[0] for item in items)
            if dimensions:
                return names if len(names) * max(map(len, names)) <= NAMES_LIMIT else None
            unicode = (kind[1] >> 4 if kind[0] & 0x0F == _FIXED_TEXT else kind[2]) & 0x0F
            return names[0].decode() if unicode else names[0]
        except (ValueError, LookupError):
            return None

    def _stored(self, reference: bytes) -> bytes:
        length, heap, index = _unpack(_REFERENCE, reference)
        if length == 0:
            return b""
        if heap not in self._heaps:
            self._heaps[heap] = self._objects(heap)
        found = self._heaps[heap].pop(index)  # a text belongs to one attribute
        if len(found) != length:
            raise ValueError("a text has another length than its attribute states")
        return found

    def _objects(self, heap: int) -> dict[int, bytes]:
        signature, version, size = _unpack(_HEAP, self._read(heap, _HEAP.size))
        if signature != b"GCOL" or version != 1 or size < _HEAP.size:
            raise ValueError("a heap is damaged")
        data = self._read(heap + _HEAP.size, size - _HEAP.size)
        found: dict[int, bytes] = {}
        position = 0
        while position + _OBJECT.size <= len(data):
            index, length = _OBJECT.unpack_from(data, position)
            if index == 0:
                break
            position += _OBJECT.size
            found.setdefault(index, data[position : position + length])
            position += -(-length // 8) * 8
        return found

    def _read(self, address: int, length: int) -> bytes:
        self._left -= max(length, 1)
        if self._left < 0 or length < 0 or address + length > self._place.size:
            raise ValueError("its attributes take more bytes than it has")
        return self._file.read(self._place.base + address, length)


def _parts(message: bytes) -> tuple[str, bytes, bytes, bytes]:
    """Name, type, shape and data of an attribute."""
    version, _, *sizes = _unpack(_PARTS, message[: _PARTS.size])
    position = _PARTS.size + (version == 3)
    parts = []
    for size in sizes:
        parts.append(message[position : position + size])
        position += -(-size // 8) * 8 if version == 1 else size
    name, kind, shape = parts
    name = name.split(b"\0", 1)[0].decode()
    if not 0 < len(name) <= _NAME_LIMIT:
        raise ValueError("the name of an attribute is damaged")
    return name, kind, shape, message[position:]


def _dimensions(shape: bytes) -> tuple[int, ...]:
    version, rank = shape[0], shape[1]
    if version == 2 and shape[3] == _NULL:
        raise ValueError("it has no value")
    return struct.unpack_from(f"<{rank}Q", shape, 4 if version == 2 else 8)


def _unpack(layout: struct.Struct, data: bytes) -> tuple:
    if len(data) < layout.size:
        raise ValueError("an object header is damaged")
    return layout.unpack_from(data)
