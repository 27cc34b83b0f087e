"""Keras 3 `.weights.h5` files, read and written as extents of bytes."""

import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from ckptavg.errors import FormatError, first_line
from ckptavg.files import commit, temporary_sibling
from ckptavg.formats.interface import Attributes, CheckpointReader, CheckpointWriter, Structure
from ckptavg.tensors import Extent, TensorInfo, is_opaque, is_void

_DTYPE_ATTRIBUTE = "dtype"
"""Keras stores what HDF5 has no type for, such as bfloat16, as opaque bytes with this attribute."""


_NAME_ATTRIBUTE = "name"
"""Keras notes the user's name of a layer in this attribute of the folder of its variables."""

_TEXT_LIMIT = 64 * 1024

_HEAP_SIGNATURE = b"GCOL"
_HEAP_HEADER = struct.Struct("<4xB3xQ")
"""Version and size of a global heap."""
_HEAP_OBJECT = struct.Struct("<H6xQ")
"""Index and size of an object in it; index 0 is its free space, whose size counts this header."""


class WeightsH5Reader(CheckpointReader):
    """Reads a `.weights.h5` file.

    HDF5 is only asked where the tensors lie. Links that lead out of the tree (soft, external),
    tensors stored elsewhere (virtual, external) and sizes beyond the file are refused.
    """

    def _read_structure(self) -> Structure:
        with self.path.open("rb") as file:
            return self._walk(file, 0, self.size)

    def _walk(self, file: BinaryIO, base: int, size: int) -> Structure:
        """Walks an HDF5 file of `size` bytes that begins at byte `base` of the checkpoint."""
        try:
            with h5py.File(file, "r") as tree:
                walk = _Walk(self.path, base, size)
                bare = walk.structure(tree)
                sound = _heaps_are_sound(self._outside(bare))
                return walk.with_texts(tree, bare) if sound else walk.without_texts(bare)
        except FormatError:
            raise
        except Exception as error:  # h5py raises nearly anything on a damaged file
            raise FormatError(
                f"{self.path} is not an intact HDF5 file: {first_line(error)}"
            ) from error


class WeightsH5Writer(CheckpointWriter):
    """Writes a `.weights.h5` file: HDF5 lays it out, the bytes follow by positioned writes."""

    def __init__(self, path: Path, structure: Structure) -> None:
        self.path = path
        self._temporary = temporary_sibling(path)
        self._descriptor = -1
        try:
            self._extents = _create(self._temporary, structure)
            self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CLOEXEC)
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, start: int, data: memoryview) -> None:
        offset = self._extents[name] + start
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], offset + written)

    def finish(self) -> int:
        return os.fstat(self._descriptor).st_size

    def commit(self) -> None:
        commit(self._temporary, self.path)

    def discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._temporary.unlink(missing_ok=True)


class _Walk:
    """One walk over the tree of an HDF5 file that may be hostile."""

    def __init__(self, path: Path, base: int, size: int) -> None:
        self._path = path
        self._base = base
        self._size = size
        self._seen: set[int] = set()
        self._tensors: dict[str, TensorInfo] = {}
        self._groups: dict[str, Attributes] = {}

    def structure(self, file: h5py.File) -> Structure:
        self._visit(file, "")
        end = 0
        for tensor in sorted(self._tensors.values(), key=lambda tensor: tensor.extent.offset):
            if tensor.extent.nbytes and tensor.extent.offset < end:
                raise self._refusal(tensor.name, "overlaps another tensor")
            end = max(end, tensor.extent.offset + tensor.extent.nbytes)
        return Structure(self._tensors, self._groups)

    def with_texts(self, file: h5py.File, bare: Structure) -> Structure:
        """The structure with the texts among the attributes: names of layers, types of tensors."""
        tensors = {
            name: replace(tensor, dtype=self._opaque_dtype(file[name], tensor))
            if is_void(tensor.dtype)
            else tensor
            for name, tensor in bare.tensors.items()
        }
        groups: dict[str, Attributes] = {}
        for name in bare.groups:
            label = _text_attribute(file[name], _NAME_ATTRIBUTE)
            groups[name] = {} if label is None else {_NAME_ATTRIBUTE: label}
        return Structure(tensors, groups)

    def without_texts(self, bare: Structure) -> Structure:
        """The structure of a file whose texts cannot be read: names of layers can be missed."""
        for tensor in bare.tensors.values():
            if is_void(tensor.dtype):
                raise self._refusal(tensor.name, "has a type whose name is damaged")
        return bare

    def _opaque_dtype(self, dataset: h5py.Dataset, tensor: TensorInfo) -> str:
        stored = _text_attribute(dataset, _DTYPE_ATTRIBUTE)
        if stored and is_opaque(stored) and np.dtype(stored).itemsize == dataset.dtype.itemsize:
            return stored
        raise self._refusal(tensor.name, f"holds bytes of the unknown type {stored!r}")

    def _visit(self, group: h5py.Group, prefix: str) -> None:
        self._enter(group, prefix or "/")
        for key in group:
            if not isinstance(key, str):
                raise self._refusal(f"{prefix}/{key!r}", "is not a name in UTF-8")
            name = f"{prefix}/{key}" if prefix else key
            link = group.id.links.get_info(key.encode())
            if link.type != h5py.h5l.TYPE_HARD:
                raise self._refusal(name, "is a link to another place")
            found = group[key]
            if isinstance(found, h5py.Group):
                self._groups[name] = {}
                self._visit(found, name)
            elif isinstance(found, h5py.Dataset):
                self._enter(found, name)
                self._tensors[name] = self._tensor(found, name)
            else:
                raise self._refusal(name, "is neither a folder nor a tensor")

    def _enter(self, found: h5py.Group | h5py.Dataset, name: str) -> None:
        address = h5py.h5o.get_info(found.id).addr
        if address in self._seen:
            raise self._refusal(name, "is linked from two places")
        self._seen.add(address)

    def _tensor(self, dataset: h5py.Dataset, name: str) -> TensorInfo:
        properties = dataset.id.get_create_plist()
        if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
            raise self._refusal(name, "is stored in another file")
        if dataset.shape is None:
            raise self._refusal(name, "has no shape")
        dtype = self._dtype(dataset, name)
        tensor = TensorInfo(name, tuple(dataset.shape), dtype, Extent(0, 0))
        if tensor.nbytes == 0:
            return tensor
        offset = dataset.id.get_offset()
        if properties.get_layout() != h5py.h5d.CONTIGUOUS or offset is None:
            raise self._refusal(name, "is stored in pieces or compressed, not as Keras writes it")
        if offset + tensor.nbytes > self._size:
            raise self._refusal(name, "reaches beyond the end of the file")
        return TensorInfo(name, tensor.shape, dtype, Extent(self._base + offset, tensor.nbytes))

    def _dtype(self, dataset: h5py.Dataset, name: str) -> str:
        dtype = dataset.dtype
        if dtype.kind == "V" and dtype.fields is None and 0 < dtype.itemsize <= 8:
            return f"V{dtype.itemsize}"  # until the texts are read
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise self._refusal(
                name, f"has the type {dtype}, which is not a number of up to 8 bytes"
            )
        if dtype.byteorder == ">":
            raise self._refusal(name, "is big-endian, not as Keras writes it")
        if dataset.id.get_type() != h5py.h5t.py_create(dtype, logical=True):
            raise self._refusal(name, f"has a type of its own that is only like {dtype}")
        return dtype.name

    def _refusal(self, name: str, why: str) -> FormatError:
        return FormatError(f"refusing {self._path}: '{name}' {why}")


