"""The chunks of a tensor: where they lie in an HDF5 file, and their decoded bytes.

HDF5 itself trusts what a file says of its chunks: one that holds fewer bytes than it should made it
read memory of others, or crash. Here a chunk counts only if exactly its bytes come out.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ckptavg.formats.hdf5.b_trees import leaves
from ckptavg.formats.hdf5.datasets import Dataset, Index, RefusedError
from ckptavg.formats.hdf5.window import (
    ADDRESS,
    UNDEFINED,
    DamagedError,
    Window,
    unpack,
    without_checksum,
)

CHUNK_LIMIT = 16 * 1024 * 1024
"""Bytes of a decoded chunk, which is held in memory as a whole."""

_COUNT_LIMIT = 2**18
"""Chunks of one tensor; at 64 KiB each they hold 16 GiB."""
_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000
_KNOWN = (_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF)
_KEY = struct.Struct("<II")
"""Stored bytes of a chunk, mask of the filters that it was not put through."""
_SINGLE = struct.Struct("<QI")
_ARRAY_HEADER = struct.Struct("<4xBBBBQQ")
"""Version, whether filtered, bytes of an element, bits of a page; elements, address of the data."""
_CHECKSUM = 4
_NO_FILTER = 0xFFFFFFFF
"""The mask of a chunk that was put through no filter."""


class Chunk(NamedTuple):
    """Where the stored bytes of a chunk lie, and which filters were not applied."""

    address: int
    nbytes: int
    mask: int = 0


def find_chunks(window: Window, dataset: Dataset) -> dict[tuple[int, ...], Chunk]:
    """The chunks of a tensor, by their number on each axis.

    Raises:
        DamagedError: the index of the chunks is damaged.
        RefusedError: chunks are missing, too large, too many, or compressed by an unknown filter.
    """
    for code, name, _ in dataset.filters:
        if code not in _KNOWN:
            raise RefusedError(f"is compressed by {name!r:.40}, unknown here")
    nbytes = math.prod(dataset.chunk) * dataset.itemsize
    if nbytes > CHUNK_LIMIT:
        raise RefusedError(f"has chunks of more than {CHUNK_LIMIT:,} bytes")
    grid = tuple(-(-n // c) for n, c in zip(dataset.shape, dataset.chunk, strict=True))
    if math.prod(grid) > window.size:
        raise RefusedError("declares more bytes than the file can hold")
    if math.prod(grid) > _COUNT_LIMIT:
        raise RefusedError(
            f"is divided into {math.prod(grid):,} chunks, more than {_COUNT_LIMIT:,}: save it with "
            "larger ones"
        )
    found: dict[tuple[int, ...], Chunk] = {}
    for number, chunk in _chunks(window, dataset, grid, nbytes):
        if number in found or any(not 0 <= n < most for n, most in zip(number, grid, strict=True)):
            raise DamagedError("a chunk lies outside its tensor, or where another one does")
        if chunk.address + chunk.nbytes > window.size:
            raise DamagedError("a chunk reaches beyond the end of the file")
        if not dataset.filters and chunk.nbytes != nbytes:
            raise DamagedError(f"a chunk has {chunk.nbytes:,} bytes instead of {nbytes:,}")
        if dataset.has_plain_edges and any(
            (n + 1) * size > side
            for n, size, side in zip(number, dataset.chunk, dataset.shape, strict=True)
        ):
            chunk = chunk._replace(mask=_NO_FILTER)
        found[number] = chunk
    if len(found) != math.prod(grid):  # HDF5 reads a missing one as zeros, which nobody has saved
        raise RefusedError("lacks some of its chunks")
    return found


def read_chunk(window: Window, dataset: Dataset, chunk: Chunk) -> np.ndarray:
    """The elements of a chunk, as an array of bytes of shape `(*dataset.chunk, itemsize)`.

    Raises:
        DamagedError: its bytes cannot be decoded, or are too few or too many.
    """
    data = window.file.read(window.base + chunk.address, chunk.nbytes)
    nbytes = math.prod(dataset.chunk) * dataset.itemsize
    for number, (code, _, parameters) in reversed(list(enumerate(dataset.filters))):
        if not chunk.mask >> number & 1:
            data = _undone(code, parameters, data, nbytes)
    if len(data) != nbytes:
        raise DamagedError(f"a chunk has {len(data):,} bytes instead of {nbytes:,}")
    return np.frombuffer(data, np.uint8).reshape(*dataset.chunk, dataset.itemsize)


def _chunks(
    window: Window, dataset: Dataset, grid: tuple[int, ...], nbytes: int
) -> Iterator[tuple[tuple[int, ...], Chunk]]:
    """What the index of a tensor lists."""
    if dataset.address == UNDEFINED:
        return
    if dataset.index is Index.B_TREE_1:
        rank = len(grid)
        key_size = _KEY.size + 8 * (rank + 1)
        for key, address in leaves(window, dataset.address, kind=1, key_size=key_size):
            offsets = struct.unpack_from(f"<{rank + 1}Q", key, _KEY.size)
            parts = [divmod(o, c) for o, c in zip(offsets, (*dataset.chunk, 1), strict=True)]
            if offsets[-1] or any(rest for _, rest in parts):
                raise DamagedError("a chunk does not begin where chunks begin")
            yield tuple(number for number, _ in parts[:-1]), Chunk(address, *_KEY.unpack_from(key))
        return
    if dataset.index is Index.SINGLE:
        size, mask = unpack(_SINGLE, dataset.stored) if dataset.stored else (nbytes, 0)
        found = iter([Chunk(dataset.address, size, mask)])
    elif dataset.index is Index.IMPLICIT:
        count = math.prod(grid)
        found = iter(Chunk(dataset.address + n * nbytes, nbytes) for n in range(count))
    else:
        found = _fixed_array(window, dataset.address, nbytes)
    for place, chunk in zip(np.ndindex(grid), found, strict=False):
        if chunk.address != UNDEFINED:
            yield place, chunk


def _fixed_array(window: Window, address: int, nbytes: int) -> Iterator[Chunk]:
    """The elements of a fixed array (specification III.H); large ones are divided into pages."""
    header = without_checksum(window.claim(address, _ARRAY_HEADER.size + _CHECKSUM, b"FAHD"))
    version, is_filtered, size, bits, count, place = unpack(_ARRAY_HEADER, header)
    if version != 0 or size < 8 + 5 * is_filtered or bits > 32 or count > _COUNT_LIMIT:
        raise DamagedError("the index of chunks is damaged")
    page = 1 << bits
    head = 14
    if count <= page:
        pieces = [(place, head, count)]
    else:
        # A bit for each page says whether it was written; chunks of one that was not are missing.
        pages = math.ceil(count / page)
        head += math.ceil(pages / 8)
        without_checksum(window.claim(place, head + _CHECKSUM, b"FADB"))
        place += head + _CHECKSUM
        pieces = [
            (place + n * (page * size + _CHECKSUM), 0, min(page, count - n * page))
            for n in range(pages)
        ]
    for where, skipped, elements in pieces:
        signature = b"FADB" if skipped else b""
        length = skipped + elements * size + _CHECKSUM
        data = without_checksum(window.claim(where, length, signature))[skipped:]
        for start in range(0, len(data), size):
            element = data[start : start + size]
            (chunk,) = ADDRESS.unpack_from(element)
            if is_filtered:
                stored, mask = int.from_bytes(element[8:-4], "little"), element[-4:]
                yield Chunk(chunk, stored, int.from_bytes(mask, "little"))
            else:
                yield Chunk(chunk, nbytes)


def _undone(code: int, parameters: tuple[int, ...], data: bytes, nbytes: int) -> bytes:
    """Undoes a filter; what comes out may end in a checksum, besides the `nbytes` of the chunk."""
    limit = nbytes + _CHECKSUM
    if code == _DEFLATE:
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(data, limit + 1)
        except zlib.error as error:
            raise DamagedError(f"a compressed chunk is damaged: {error}") from error
        if not inflater.eof:
            raise DamagedError("a compressed chunk is damaged")
        return data
    if code == _LZF:
        return decompress_lzf(data, limit)
    if code == _SHUFFLE:
        (size,) = parameters or (1,)
        whole = len(data) // size * size if size else 0
        if size < 1:
            raise DamagedError("a chunk is shuffled by no size")
        shuffled = np.frombuffer(data, np.uint8, whole).reshape(size, -1)
        return shuffled.T.tobytes() + data[whole:]
    if fletcher32(data[:-_CHECKSUM]) != int.from_bytes(data[-_CHECKSUM:], "little"):
        raise DamagedError("the checksum of a chunk is wrong")
    return data[:-_CHECKSUM]


def fletcher32(data: bytes) -> int:
    """HDF5's checksum of chunks: two sums of big-endian 16-bit words, in ones' complement."""
    words = np.frombuffer(data, ">u2", len(data) // 2).astype(np.uint64)
    first = int(words.sum())
    # The second sum adds up the first one after every word.
    weights = np.arange(len(words), 0, -1, dtype=np.uint64)
    second = int((words * (weights % 65535) % 65535).sum()) if len(words) else 0
    if len(data) % 2:
        first += data[-1] << 8
        second += first
    return _folded(second, first) << 16 | _folded(first, first)


def _folded(total: int, first: int) -> int:
    """A sum in ones' complement, where only a sum of nothing is 0 and all others 1 to 65,535."""
    return (total - 1) % 65535 + 1 if first else 0


def decompress_lzf(data: bytes, limit: int) -> bytes:
    """Decompresses LZF (libLZF's format), of which h5py brings its own filter.

    Raises:
        DamagedError: the data are damaged, or more than `limit` bytes come out.
    """
    out = bytearray()
    position = 0
    try:
        while position < len(data):
            control = data[position]
            position += 1
            if control < 32:  # so many bytes, and one more, as they are
                out += data[position : position + control + 1]
                position += control + 1
            else:  # a copy of what came out before
                length = (control >> 5) + 2
                if length == 9:
                    length += data[position]
                    position += 1
                start = len(out) - ((control & 31) << 8 | data[position]) - 1
                position += 1
                if start < 0:
                    raise DamagedError("a compressed chunk is damaged")
                piece = out[start : start + length]
                while len(piece) < length:  # it reaches into itself: a pattern is repeated
                    piece += piece[: length - len(piece)]
                out += piece
            if len(out) > limit:
                raise DamagedError("a compressed chunk holds more than it should")
    except IndexError as error:
        raise DamagedError("a compressed chunk is damaged") from error
    return bytes(out)
