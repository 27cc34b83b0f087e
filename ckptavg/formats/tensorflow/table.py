"""Sorted tables of keys and values in the format of LevelDB, which TensorFlow uses for indexes."""

from collections.abc import Iterable, Iterator
from os.path import commonprefix

from ckptavg.formats.crc32c import crc32c
from ckptavg.formats.tensorflow.protobuf import Refused, read_varint, varint
from ckptavg.formats.tensorflow.snappy import unpack

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER_SIZE = 48
_HANDLES_SIZE = _FOOTER_SIZE - len(_MAGIC)
_TRAILER_SIZE = 5
"""A block is followed by one byte for its compression and four for its checksum."""

_UNCOMPRESSED, _SNAPPY = 0, 1
_MASK_DELTA = 0xA282EAD8
_RESTART_INTERVAL = 16
_BLOCK_SIZE = 256 * 1024
_BLOCK_LIMIT = 16 * 1024 * 1024
"""Bytes of a block that is compressed; a block ends with the entry that fills `_BLOCK_SIZE`."""
_KEY_LIMIT = 4 * 1024
_KEYS_LIMIT = 64 * 1024 * 1024
"""Bytes of all keys. Each may repeat the one before it, so that a small file could declare more."""

_COUNT_LIMIT = 2**18


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys of a table in order, each with its value.

    Raises:
        Refused: the bytes are not an intact table.
    """
    footer = data[-_FOOTER_SIZE:]
    if len(footer) < _FOOTER_SIZE or not footer.endswith(_MAGIC):
        raise Refused("it is not an index of a TensorFlow checkpoint, or it is truncated")
    (*metaindex, start, length), _ = _read_varints(footer, 0, 4)
    _block(data, *metaindex)
    previous, count, size, end = None, 0, 0, 0
    for _, handle in _entries(_block(data, start, length)):
        (start, length), _ = _read_varints(handle, 0, 2)
        if start < end:  # otherwise a few bytes could declare any number of blocks
            raise Refused("its blocks overlap")
        end = start + length + _TRAILER_SIZE
        for key, stored in _entries(_block(data, start, length)):
            if previous is not None and key <= previous:
                raise Refused("its keys are not in order")
            previous, count, size = key, count + 1, size + len(key)
            if count > _COUNT_LIMIT or size > _KEYS_LIMIT:
                raise Refused(
                    f"it names more than {_COUNT_LIMIT:,} tensors, or needs more than "
                    f"{_KEYS_LIMIT:,} bytes for their names"
                )
            yield key, stored


def write_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a table.

    Args:
        entries: keys, in rising order, with their values.
    """
    blocks: list[list[tuple[bytes, bytes]]] = []
    size = _BLOCK_SIZE  # so that the first entry begins a block
    for key, value in entries:
        if size >= _BLOCK_SIZE:
            blocks.append([])
            size = 0
        blocks[-1].append((key, value))
        size += len(key) + len(value)
    table = bytearray()
    handles = [(block[-1][0], _append_block(table, block)) for block in blocks]
    metaindex = _append_block(table, [])
    index = _append_block(table, handles)
    table += (metaindex + index).ljust(_HANDLES_SIZE, b"\0") + _MAGIC
    return bytes(table)


def mask(crc: int) -> int:
    """A checksum as it is stored: the CRC of bytes that contain their own CRC would be weak."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def unmask(stored: int) -> int:
    """The checksum, from how it is stored."""
    rotated = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _read_varints(data: bytes, position: int, count: int) -> tuple[list[int], int]:
    """Integers that follow each other, and the position after them."""
    found = []
    for _ in range(count):
        value, position = read_varint(data, position)
        found.append(value)
    return found, position


def _block(data: bytes, offset: int, size: int) -> bytes:
    if offset + size + _TRAILER_SIZE > len(data) - _FOOTER_SIZE:
        raise Refused("a block of its index reaches beyond the end of the file")
    stored = data[offset : offset + size + _TRAILER_SIZE]
    content, crc = stored[: size + 1], int.from_bytes(stored[size + 1 :], "little")
    if mask(crc32c(content)) != crc:
        raise Refused(f"its index is damaged: the block at byte {offset:,} fails its checksum")
    if content[size] == _SNAPPY:
        return unpack(content[:size], _BLOCK_LIMIT)
    if content[size] != _UNCOMPRESSED:
        raise Refused(
            f"a block of its index is compressed by an unknown method, number {content[size]}"
        )
    return content[:size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; each key shares its first bytes with the one before it."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise Refused("a block of its index lacks its list of restarts")
    position, key = 0, b""
    while position < end:
        (shared, added, length), position = _read_varints(block, position, 3)
        if shared > len(key) or position + added + length > end or shared + added > _KEY_LIMIT:
            raise Refused("a key of its index is damaged or too long")
        key = key[:shared] + block[position : position + added]
        position += added + length
        yield key, block[position - length : position]


def _append_block(table: bytearray, entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Adds a block; returns its handle."""
    content = bytearray()
    restarts: list[int] = []
    previous = b""
    for count, (key, value) in enumerate(entries):
        if count % _RESTART_INTERVAL == 0:
            restarts.append(len(content))
            previous = b""
        shared = len(commonprefix((previous, key)))  # noqa: RUF071 (bytes, not paths)
        content += varint(shared) + varint(len(key) - shared) + varint(len(value))
        content += key[shared:] + value
        previous = key
    restarts = restarts or [0]  # which even an empty block has
    for number in (*restarts, len(restarts)):
        content += number.to_bytes(4, "little")
    handle = varint(len(table)) + varint(len(content))
    content.append(_UNCOMPRESSED)
    table += content + mask(crc32c(content)).to_bytes(4, "little")
    return handle
