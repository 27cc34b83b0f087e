"""Finds the tensors and folders of an HDF5 file that may be damaged or hostile.

HDF5 is asked only for the tree, and for where each tensor lies. Only hard links are followed, each
object is visited once, and sizes that the file could not hold are refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckptavg.errors import FormatError
from ckptavg.formats.hdf5.attributes import AttributeReader, Place
from ckptavg.formats.reader import Attribute
from ckptavg.formats.tensors import Extent, TensorInfo, is_opaque

DTYPE_ATTRIBUTE = "dtype"
"""Keras stores what HDF5 has no type for, such as bfloat16, as opaque bytes with this attribute."""

_STRING_LIMIT = 64 * 1024
_CHUNK_LIMIT = 16 * 1024 * 1024
"""Bytes of a decoded chunk, which HDF5 holds in memory as a whole."""

_EXPANSION_LIMIT = 1100
"""Deflate compresses 1,032 to 1 at best: a file that declares more does not hold it."""

_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, 32000}
"""Filters that HDF5 and h5py (LZF, 32000) decode without plugins."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What an HDF5 file holds, before a dialect of Keras is made out.

    Attributes:
        tensors: by their paths.
        groups: the attributes of all folders, by the folders' paths; None for an attribute that
            is damaged or not a string.
    """

    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    groups: dict[str, Mapping[str, Attribute | None]] = field(default_factory=dict)


def find_tree(path: Path, file: h5py.File, place: Place, attributes: AttributeReader) -> Tree:
    """Walks over an HDF5 file.

    Args:
        path: the file, for messages.
        file: the file as h5py opened it.
        place: where it lies in its checkpoint.
        attributes: reads attributes from the bytes of the file.

    Raises:
        FormatError: the file holds links to other files, shared objects or types without a mean,
            or it declares more than it holds.
    """
    walk = _Walk(path, place, attributes)
    root = h5py.h5g.open(file.id, b"/")
    walk.visit(root, "", h5py.h5o.get_info(root).addr)
    return walk.tree


class _Walk:
    def __init__(self, path: Path, place: Place, attributes: AttributeReader) -> None:
        self.tree = Tree()
        self._path = path
        self._place = place
        self._attributes = attributes
        self._seen: set[int] = set()
        self._types: list[tuple[h5py.h5t.TypeID, str, bool]] = []
        self._decoded = 0

    def visit(self, group: h5py.h5g.GroupID, prefix: str, address: int) -> None:
        # h5py's low-level interface takes a third of the time for thousands of tensors.
        self._enter(prefix or "/", address)
        self.tree.groups[prefix] = self._attributes.of(address)
        labels: set[str] = set()
        for key, kind, place in _links(group):
            try:
                label = key.decode()
            except UnicodeDecodeError as error:
                raise self._refusal(f"{prefix}/{key!r}", "is not a name in UTF-8") from error
            name = f"{prefix}/{label}" if prefix else label
            # HDF5 resolves such a name as a path, to another object than the one its link means.
            if label in labels or label == "." or "/" in label:
                raise self._refusal(name, "is not a valid name: the file is damaged")
            labels.add(label)
            if kind != h5py.h5l.TYPE_HARD:
                raise self._refusal(name, "is a link to another place")
            found = h5py.h5o.open(group, key)
            if isinstance(found, h5py.h5g.GroupID):
                self.visit(found, name, place)
            elif isinstance(found, h5py.h5d.DatasetID):
                self._enter(name, place)
                self.tree.tensors[name] = self._tensor(found, name, place)
            else:
                raise self._refusal(name, "is neither a folder nor a tensor")

    def _enter(self, name: str, address: int) -> None:
        """Makes sure that an object is visited once: cycles end, and no size counts twice."""
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
        empty = Extent(0, 0, self._place.file)
        tensor = TensorInfo(name, tuple(dataset.shape), dtype, empty)
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
        """Refuses a tensor that declares more than it stores, or whose chunks take much memory."""
        stored = dataset.get_storage_size()
        self._decoded += stored  # tensors that share their chunks would exceed the file together
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
        # HDF5 reads a missing chunk as zeros, which nobody has saved.
        wanted = math.prod(-(-n // c) for n, c in zip(tensor.shape, chunk, strict=True))
        if wanted > self._place.size or dataset.get_num_chunks() != wanted:
            raise self._refusal(tensor.name, "lacks some of its chunks")

    def _dtype(self, kind: h5py.h5t.TypeID, name: str, address: int) -> tuple[str, bool]:
        """The name of a dtype, and whether it is big-endian."""
        for known, dtype_name, is_swapped in self._types:
            if kind == known:
                return dtype_name, is_swapped
        dtype = kind.dtype
        if dtype.kind == "V" and dtype.fields is None and 0 < dtype.itemsize <= 8:
            stored = self._attributes.of(address).get(DTYPE_ATTRIBUTE)
            return self._opaque_dtype(dtype, name, stored), False
        if dtype.kind == "S" and 0 < dtype.itemsize <= _STRING_LIMIT:
            return f"S{dtype.itemsize}", False
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise self._refusal(
                name, f"has the type {dtype}, which is not a number of up to 8 bytes"
            )
        # A type of the same size may place its bits differently; h5py would convert the values.
        if kind != h5py.h5t.py_create(dtype, logical=True):
            raise self._refusal(name, f"has a type of its own that only resembles {dtype}")
        self._types.append((kind, dtype.name, dtype.byteorder == ">"))
        return dtype.name, dtype.byteorder == ">"

    def _opaque_dtype(self, dtype: np.dtype[Any], name: str, stored: Attribute | None) -> str:
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

    def take(name: bytes, info: h5py.h5l.LinkInfo) -> None:  # h5py reuses `info` for all links
        found.append((name, info.type, info.u))

    group.links.iterate(take, info=True)
    return found
