"""String attributes of the objects in an HDF5 file.

HDF5 is not safe with damaged attributes: it allocates any length that an attribute declares, and
loops forever in a damaged heap. Only what Keras writes is parsed here (HDF5 File Format
Specification 3.0: attribute messages, IV.A.2.m and v; global heap, III.E).
See docs/decisions/0075-hdf5-files-are-parsed-without-hdf5.md.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Mapping

from ckptavg.formats.hdf5.b_trees import records
from ckptavg.formats.hdf5.fractal_heap import FractalHeap
from ckptavg.formats.hdf5.object_headers import SHARED, Message
from ckptavg.formats.hdf5.window import UNDEFINED, DamagedError, Window, unpack
from ckptavg.formats.reader import Attribute

NAMES_LIMIT = 64512
"""Bytes of a list of names; Keras splits a longer one among several attributes."""

_NAME_LIMIT = 512
"""Bytes of an attribute's name, so that a list of `NAMES_LIMIT` fits beside it."""

_TOTAL_LIMIT = 64 * 1024 * 1024
"""Bytes of the strings of one file; the configuration of a large model takes megabytes."""

_ATTRIBUTE, _ATTRIBUTE_INFO = 0x0C, 0x15
"""Types of messages."""
_ATTRIBUTES_BY_NAME = 8
"""Type of a B-tree."""
_NULL = 2
"""Kind of a dataspace without elements."""
_FIXED_STRING, _VARIABLE_LENGTH = 3, 9
"""Classes of datatypes."""

_PARTS = struct.Struct("<BBHHH")
"""An attribute: version, flags, and the sizes of its name, datatype and dataspace."""
_REFERENCE = struct.Struct("<IQI")
"""Length of a string, address of its heap, index there."""
_HEAP = struct.Struct("<4xB3xQ")
"""Version and size of a heap."""
_OBJECT = struct.Struct("<H6xQ")
"""Index and size of an object in a heap; index 0 is the free space, which comes last."""


class AttributeReader:
    """Reads the string attributes of one HDF5 file, in total no more bytes than the file has."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._left = min(window.size, _TOTAL_LIMIT)
        self._heaps: dict[int, dict[int, bytes]] = {}

    def of(self, messages: Iterable[Message]) -> Mapping[str, Attribute | None]:
        """The attributes of a folder or tensor; None for those that are damaged or not strings.

        Args:
            messages: of its object header.

        Raises:
            DamagedError: an attribute has no name, or its parts do not fit together.
        """
        found: dict[str, Attribute | None] = {}
        for message in self._attributes(messages):
            name, kind, shape, data = _parts(message)
            # A name that occurs twice is damage, and neither value can be trusted.
            found[name] = None if name in found else self._value(kind, shape, data)
        return found

    def _attributes(self, messages: Iterable[Message]) -> Iterator[bytes]:
        """The attribute messages of an object; more than eight may lie in a fractal heap."""
        for kind, flags, data in messages:
            if kind == _ATTRIBUTE and not flags & SHARED:
                yield data
            elif kind == _ATTRIBUTE_INFO:
                _, order = unpack(struct.Struct("<BB"), data)
                heap, tree = unpack(struct.Struct("<QQ"), data, 4 if order & 1 else 2)
                if heap != UNDEFINED:
                    stored = FractalHeap(self._window, heap)
                    for record in records(self._window, tree, kind=_ATTRIBUTES_BY_NAME):
                        yield stored.object(record[:8])

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
        length, heap, index = unpack(_REFERENCE, reference)
        if length == 0:
            return b""
        if heap not in self._heaps:
            self._heaps[heap] = self._objects(heap)
        found = self._heaps[heap].pop(index)  # two attributes cannot share a string
        if len(found) != length:
            raise DamagedError("a string has another length than its attribute declares")
        return found

    def _objects(self, heap: int) -> dict[int, bytes]:
        """The objects of a heap, by their index."""
        version, size = unpack(_HEAP, self._window.claim(heap, _HEAP.size, b"GCOL"))
        self._left -= size
        if version != 1 or size < _HEAP.size or self._left < 0:
            raise DamagedError("a heap of strings is damaged")
        data = self._window.read(heap + _HEAP.size, size - _HEAP.size)
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


def _parts(message: bytes) -> tuple[str, bytes, bytes, bytes]:
    """Name, datatype, dataspace and data of an attribute message."""
    version, _, *sizes = unpack(_PARTS, message)
    position = _PARTS.size + (version == 3)  # which adds a byte: the character set of the name
    parts: list[bytes] = []
    for size in sizes:
        parts.append(message[position : position + size])
        position += -(-size // 8) * 8 if version == 1 else size  # only version 1 pads them
    stored_name, kind, shape = parts
    name = stored_name.split(b"\0", 1)[0]
    if not 0 < len(name) <= _NAME_LIMIT or len(kind) < 8:
        raise DamagedError("an attribute is damaged")
    try:
        return name.decode(), kind, shape, message[position:]
    except UnicodeDecodeError as error:
        raise DamagedError(f"the name of an attribute is not in UTF-8: {name!r:.40}") from error


def _dimensions(shape: bytes) -> tuple[int, ...]:
    version, rank, _, kind = unpack(struct.Struct("<4B"), shape)
    if version == 2 and kind == _NULL:
        raise DamagedError("an attribute has no value")
    return unpack(struct.Struct(f"<{rank}Q"), shape, 4 if version == 2 else 8)
