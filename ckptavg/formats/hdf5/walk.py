"""Finds the tensors and folders of an HDF5 file that may be damaged or hostile.

The structures of the file are parsed here, and HDF5 itself never sees it: damage in a file makes
the library crash, loop forever, or read the memory of others. Only hard links are followed, each
structure is visited once, and sizes that the file could not hold are refused.
See docs/decisions/0075-hdf5-files-are-parsed-without-hdf5.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.attributes import AttributeReader
from ckptavg.formats.hdf5.chunks import Chunk, find_chunks
from ckptavg.formats.hdf5.datasets import Dataset, Layout, RefusedError, dataset_of
from ckptavg.formats.hdf5.links import links_of
from ckptavg.formats.hdf5.object_headers import Message, open_window, read_messages
from ckptavg.formats.hdf5.window import UNDEFINED, DamagedError, Window
from ckptavg.formats.reader import Attribute
from ckptavg.formats.tensors import Extent, TensorInfo, is_opaque, is_shape
from ckptavg.storage.open_file import OpenFile

DTYPE_ATTRIBUTE = "dtype"
"""Keras stores what HDF5 has no type for, such as bfloat16, as opaque bytes with this attribute."""

_EXPANSION_LIMIT = 1100
"""Deflate compresses 1,032 to 1 at best: a file that declares more does not hold it."""
_DEPTH_LIMIT = 200
"""Folders in folders; deeper ones would exceed Python's stack."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an HDF5 file lies in a checkpoint: the number of the file, and the bytes there."""

    file: int
    base: int
    size: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor whose bytes in the file are not its values in a row.

    Attributes:
        window: of its file.
        dataset: how it is stored.
        chunks: where its chunks lie, by their number on each axis.
    """

    window: Window
    dataset: Dataset
    chunks: Mapping[tuple[int, ...], Chunk] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tree:
    """What an HDF5 file holds, before a dialect of Keras is made out.

    Attributes:
        tensors: by their paths.
        groups: the attributes of all folders, by the folders' paths; None for an attribute that
            is damaged or not a string.
        encoded: the tensors without an extent, by their paths.
    """

    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    groups: dict[str, Mapping[str, Attribute | None]] = field(default_factory=dict)
    encoded: dict[str, Encoded] = field(default_factory=dict)


def find_tree(file: OpenFile, place: Place) -> Tree:
    """Walks over an HDF5 file.

    Args:
        file: the file of the checkpoint that holds it.
        place: where it lies there.

    Raises:
        FormatError: the file is damaged, holds links to other files, shared objects or types
            without a mean, or it declares more than it holds.
    """
    try:
        window, root = open_window(file, place.base, place.size)
        walk = _Walk(file.path, place.file, window)
        walk.visit(root, "")
    except DamagedError as error:
        raise FormatError(f"{file.path} is not an intact HDF5 file: {error}") from error
    return walk.tree


class _Walk:
    def __init__(self, path: Path, file: int, window: Window) -> None:
        self.tree = Tree()
        self._path = path
        self._file = file
        self._window = window
        self._attributes = AttributeReader(window)
        self._seen: set[int] = set()
        self._encoded = 0

    def visit(self, address: int, name: str, depth: int = 0) -> None:
        """Takes in a folder with all that is below it, or a tensor."""
        if address in self._seen:  # so that cycles end, and no size counts twice
            raise self._refusal(name or "/", "is linked from two places")
        self._seen.add(address)
        messages = read_messages(self._window, address)
        links = links_of(self._window, messages)
        if links is None:
            if not depth:
                raise DamagedError("its root is not a folder")
            self.tree.tensors[name] = self._tensor(messages, name)
            return
        if depth > _DEPTH_LIMIT:
            raise self._refusal(name, f"lies in more than {_DEPTH_LIMIT} folders")
        self.tree.groups[name] = self._attributes.of(messages)
        labels: set[str] = set()
        for key, target in links:
            try:
                label = key.decode()
            except UnicodeDecodeError as error:
                raise self._refusal(f"{name}/{key!r}", "is not a name in UTF-8") from error
            path = f"{name}/{label}" if name else label
            # Keras, which opens such a name as a path, would come to another object.
            # HDF5 ends a name at a null byte: what lies there would have two names.
            if label in labels or label in ("", ".") or "/" in label or "\0" in label:
                raise self._refusal(path, "is not a valid name: the file is damaged")
            labels.add(label)
            if target is None:
                raise self._refusal(path, "is a link to another place")
            self.visit(target, path, depth + 1)

    def _tensor(self, messages: Iterable[Message], name: str) -> TensorInfo:
        try:
            dataset = dataset_of(self._window, messages)
            if dataset is None:
                raise RefusedError("is neither a folder nor a tensor")
            dtype = dataset.dtype
            if dtype.startswith("V"):
                dtype = self._opaque_dtype(dataset, messages)
            tensor = TensorInfo(name, dataset.shape, dtype, Extent(0, 0, self._file))
            # More would reach beyond it; fewer are a tensor whose shape was damaged.
            if dataset.layout is not Layout.CHUNKED and dataset.nbytes != tensor.nbytes:
                raise RefusedError(
                    f"has {tensor.nbytes:,} bytes by its shape, but {dataset.nbytes:,} are stored"
                )
            if not is_shape(dataset.shape, dataset.itemsize):
                raise RefusedError(f"has the shape {dataset.shape}, which no array has")
            if tensor.nbytes == 0:
                return tensor
            extent = self._extent(dataset, tensor)
        except RefusedError as error:
            raise self._refusal(name, str(error)) from error
        return TensorInfo(name, dataset.shape, dtype, extent)

    def _extent(self, dataset: Dataset, tensor: TensorInfo) -> Extent | None:
        """Where the bytes of a tensor lie; None if they must be decoded."""
        if dataset.layout is Layout.CHUNKED:
            chunks = find_chunks(self._window, dataset)
            stored = sum(chunk.nbytes for chunk in chunks.values())
            self._encoded += stored  # tensors that share chunks would exceed the file together
            if tensor.nbytes > stored * _EXPANSION_LIMIT or self._encoded > self._window.size:
                raise RefusedError("declares more bytes than the file can hold")
            self.tree.encoded[tensor.name] = Encoded(self._window, dataset, chunks)
            return None
        if dataset.layout is Layout.COMPACT:
            if len(dataset.stored) != tensor.nbytes:
                raise DamagedError("the storage of a tensor is damaged")
            self.tree.encoded[tensor.name] = Encoded(self._window, dataset)
            return None
        if dataset.address == UNDEFINED:
            raise RefusedError("was never written")
        if dataset.address + tensor.nbytes > self._window.size:
            raise RefusedError("reaches beyond the end of the file")
        if dataset.is_swapped:
            self._encoded += tensor.nbytes
            self.tree.encoded[tensor.name] = Encoded(self._window, dataset)
            return None
        return Extent(self._window.base + dataset.address, tensor.nbytes, self._file)

    def _opaque_dtype(self, dataset: Dataset, messages: Iterable[Message]) -> str:
        stored = self._attributes.of(messages).get(DTYPE_ATTRIBUTE)
        if (
            isinstance(stored, str)
            and is_opaque(stored)
            and np.dtype(stored).itemsize == dataset.itemsize
        ):
            return stored
        raise RefusedError(f"holds bytes of the unknown type {stored!r:.40}")

    def _refusal(self, name: str, why: str) -> FormatError:
        return FormatError(f"refusing {self._path}: '{name}' {why}")
