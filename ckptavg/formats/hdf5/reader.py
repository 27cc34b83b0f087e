"""HDF5 files of any dialect of Keras, searched with distrust."""

import math
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from ckptavg.errors import FormatError, IntegrityError, first_line
from ckptavg.formats.hdf5.attributes import Place, Texts
from ckptavg.formats.reader import Attributes, CheckpointReader, FileSkeleton, Structure
from ckptavg.formats.tensors import Extent, TensorInfo, is_opaque
from ckptavg.storage.open_file import OpenFile

DTYPE_ATTRIBUTE = "dtype"
"""Keras stores what HDF5 has no type for, such as bfloat16, as opaque bytes with this attribute."""

_CACHE = 1024 * 1024
_TEXT_LIMIT = 64 * 1024
_CHUNK_LIMIT = 16 * 1024 * 1024
_EXPANSION_LIMIT = 1100
"""More than deflate can compress, 1,032 to 1: a file that declares more does not hold it."""
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000}
"""What HDF5 and h5py (LZF, 32000) decode themselves."""


class Hdf5Reader(CheckpointReader):
    """Reads checkpoints that consist of HDF5 files.

    HDF5 is only asked where the tensors lie. Links that lead out of the tree (soft, external),
    tensors stored elsewhere (virtual, external) and sizes beyond the file are refused.
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

    def _search(self, place: Place) -> Structure:
        """Finds the tensors of one HDF5 file, and the texts that its folders carry."""
        path = self.files[place.file]
        try:
            with self._tree(place) as tree:
                texts = Texts(self._opened[place.file], place)
                return self._interpret(_Walk(path, place, texts).structure(tree))
        except FormatError:
            raise
        except Exception as error:  # h5py raises nearly anything on a damaged file
            raise FormatError(f"{path} is not an intact HDF5 file: {first_line(error)}") from error

    def _interpret(self, found: Structure) -> Structure:
        """What the dialect makes of tensors and folders; attributes that are no text are None."""
        return found

    def _decode(self, tensor: TensorInfo, start: int, buffer: memoryview) -> None:
        itemsize = tensor.numpy_dtype.itemsize
        first, last = start // itemsize, -(-(start + len(buffer)) // itemsize)
        values = np.empty(last - first, tensor.numpy_dtype)
        position = 0
        try:
            dataset = self._dataset_to_decode(tensor)
            for box in boxes(tensor.shape, first, len(values)):
                part = np.asarray(dataset[box])
                part = part.view(tensor.numpy_dtype) if is_opaque(tensor.dtype) else part
                values[position : position + part.size] = part.ravel()
                position += part.size
        except Exception as error:
            raise IntegrityError(
                f"cannot read '{tensor.name}' in {self.path}: {first_line(error)}"
            ) from error
        skipped = start - first * itemsize
        buffer[:] = values.view(np.uint8).data[skipped : skipped + len(buffer)]

    def _dataset_to_decode(self, tensor: TensorInfo) -> h5py.Dataset:
        """The dataset, left open with its cache of a chunk until another one is read."""
        with self._decoding:
            if self._decoded is None or self._decoded[0] != tensor.name:
                dataset = self._open_tree(self._place_of(tensor))[tensor.name]
                self._decoded = tensor.name, dataset
            return self._decoded[1]

    def _open_tree(self, place: Place) -> h5py.File:
        """As `_tree`, but left open until the reader is closed."""
        if place not in self._trees:
            self._trees[place] = self._tree(place)
        return self._trees[place]


def limit_cache(tree: h5py.File) -> None:
    """Keeps HDF5 from holding up to 32 MiB of what it has searched or laid out."""
    cache = tree.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size, cache.min_size, cache.max_size = _CACHE, _CACHE, 2 * _CACHE
    tree.id.set_mdc_config(cache)


class Window:
    """A part of an open file, as a file for h5py."""

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

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        count = left if size < 0 else min(size, left)
        data = self._file.read(self._base + self._position, count)
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        # HDF5 asks four times for each tensor.
        if self._position + len(buffer) > self._size:
            buffer = memoryview(buffer)[: max(0, self._size - self._position)]
        count = self._file.read_into(self._base + self._position, buffer)
        self._position += count
        return count


class _Walk:
    """One walk over the tree of an HDF5 file that may be hostile."""

    def __init__(self, path: Path, place: Place, texts: Texts) -> None:
        self._path = path
        self._place = place
        self._texts = texts
        self._seen: set[int] = set()
        self._types: list[tuple[h5py.h5t.TypeID, str, bool]] = []
        self._tensors: dict[str, TensorInfo] = {}
        self._groups: dict[str, Attributes] = {}
        self._decoded = 0

    def structure(self, file: h5py.File) -> Structure:
        root = h5py.h5g.open(file.id, b"/")
        self._visit(root, "", h5py.h5o.get_info(root).addr)
        return Structure(self._tensors, self._groups)

    def _visit(self, group: h5py.h5g.GroupID, prefix: str, address: int) -> None:
        # h5py's lower level: several thousand tensors take a third of the time that they take
        # above it.
        self._enter(prefix or "/", address)
        self._groups[prefix] = self._texts.of(address)
        labels: set[str] = set()
        for key, kind, place in _links(group):
            try:
                label = key.decode()
            except UnicodeDecodeError as error:
                raise self._refusal(f"{prefix}/{key!r}", "is not a name in UTF-8") from error
            name = f"{prefix}/{label}" if prefix else label
            # Opened by such a name, HDF5 would give something else than what its link leads to.
            if label in labels or label == "." or "/" in label:
                raise self._refusal(name, "is a name that cannot be: it is damaged")
            labels.add(label)
            if kind != h5py.h5l.TYPE_HARD:
                raise self._refusal(name, "is a link to another place")
            found = h5py.h5o.open(group, key)
            if isinstance(found, h5py.h5g.GroupID):
                self._visit(found, name, place)
            elif isinstance(found, h5py.h5d.DatasetID):
                self._enter(name, place)
                self._tensors[name] = self._tensor(found, name, place)
            else:
                raise self._refusal(name, "is neither a folder nor a tensor")

    def _enter(self, name: str, address: int) -> None:
        """Makes sure that a folder or tensor, which lies at this address, is a new one."""
        if address in self._seen:
            raise self._refusal(name, "is linked from two places")
        self._seen.add(address)

    def _tensor(self, dataset: h5py.h5d.DatasetID, name: str, address: int) -> TensorInfo:
        properties = dataset.get_create_plist()
        layout = properties.get_layout()
        if layout == h5py.h5d.VIRTUAL or properties.get_external_count():
            raise self._refusal(name, "is stored in another file")
        if dataset.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            raise self._refusal(name, "has no shape")
        dtype, is_swapped = self._dtype(dataset.get_type(), name, address)
        nowhere = Extent(0, 0, self._place.file)
        tensor = TensorInfo(name, tuple(dataset.shape), dtype, nowhere)
        nbytes = tensor.nbytes
        if nbytes == 0:
            return tensor
        if layout != h5py.h5d.CONTIGUOUS:
            self._check_decodable(dataset, properties, tensor)
            return replace(tensor, extent=None)
        offset = dataset.get_offset()
        if offset is None:
            raise self._refusal(name, "was never written")
        if offset + nbytes > self._place.size:
            raise self._refusal(name, "reaches beyond the end of the file")
        if is_swapped:
            self._decoded += nbytes
            return replace(tensor, extent=None)
        return replace(tensor, extent=Extent(self._place.base + offset, nbytes, self._place.file))

    def _check_decodable(
        self, dataset: h5py.h5d.DatasetID, properties: h5py.h5p.PropDCID, tensor: TensorInfo
    ) -> None:
        """Refuses what declares more than it stores, or needs more memory than it is worth."""
        stored = dataset.get_storage_size()
        self._decoded += stored
        if tensor.nbytes > stored * _EXPANSION_LIMIT or self._decoded > self._place.size:
            raise self._refusal(tensor.name, "declares more bytes than the file can hold")
        filters = [properties.get_filter(n) for n in range(properties.get_nfilters())]
        for code, *_, label in filters:
            if code not in _FILTERS:
                raise self._refusal(tensor.name, f"is compressed by {label!r:.40}, unknown here")
        if properties.get_layout() != h5py.h5d.CHUNKED:
            return
        chunk = properties.get_chunk()
        if math.prod(chunk) * dataset.dtype.itemsize > _CHUNK_LIMIT:
            raise self._refusal(tensor.name, f"has chunks of more than {_CHUNK_LIMIT} bytes")
        wanted = math.prod(-(-n // c) for n, c in zip(tensor.shape, chunk, strict=True))
        if wanted > self._place.size or dataset.get_num_chunks() != wanted:
            raise self._refusal(tensor.name, "lacks some of its chunks")

    def _dtype(self, kind: h5py.h5t.TypeID, name: str, address: int) -> tuple[str, bool]:
        """The name of a type, and whether it is big-endian."""
        for known, *found in self._types:
            if kind == known:
                return tuple(found)
        dtype = kind.dtype
        if dtype.kind == "V" and dtype.fields is None and 0 < dtype.itemsize <= 8:
            stored = self._texts.of(address).get(DTYPE_ATTRIBUTE)
            return self._opaque_dtype(dtype, name, stored), False
        if dtype.kind == "S" and 0 < dtype.itemsize <= _TEXT_LIMIT:
            return f"S{dtype.itemsize}", False
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise self._refusal(
                name, f"has the type {dtype}, which is not a number of up to 8 bytes"
            )
        if kind != h5py.h5t.py_create(dtype, logical=True):
            raise self._refusal(name, f"has a type of its own that is only like {dtype}")
        self._types.append((kind, dtype.name, dtype.byteorder == ">"))
        return dtype.name, dtype.byteorder == ">"

    def _opaque_dtype(self, dtype: np.dtype, name: str, stored: object) -> str:
        if (
            isinstance(stored, str)
            and is_opaque(stored)
            and np.dtype(stored).itemsize == dtype.itemsize
        ):
            return stored
        raise self._refusal(name, f"holds bytes of the unknown type {stored!r:.40}")

    def _refusal(self, name: str, why: str) -> FormatError:
        return FormatError(f"refusing {self._path}: '{name}' {why}")


def _links(group: h5py.h5g.GroupID) -> list[tuple[bytes, int, int]]:
    """Name and kind of all links of a folder, and the addresses that hard ones lead to."""
    found: list[tuple[bytes, int, int]] = []

    def take(name: bytes, info: h5py.h5l.LinkInfo) -> None:  # which is the same object each time
        found.append((name, info.type, info.u))

    group.links.iterate(take, info=True)
    return found


def boxes(shape: tuple[int, ...], start: int, count: int) -> Iterator[tuple[slice, ...]]:
    """Splits a range of an array's elements, counted in C order, into boxes of the array."""
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
