"""Keras 3 `.weights.h5` files, read and written as extents of bytes."""

import os
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from ckptavg.errors import FormatError
from ckptavg.files import commit, temporary_sibling
from ckptavg.formats.interface import Attributes, CheckpointReader, CheckpointWriter, Structure
from ckptavg.tensors import Extent, TensorInfo, is_opaque

_DTYPE_ATTRIBUTE = "dtype"
"""Keras stores what HDF5 has no type for, such as bfloat16, as opaque bytes with this attribute."""


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
                return _Walk(self.path, base, size).structure(tree)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(
                f"{self.path} is not an intact HDF5 file: {_first_line(error)}"
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

    def commit(self) -> int:
        size = os.fstat(self._descriptor).st_size
        commit(self._temporary, self.path)
        return size

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
        declared = sum(tensor.extent.nbytes for tensor in self._tensors.values())
        if declared > self._size:
            raise FormatError(
                f"{self._path} declares {declared:,} bytes of tensors but has {self._size:,}: "
                "tensors overlap"
            )
        return Structure(self._tensors, self._groups)

    def _visit(self, group: h5py.Group, prefix: str) -> None:
        self._enter(group, prefix or "/")
        for key in group:
            name = f"{prefix}/{key}" if prefix else key
            link = group.id.links.get_info(key.encode())
            if link.type != h5py.h5l.TYPE_HARD:
                raise self._refusal(name, "is a link to another place")
            found = group[key]
            if isinstance(found, h5py.Group):
                self._groups[name] = _text_attributes(found)
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
        if dtype.kind == "V":
            stored = _text(dataset.attrs.get(_DTYPE_ATTRIBUTE))
            if stored and is_opaque(stored) and np.dtype(stored).itemsize == dtype.itemsize:
                return stored
        if dtype.kind not in "fiub":
            raise self._refusal(name, f"has the type {dtype}, which is not a number")
        if dtype.byteorder == ">":
            raise self._refusal(name, "is big-endian, not as Keras writes it")
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
            offsets[name] = dataset.id.get_offset() or 0  # an empty one has no place
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


def _text_attributes(group: h5py.Group) -> dict[str, str]:
    """The texts among a folder's attributes: Keras notes the user's name of a layer there."""
    texts = {key: _text(group.attrs[key]) for key in group.attrs}
    return {key: text for key, text in texts.items() if text is not None}


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
