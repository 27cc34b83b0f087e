"""Fractal heaps, in which newer HDF5 files keep many links or attributes (specification III.G)."""

import struct

from ckptavg.formats.hdf5.b_trees import encoded_size
from ckptavg.formats.hdf5.window import UNDEFINED, DamagedError, Window, unpack, without_checksum

_HEADER = struct.Struct("<4xBHHBI96xHQQH2xQH")
"""Version, bytes of an identity, of filters; flags; the largest object. Of the table of blocks: its
width, the smallest and the largest block, bits of an offset, its root and the rows of that."""
_MANAGED, _TINY = 0, 2
_DEPTH_LIMIT = 8
_BLOCK_LIMIT = 16 * 1024 * 1024


class FractalHeap:
    """Objects in blocks whose sizes double from row to row of a table, found by their offsets."""

    def __init__(self, window: Window, address: int) -> None:
        """Finds all blocks of the heap.

        Raises:
            DamagedError: the heap is damaged, or compressed.
        """
        header = without_checksum(window.claim(address, _HEADER.size + 4, b"FRHP"))
        fields = unpack(_HEADER, header)
        version, _, filters, flags, largest, width, smallest, limit, bits, root, rows = fields
        if (
            version != 0
            or filters
            or not 0 < width <= 1024
            or not 0 < smallest <= limit <= _BLOCK_LIMIT
            or smallest & (smallest - 1)
            or limit & (limit - 1)
            or not 0 < bits <= 64
        ):
            raise DamagedError(f"the fractal heap at {address:,} is damaged")
        self._window = window
        self._address = address
        self._has_checksums = bool(flags & 2)
        self._offset_size = -(-bits // 8)
        self._length_size = min(-(-(limit.bit_length() - 1) // 8), encoded_size(largest))
        self._width, self._smallest, self._limit = width, smallest, limit
        self._places: list[tuple[int, int, int]] = []
        self._blocks: dict[int, bytes] = {}
        if root != UNDEFINED:
            if rows:
                self._enter(root, 0, rows, 0)
            else:
                self._places.append((0, smallest, root))

    def object(self, identity: bytes) -> bytes:
        """The bytes of an object.

        Raises:
            DamagedError: there is no such object.
        """
        version, kind = identity[0] >> 6, identity[0] >> 4 & 3
        if version == 0 and kind == _TINY:  # it is its own identity
            return identity[1 : 2 + (identity[0] & 0x0F)]
        if version == 0 and kind == _MANAGED:
            edge = 1 + self._offset_size
            offset = int.from_bytes(identity[1:edge], "little")
            length = int.from_bytes(identity[edge : edge + self._length_size], "little")
            for start, size, address in self._places:
                if start <= offset and offset + length <= start + size:
                    return self._block(start, size, address)[offset - start :][:length]
        raise DamagedError(f"an object of the fractal heap at {self._address:,} is damaged")

    def _block(self, start: int, size: int, address: int) -> bytes:
        if start not in self._blocks:
            data = self._window.claim(address, size, b"FHDB")
            self._check_head(data, start)
            if self._has_checksums:  # of the block with zeros in the place of the checksum
                end = 13 + self._offset_size
                checksum = data[end : end + 4]
                without_checksum(data[:end] + bytes(4) + data[end + 4 :] + checksum)
            self._blocks[start] = data
        return self._blocks[start]

    def _check_head(self, data: bytes, start: int) -> None:
        head = b"\0" + self._address.to_bytes(8, "little")
        if data[4:].startswith(head + start.to_bytes(self._offset_size, "little")):
            return
        raise DamagedError(f"a block of the fractal heap at {self._address:,} is damaged")

    def _enter(self, address: int, start: int, rows: int, depth: int) -> None:
        """Finds the blocks below an indirect block, which covers the heap from `start`."""
        if depth > _DEPTH_LIMIT or rows > 64:
            raise DamagedError(f"the fractal heap at {self._address:,} is damaged")
        head = 13 + self._offset_size
        nbytes = head + rows * self._width * 8 + 4
        data = without_checksum(self._window.claim(address, nbytes, b"FHIB"))
        self._check_head(data, start)
        children = struct.unpack(f"<{rows * self._width}Q", data[head:])
        for number, child in enumerate(children):
            size = self._smallest << max(0, number // self._width - 1)
            if child != UNDEFINED and size <= self._limit:
                self._places.append((start, size, child))
            elif child != UNDEFINED:
                # As many rows as it takes to cover `size` bytes.
                below = size.bit_length() - (self._smallest * self._width).bit_length() + 1
                self._enter(child, start, below, depth + 1)
            start += size
