"""HDF5 files laid out to be filled: their tensors have places, and nothing in them."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ckptavg.formats.hdf5.reader import DTYPE_ATTRIBUTE, limit_cache
from ckptavg.formats.reader import Attributes
from ckptavg.formats.tensors import Extent, TensorInfo, is_opaque


def lay_out(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    groups: Mapping[str, Attributes],
    number: int = 0,
) -> dict[str, Extent]:
    """Makes an HDF5 file, number `number` of its checkpoint, with its tensors unwritten.

    Returns:
        Where each tensor is to lie.

    Raises:
        OSError: the system does not let the file be written, as on a full disk.
    """
    extents = {}
    with _errors_of_the_system(path), h5py.File(path, "w-") as file:
        limit_cache(file)
        for name, attributes in groups.items():
            group = file.create_group(name) if name else file
            for key, value in attributes.items():
                group.attrs[key] = np.array(value) if isinstance(value, tuple) else value
        allocate = _Allocator(file)
        for name, tensor in tensors.items():
            offset = allocate(name, tensor).get_offset()
            assert offset is not None or tensor.nbytes == 0, name
            extents[name] = Extent(offset or 0, tensor.nbytes, number)  # an empty one has no place
    return extents


class _Allocator:
    """Makes datasets with their places in a file, and nothing in them."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file.id
        self._creating = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._creating.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        self._creating.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        self._creating.set_obj_track_times(False)
        self._linking = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        self._linking.set_create_intermediate_group(True)
        self._linking.set_char_encoding(h5py.h5t.CSET_UTF8)

    def __call__(self, name: str, tensor: TensorInfo) -> h5py.h5d.DatasetID:
        opaque = is_opaque(tensor.dtype)
        dtype = np.dtype(f"V{tensor.numpy_dtype.itemsize}") if opaque else tensor.numpy_dtype
        scalar = not tensor.shape
        dataset = h5py.h5d.create(
            self._file,
            name.encode(),
            h5py.h5t.py_create(dtype, logical=True),
            h5py.h5s.create(h5py.h5s.SCALAR) if scalar else h5py.h5s.create_simple(tensor.shape),
            self._creating,
            self._linking,
        )
        if opaque:
            h5py.Dataset(dataset).attrs[DTYPE_ATTRIBUTE] = tensor.dtype
        return dataset


@contextmanager
def _errors_of_the_system(path: Path) -> Iterator[None]:
    """HDF5 tells of a full disk when it closes a file, in the text of a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
