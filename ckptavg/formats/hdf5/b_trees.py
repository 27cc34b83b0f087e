"""The B-trees of HDF5 files, which index links, attributes and chunks (specification III.A)."""

import struct
from collections.abc import Iterator

from ckptavg.formats.hdf5.window import UNDEFINED, DamagedError, Window, unpack, without_checksum

_NODE = struct.Struct("<4xBBH16x")
"""Version 1: type and level of a node, number of its children."""
_HEADER = struct.Struct("<4xBBIHHBxQHQ")
"""Version 2: version, type, bytes of a node and a record, depth; root, its records, all records."""
_OVERHEAD = 10
"""Bytes of a node of version 2 besides its records: signature, version, type, checksum."""
_DEPTH_LIMIT = 16


def leaves(window: Window, root: int, *, kind: int, key_size: int) -> Iterator[tuple[bytes, int]]:
    """Keys and addresses that the lowest nodes of a B-tree of version 1 lead to, in order.

    Raises:
        DamagedError: the tree is damaged, or of another kind.
    """
    pending: list[tuple[int, int | None]] = [(root, None)]
    step = key_size + 8
    while pending:
        address, expected = pending.pop()
        found, level, used = unpack(_NODE, window.claim(address, _NODE.size, b"TREE"))
        if found != kind or level != (level if expected is None else expected):
            raise DamagedError(f"the B-tree at {address:,} is damaged")
        data = window.read(address + _NODE.size, used * step)
        children = [
            (data[n : n + key_size], int.from_bytes(data[n + key_size : n + step], "little"))
            for n in range(0, used * step, step)
        ]
        if level:
            pending.extend((child, level - 1) for _, child in reversed(children))
        else:
            yield from children


def records(window: Window, address: int, *, kind: int) -> Iterator[bytes]:
    """The records of a B-tree of version 2, in order.

    Raises:
        DamagedError: the tree is damaged, or of another kind.
    """
    header = without_checksum(window.claim(address, _HEADER.size + 4, b"BTHD"))
    version, found, node_size, size, depth, _, root, count, total = unpack(_HEADER, header)
    if version != 0 or found != kind or not size <= node_size <= 2**20 or depth > _DEPTH_LIMIT:
        raise DamagedError(f"the B-tree at {address:,} is damaged")
    tree = _Tree2(window, kind, node_size, max(size, 1), depth)
    number = 0
    for record in tree.records(root, count, depth) if root != UNDEFINED else ():
        number += 1
        yield record
    if number != total:
        raise DamagedError("a B-tree declares another number of records than it has")


class _Tree2:
    """A B-tree of version 2, whose nodes hold as many records as fit into their size."""

    def __init__(self, window: Window, kind: int, node_size: int, size: int, depth: int) -> None:
        self._window = window
        self._kind = kind
        self._size = size
        most = (node_size - _OVERHEAD) // size
        self._most, self._pointers = [most], [0]
        self._width = encoded_size(most)
        below, below_width = most, 0  # records below a node, and the bytes of that number
        for _ in range(depth):
            pointer = 8 + self._width + below_width
            most = (node_size - _OVERHEAD - pointer) // (size + pointer)
            self._most.append(most)
            self._pointers.append(pointer)
            below = (most + 1) * below + most
            below_width = encoded_size(below)
        if min(self._most) < 1:
            raise DamagedError("the nodes of a B-tree are too small")

    def records(self, address: int, count: int, level: int) -> Iterator[bytes]:
        """The records of a node and of all below it."""
        if count > self._most[level]:
            raise DamagedError(f"the B-tree node at {address:,} is damaged")
        pointer, start = self._pointers[level], 6 + count * self._size
        nbytes = start + (count + 1) * pointer * (level > 0) + 4
        signature = b"BTIN" if level else b"BTLF"
        node = without_checksum(self._window.claim(address, nbytes, signature))
        if node[4:6] != bytes((0, self._kind)):
            raise DamagedError(f"the B-tree node at {address:,} is damaged")
        for n in range(count + 1):
            if level:
                place = start + n * pointer
                child = int.from_bytes(node[place : place + 8], "little")
                held = int.from_bytes(node[place + 8 : place + 8 + self._width], "little")
                yield from self.records(child, held, level - 1)
            if n < count:
                yield node[6 + n * self._size : 6 + (n + 1) * self._size]


def encoded_size(limit: int) -> int:
    """Bytes that HDF5 takes for a number of at most `limit`."""
    return (max(limit, 1).bit_length() - 1) // 8 + 1
