"""Reads checkpoints that consist of HDF5 files, in any dialect of Keras."""

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ckptavg.errors import IntegrityError
from ckptavg.formats.hdf5.chunks import CHUNK_LIMIT, read_chunk
from ckptavg.formats.hdf5.datasets import Layout
from ckptavg.formats.hdf5.walk import Encoded, Place, Tree, find_tree
from ckptavg.formats.hdf5.window import DamagedError
from ckptavg.formats.reader import CheckpointReader, FileSkeleton, Structure
from ckptavg.formats.tensors import TensorInfo

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
"""Values as bytes, which have an axis of their own."""


class Hdf5Reader(CheckpointReader):
    """Reads checkpoints that consist of HDF5 files."""

    def __init__(
        self, path: Path, structure: Structure | None = None, like: FileSkeleton | None = None
    ) -> None:
        self._trees: dict[Place, Tree] = {}
        self._decoded = _DecodedChunks()
        self._searching = threading.Lock()
        super().__init__(path, structure, like)

    def _place_of(self, tensor: TensorInfo) -> Place:
        """The HDF5 file that holds a tensor without an extent."""
        return Place(0, 0, self._sizes[0])

    def _search(self, place: Place) -> Tree:
        """Finds the tensors of one HDF5 file, and the attributes of its folders."""
        return find_tree(self._opened[place.file], place)

    def _tree(self, place: Place) -> Tree:
        """As `_search`, but remembered: a structure that was handed in leads to no chunks."""
        with self._searching:
            if place not in self._trees:
                self._trees[place] = self._search(place)
            return self._trees[place]

    def _decode(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        encoded = self._tree(self._place_of(tensor)).encoded[tensor.name]
        itemsize = encoded.dataset.itemsize
        first, last = start // itemsize, -(-(start + len(buffer)) // itemsize)
        try:
            values = self._values(tensor.name, encoded, first, last - first)
        except (DamagedError, OSError) as error:
            raise IntegrityError(f"cannot read '{tensor.name}' in {self.path}: {error}") from error
        if encoded.dataset.is_swapped:
            values = values[:, ::-1]
        skipped = start - first * itemsize  # `start` may lie within a value
        buffer[:] = values.tobytes()[skipped : skipped + len(buffer)]

    def _values(self, name: str, encoded: Encoded, first: int, count: int) -> Bytes:
        """Bytes of elements in C order, of shape `(count, itemsize)`."""
        window, dataset = encoded.window, encoded.dataset
        itemsize = dataset.itemsize
        if dataset.layout is not Layout.CHUNKED:
            if dataset.layout is Layout.COMPACT:
                data = dataset.stored[first * itemsize : (first + count) * itemsize]
            else:
                offset = window.base + dataset.address + first * itemsize
                data = window.file.read(offset, count * itemsize)
            if len(data) < count * itemsize:
                raise DamagedError("it was truncated while it was read")
            return np.frombuffer(data, np.uint8).reshape(count, itemsize)
        values = np.empty((count, itemsize), np.uint8)
        position = 0
        for box in boxes(dataset.shape, first, count):
            shape = tuple(side.stop - side.start for side in box)
            part = values[position : position + math.prod(shape)].reshape(*shape, itemsize)
            self._fill(part, name, encoded, box)
            position += math.prod(shape)
        return values

    def _fill(self, part: Bytes, name: str, encoded: Encoded, box: tuple[slice, ...]) -> None:
        """Fills a box of a tensor from all chunks that overlap it."""
        sizes = encoded.dataset.chunk
        grid = [
            range(side.start // size, -(-side.stop // size))
            for side, size in zip(box, sizes, strict=True)
        ]
        for offsets in np.ndindex(*map(len, grid)):
            number = tuple(numbers[n] for numbers, n in zip(grid, offsets, strict=True))
            chunk = self._decoded.get(name, number, encoded)
            target, source = [], []
            for n, size, side in zip(number, sizes, box, strict=True):
                low, high = max(n * size, side.start), min((n + 1) * size, side.stop)
                target.append(slice(low - side.start, high - side.start))
                source.append(slice(low - n * size, high - n * size))
            part[tuple(target)] = chunk[tuple(source)]


class _DecodedChunks:
    """The chunks that were decoded last, as many as one of the largest takes memory."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[tuple[str, tuple[int, ...]], Bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, name: str, number: tuple[int, ...], encoded: Encoded) -> Bytes:
        """A chunk of a tensor, decoded unless it is remembered."""
        with self._lock:
            key = name, number
            if key not in self._chunks:
                decoded = read_chunk(encoded.window, encoded.dataset, encoded.chunks[number])
                self._size += decoded.nbytes
                while self._chunks and self._size > CHUNK_LIMIT:
                    self._size -= self._chunks.popitem(last=False)[1].nbytes
                self._chunks[key] = decoded
            self._chunks.move_to_end(key)
            return self._chunks[key]


def boxes(shape: tuple[int, ...], start: int, count: int) -> Iterator[tuple[slice, ...]]:
    """Splits a range of an array's elements, counted in C order, into slices of the array."""
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    while count:
        row, first = divmod(start, inner)
        if first == 0 and count >= inner:
            rows = count // inner
            yield (slice(row, row + rows), *(slice(0, n) for n in shape[1:]))
            taken = rows * inner
        else:
            taken = min(inner - first, count)
            for box in boxes(shape[1:], first, taken):
                yield (slice(row, row + 1), *box)
        start, count = start + taken, count - taken
