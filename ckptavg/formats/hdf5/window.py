"""The bytes of one HDF5 file, read within bounds: damage is refused, never followed."""

import struct
from typing import Any

from ckptavg.storage.open_file import OpenFile

UNDEFINED = 0xFFFF_FFFF_FFFF_FFFF
"""The address of what was never allocated."""

ADDRESS = struct.Struct("<Q")

_PAGE = 4096
_METADATA_LIMIT = 256 * 1024 * 1024
"""Bytes of all structures of one file; those of 100,000 tensors take some 60 MB."""


class DamagedError(ValueError):
    """The structure of an HDF5 file is damaged, or of a kind that is not read here."""


class Window:
    """The part of an open file that one HDF5 file takes up; addresses count from its beginning.

    Attributes:
        size: of the HDF5 file in bytes.
    """

    def __init__(self, file: OpenFile, base: int, size: int) -> None:
        self.file = file
        self.base = base
        self.size = size
        self._page = b""
        self._page_address = 0
        self._left = min(size, _METADATA_LIMIT)
        self._claimed: set[int] = set()

    def read(self, address: int, nbytes: int) -> bytes:
        """The bytes of a structure.

        Raises:
            DamagedError: they reach beyond the end of the file.
        """
        if address + nbytes > self.size:
            raise DamagedError(f"a structure at {address:,} reaches beyond the end of the file")
        start = address - self._page_address
        if start < 0 or start + nbytes > len(self._page):
            # HDF5 puts small structures side by side: the next one is probably in this page.
            length = min(max(nbytes, _PAGE), self.size - address)
            self._page, self._page_address = self.file.read(self.base + address, length), address
            start = 0
            if len(self._page) < nbytes:
                raise DamagedError("the file was truncated while it was read")
        return self._page[start : start + nbytes]

    def claim(self, address: int, nbytes: int, signature: bytes = b"") -> bytes:
        """The bytes of a structure that may be reached once only, so that no chain is a circle.

        Raises:
            DamagedError: the structure was reached before, or has another signature.
        """
        if address in self._claimed:
            raise DamagedError(f"two places share the structure at {address:,}")
        self._claimed.add(address)
        self._left -= nbytes
        if self._left < 0:
            raise DamagedError("its structures take more bytes than the file has")
        data = self.read(address, nbytes)
        if not data.startswith(signature):
            raise DamagedError(f"there is no {signature.decode()} structure at {address:,}")
        return data


def unpack(layout: struct.Struct, data: bytes, offset: int = 0) -> tuple[Any, ...]:
    """The fields of a structure.

    Raises:
        DamagedError: the data end before they do.
    """
    if len(data) - offset < layout.size:
        raise DamagedError("a structure ends too early")
    return layout.unpack_from(data, offset)


def without_checksum(data: bytes) -> bytes:
    """The bytes of a structure that ends in its checksum.

    Raises:
        DamagedError: the checksum is of other bytes.
    """
    if lookup3(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise DamagedError(f"the checksum of a {data[:4].decode('ascii', 'replace')} is wrong")
    return data[:-4]


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash `lookup3` (hashlittle, initial value 0), HDF5's checksum of metadata."""
    mask = 0xFFFFFFFF
    a: int
    b: int
    c: int
    a = b = c = (0xDEADBEEF + len(data)) & mask
    if not data:
        return c
    last = (len(data) - 1) // 12 * 12  # the last 1 to 12 bytes are mixed differently
    words = struct.unpack_from(f"<{last // 4}I", data)
    for n in range(0, len(words), 3):
        a, b, c = (a + words[n]) & mask, (b + words[n + 1]) & mask, (c + words[n + 2]) & mask
        a = ((a - c) ^ (c << 4 | c >> 28)) & mask
        c = (c + b) & mask
        b = ((b - a) ^ (a << 6 | a >> 26)) & mask
        a = (a + c) & mask
        c = ((c - b) ^ (b << 8 | b >> 24)) & mask
        b = (b + a) & mask
        a = ((a - c) ^ (c << 16 | c >> 16)) & mask
        c = (c + b) & mask
        b = ((b - a) ^ (a << 19 | a >> 13)) & mask
        a = (a + c) & mask
        c = ((c - b) ^ (b << 4 | b >> 28)) & mask
        b = (b + a) & mask
    x, y, z = struct.unpack("<3I", data[last:].ljust(12, b"\0"))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    c = ((c ^ b) - ((b << 14 | b >> 18) & mask)) & mask
    a = ((a ^ c) - ((c << 11 | c >> 21) & mask)) & mask
    b = ((b ^ a) - ((a << 25 | a >> 7) & mask)) & mask
    c = ((c ^ b) - ((b << 16 | b >> 16) & mask)) & mask
    a = ((a ^ c) - ((c << 4 | c >> 28) & mask)) & mask
    b = ((b ^ a) - ((a << 14 | a >> 18) & mask)) & mask
    return ((c ^ b) - ((b << 24 | b >> 8) & mask)) & mask
