"""The links in a folder of an HDF5 file: in a symbol table, in its header, or in a fractal heap.

HDF5 File Format Specification 3.0: III.B, III.C, III.D (symbol tables), IV.A.2.c, IV.A.2.g.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ckptavg.formats.hdf5.b_trees import leaves, records
from ckptavg.formats.hdf5.fractal_heap import FractalHeap
from ckptavg.formats.hdf5.object_headers import Message
from ckptavg.formats.hdf5.window import ADDRESS, UNDEFINED, DamagedError, Window, unpack

_LINK_INFO, _LINK, _SYMBOL_TABLE = 0x02, 0x06, 0x11
_TABLE = struct.Struct("<QQ")
"""Addresses of a B-tree and a heap, or of a heap and a B-tree."""
_LOCAL_HEAP = struct.Struct("<4xB3xQQQ")
"""Version; size of the data, beginning of their free list, address of the data."""
_SYMBOL_NODE = struct.Struct("<4xBxH")
_SYMBOL = struct.Struct("<QQI20x")
"""Place of the name in the heap, address of the object, what is cached about it."""
_SOFT = 2
"""What is cached about a soft link, which leads to no address."""
_LINKS_BY_NAME = 5
"""Type of a B-tree."""


class Link(NamedTuple):
    """A name in a folder, and the address of its object; None if it leads elsewhere."""

    name: bytes
    address: int | None


def links_of(window: Window, messages: Iterable[Message]) -> list[Link] | None:
    """The links of a folder, sorted by their names; None if the messages are not of a folder.

    Raises:
        DamagedError: they are damaged.
    """
    found: list[Link] = []
    is_folder = False
    for kind, _, data in messages:
        if kind == _SYMBOL_TABLE:
            found.extend(_symbols(window, *unpack(_TABLE, data)))
        elif kind == _LINK_INFO:
            found.extend(_dense_links(window, data))
        elif kind == _LINK:
            found.append(_link(data))
        else:
            continue
        is_folder = True
    return sorted(found) if is_folder else None


def _symbols(window: Window, tree: int, heap: int) -> Iterator[Link]:
    # The free list of the heap, in which HDF5 itself may run in circles, is of no use here.
    version, size, _, place = unpack(_LOCAL_HEAP, window.claim(heap, _LOCAL_HEAP.size, b"HEAP"))
    if version != 0:
        raise DamagedError(f"the local heap at {heap:,} is damaged")
    names = window.claim(place, size) if size else b""
    for _, node in leaves(window, tree, kind=0, key_size=8):
        version, count = unpack(_SYMBOL_NODE, window.claim(node, _SYMBOL_NODE.size, b"SNOD"))
        if version != 1:
            raise DamagedError(f"the symbol table node at {node:,} is damaged")
        data = window.read(node + _SYMBOL_NODE.size, count * _SYMBOL.size)
        for start, address, cached in _SYMBOL.iter_unpack(data):
            end = names.find(b"\0", start)
            if end < 0:
                raise DamagedError(f"a name lies outside the local heap at {heap:,}")
            yield Link(names[start:end], None if cached == _SOFT else address)


def _dense_links(window: Window, data: bytes) -> Iterator[Link]:
    version, flags = unpack(struct.Struct("<BB"), data)
    if version != 0:
        raise DamagedError("the links of a folder are damaged")
    heap, tree = unpack(_TABLE, data, 10 if flags & 1 else 2)  # after the order of creation
    if heap != UNDEFINED:
        stored = FractalHeap(window, heap)
        for record in records(window, tree, kind=_LINKS_BY_NAME):
            yield _link(stored.object(record[4:]))  # after the hash of the name


def _link(data: bytes) -> Link:
    version, flags = unpack(struct.Struct("<BB"), data)
    position = 2
    kind = 0  # a hard link
    if flags & 0x08:
        (kind,) = unpack(struct.Struct("<B"), data, position)
        position += 1
    position += (8 if flags & 0x04 else 0) + (1 if flags & 0x10 else 0)  # order, character set
    width = 1 << (flags & 3)
    start = position + width
    end = start + int.from_bytes(data[position:start], "little")
    if version != 1 or not start < end <= len(data):
        raise DamagedError("a link is damaged")
    return Link(data[start:end], unpack(ADDRESS, data, end)[0] if kind == 0 else None)