def _create(path: Path, structure: Structure) -> dict[str, int]:
    """Lays out an HDF5 file with its tensors unwritten; returns where each begins."""
    offsets = {}
    with h5py.File(path, "w-") as file:
        for name, attributes in structure.groups.items():
            file.require_group(name).attrs.update(attributes)
        for name, tensor in structure.tensors.items():
            dataset = _allocate(file, name, tensor)
            offset = dataset.id.get_offset()
            assert offset is not None or tensor.nbytes == 0, name
            offsets[name] = offset or 0  # an empty one has no place
    return offsets


def _allocate(file: h5py.File, name: str, tensor: TensorInfo) -> h5py.Dataset:
    opaque = is_opaque(tensor.dtype)
    dtype = np.dtype(f"V{tensor.numpy_dtype.itemsize}") if opaque else tensor.numpy_dtype
    if tensor.shape:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        dataset = file.create_dataset(name, tensor.shape, dtype, dcpl=properties)
    else:  # h5py forgets the properties of scalars: writing one gives it its place
        dataset = file.create_dataset(name, data=np.zeros((), dtype))
    if opaque:
        dataset.attrs[_DTYPE_ATTRIBUTE] = tensor.dtype
    return dataset


def _heaps_are_sound(outside: bytes) -> bool:
    """Whether every global heap, where HDF5 keeps texts, can be read to its end.

    HDF5 itself runs in circles at an object of size 0 (HDF5 file format specification 3.0, III.E).
    The texts are names that only people read, so that a file with unsound heaps does without.
    """
    start = outside.find(_HEAP_SIGNATURE)
    while start >= 0:
        if start + _HEAP_HEADER.size > len(outside):
            return False
        version, size = _HEAP_HEADER.unpack_from(outside, start)
        end = start + size
        if version != 1 or size < _HEAP_HEADER.size or end > len(outside):
            return False
        position = start + _HEAP_HEADER.size
        while position + _HEAP_OBJECT.size <= end:
            index, length = _HEAP_OBJECT.unpack_from(outside, position)
            step = _HEAP_OBJECT.size + -(-length // 8) * 8 if index else length
            if step < _HEAP_OBJECT.size or position + step > end:
                return False
            position += step
        start = outside.find(_HEAP_SIGNATURE, end)
    return True


def _text_attribute(found: h5py.Group | h5py.Dataset, name: str) -> str | None:
    """A short text among the attributes; None if it is missing or anything else.

    Attributes are not listed and not read unseen: a damaged size would fill the memory.
    """
    if not h5py.h5a.exists(found.id, name.encode()):
        return None
    attribute = h5py.h5a.open(found.id, name.encode())
    if attribute.shape != () or attribute.get_storage_size() > _TEXT_LIMIT:
        return None
    value = found.attrs[name]
    try:
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()
    except (AttributeError, UnicodeError):
        return None
    return text
