"""The superblock of an HDF5 file, and the messages in the headers of its objects.

HDF5 File Format Specification 3.0, sections II (superblock) and IV.A (object headers).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ckptavg.formats.hdf5.window import UNDEFINED, DamagedError, Window, unpack, without_checksum
from ckptavg.storage.open_file import OpenFile

SHARED = 2
"""Flag of a message that lies in the header of another object."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NIL, _CONTINUATION = 0x00, 0x10
_SIZES_0 = struct.Struct("<13xBB")
_FIELDS_0 = struct.Struct("<6Q")
"""Versions 0 and 1: base, free space, end, driver; of the root's entry name and header."""
_SUPERBLOCK_2 = struct.Struct("<9xBBxQQQQ")
"""Versions 2 and 3: sizes of addresses and lengths; base, extension, end, header of the root."""
_HEADER_1 = struct.Struct("<BxHII4x")
"""Version, number of messages, number of references, bytes of messages."""
_MESSAGE_1 = struct.Struct("<HHB3x")
"""Type, size and flags of a message."""
_MESSAGE_2, _NUMBERED_MESSAGE_2 = struct.Struct("<BHB"), struct.Struct("<BHB2x")
"""The same in a header of version 2, without and with the order of creation."""
_BLOCK = struct.Struct("<QQ")
"""Address and length of a block of further messages."""


class Message(NamedTuple):
    """A message in the header of an object: one fact about it."""

    kind: int
    flags: int
    data: bytes


def open_window(file: OpenFile, base: int, size: int) -> tuple[Window, int]:
    """Finds the superblock.

    Returns:
        The window of the HDF5 file, and the address of its root folder.

    Raises:
        DamagedError: there is no superblock, or the file is shorter than it declares.
    """
    start = 0
    while start + 9 <= size and file.read(base + start, 8) != _SIGNATURE:
        start = max(512, start * 2)  # a user block precedes it
    if start + 9 > size:
        raise DamagedError("file signature not found")
    window = Window(file, base + start, size - start)
    version = window.read(0, 9)[8]
    if version in (0, 1):
        offset_size, length_size = unpack(_SIZES_0, window.read(0, 24))
        data = window.read(28 if version else 24, _FIELDS_0.size)
        origin, _, end, _, _, root = unpack(_FIELDS_0, data)
    elif version in (2, 3):
        data = without_checksum(window.read(0, 48))
        offset_size, length_size, origin, _, end, root = unpack(_SUPERBLOCK_2, data)
    else:
        raise DamagedError(f"its superblock has the unknown version {version}")
    if (offset_size, length_size) != (8, 8) or origin not in (0, start) or root == UNDEFINED:
        raise DamagedError("its superblock is damaged")
    if end > size:  # which, unlike all other addresses, counts the user block
        raise DamagedError(f"it was truncated: it declares {end:,} bytes, but has {size:,}")
    return window, root


def read_messages(window: Window, address: int) -> list[Message]:
    """All messages of an object, those in blocks elsewhere included.

    Raises:
        DamagedError: its header is damaged.
    """
    if window.read(address, 4) == b"OHDR":
        return list(_messages_2(window, address))
    return list(_messages_1(window, address))


def _messages_1(window: Window, address: int) -> Iterator[Message]:
    version, count, _, size = unpack(_HEADER_1, window.claim(address, _HEADER_1.size))
    if version != 1:
        raise DamagedError(f"there is no object header at {address:,}")
    blocks = [(address + _HEADER_1.size, size)]
    found = 0
    for place, nbytes in blocks:  # grows by continuations, each of which is claimed
        for message in _split(window.claim(place, nbytes), 0, _MESSAGE_1):
            found += 1
            if message.kind == _CONTINUATION:
                blocks.append(unpack(_BLOCK, message.data))
            elif message.kind != _NIL:
                yield message
    if found != count:
        raise DamagedError("an object header declares another number of messages than it has")


def _messages_2(window: Window, address: int) -> Iterator[Message]:
    version, flags = window.read(address, 6)[4:]
    if version != 2:
        raise DamagedError(f"there is no object header at {address:,}")
    # After signature, version and flags: 16 bytes of times and 4 of limits, if flagged.
    prefix = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    size = int.from_bytes(window.read(address + prefix, width), "little")
    layout = _NUMBERED_MESSAGE_2 if flags & 4 else _MESSAGE_2
    blocks = [(address, prefix + width + size + 4, prefix + width, b"OHDR")]
    for place, nbytes, start, signature in blocks:
        data = without_checksum(window.claim(place, nbytes, signature))
        for message in _split(data, start, layout):
            if message.kind == _CONTINUATION:
                blocks.append((*unpack(_BLOCK, message.data), 4, b"OCHK"))
            elif message.kind != _NIL:
                yield message


def _split(data: bytes, position: int, layout: struct.Struct) -> Iterator[Message]:
    while position + layout.size <= len(data):  # less than the beginning of a message is a gap
        kind, size, flags = layout.unpack_from(data, position)
        position += layout.size + size
        if position > len(data):
            raise DamagedError("a message reaches beyond its object header")
        yield Message(kind, flags, data[position - size : position])
