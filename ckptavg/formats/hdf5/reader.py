"""Reads checkpoints that consist of HDF5 files, in any dialect of Keras."""

import io
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from ckptavg.errors import FormatError, IntegrityError, first_line
from ckptavg.formats.hdf5.attributes import AttributeReader, Place
from ckptavg.formats.hdf5.walk import Tree, find_tree
from ckptavg.formats.reader import CheckpointReader, FileSkeleton, Structure
from ckptavg.formats.tensors import TensorInfo, is_opaque
from ckptavg.storage.open_file import OpenFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CACHE = 1024 * 1024


class Hdf5Reader(CheckpointReader):
    """Reads checkpoints that consist of HDF5 files.

    Tensors with an extent are read past HDF5; only the others are decoded by it.
    """

    def __init__(
        self, path: Path, structure: Structure | None = None, like: FileSkeleton | None = None
    ) -> None:
        self._trees: dict[Place, h5py.File] = {}
        self._decoded: tuple[str, h5py.Dataset] | None = None
        self._decoding = threading.Lock()
        super().__init__(path, structure, like)

    def _tree(self, place: Place) -> h5py.File:
        """An HDF5 file of the checkpoint, opened by h5py; the caller closes it."""
        # Through our descriptor, so that it is the very file that was opened and stamped.
        tree = h5py.File(Window(self._opened[place.file], place.base, place.size), "r")
        limit_cache(tree)
        return tree

    def close(self) -> None:
        self._decoded = None
        while self._trees:
            self._trees.popitem()[1].close()
        super().close()

    def _place_of(self, tensor: TensorInfo) -> Place:
        """The HDF5 file that holds a tensor without an extent."""
        return Place(0, 0, self._sizes[0])

    def _search(self, place: Place) -> Tree:
        """Finds the tensors of one HDF5 file, and the attributes of its folders."""
        path = self.files[place.file]
        try:
            with self._tree(place) as tree:
                attributes = AttributeReader(self._opened[place.file], place)
                return find_tree(path, tree, place, attributes)
        except FormatError:
            raise
        except Exception as error:  # h5py raises nearly anything on a damaged file
            raise FormatError(f"{path} is not an intact HDF5 file: {first_line(error)}") from error

    def _decode(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        itemsize = tensor.numpy_dtype.itemsize
        first, last = start // itemsize, -(-(start + len(buffer)) // itemsize)
        values = np.empty(last - first, tensor.numpy_dtype)  # `start` may lie within a value
        position = 0
        try:
            dataset = self._dataset_to_decode(tensor)
            for box in boxes(tensor.shape, first, len(values)):
                part = np.asarray(dataset[box])
                part = part.view(tensor.numpy_dtype) if is_opaque(tensor.dtype) else part
                values[position : position + part.size] = part.ravel()
                position += part.size
        except Exception as error:  # h5py raises nearly anything on damaged chunks
            raise IntegrityError(
                f"cannot read '{tensor.name}' in {self.path}: {first_line(error)}"
            ) from error
        skipped = start - first * itemsize
        buffer[:] = values.view(np.uint8).data[skipped : skipped + len(buffer)]

    def _dataset_to_decode(self, tensor: TensorInfo) -> h5py.Dataset:
        """The dataset, left open with its cached chunk until another one is read."""
        with self._decoding:
            if self._decoded is None or self._decoded[0] != tensor.name:
                dataset = self._open_tree(self._place_of(tensor))[tensor.name]
                self._decoded = tensor.name, dataset
            return self._decoded[1]

    def _open_tree(self, place: Place) -> h5py.File:
        """An HDF5 file of the checkpoint that stays open until the reader is closed."""
        if place not in self._trees:
            self._trees[place] = self._tree(place)
        return self._trees[place]


def limit_cache(tree: h5py.File) -> None:
    """Limits what HDF5 keeps in memory of a file's metadata to 2 MiB instead of 32."""
    # See docs/decisions/0028-the-hdf5-metadata-cache-is-capped.md.
    cache = tree.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size, cache.min_size, cache.max_size = _CACHE, _CACHE, 2 * _CACHE
    tree.id.set_mdc_config(cache)


class Window(io.RawIOBase):
    """A part of an open file, as a file object for h5py and zipfile."""

    def __init__(self, file: OpenFile, base: int, size: int) -> None:
        self._file = file
        self._base = base
        self._size = size
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            offset += self._position if whence == os.SEEK_CUR else self._size
        self._position = offset
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        # HDF5 asks for bytes beyond the end, too; they may exist, but belong to something else.
        view = memoryview(buffer)
        if self._position + len(view) > self._size:
            view = view[: max(0, self._size - self._position)]
        count = self._file.read_into(self._base + self._position, view)
        self._position += count
        return count


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
