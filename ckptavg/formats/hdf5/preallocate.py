"""Makes HDF5 files whose tensors are allocated but not written."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ckptavg.formats.hdf5.reader import limit_cache
from ckptavg.formats.hdf5.walk import DTYPE_ATTRIBUTE
from ckptavg.formats.reader import Attributes
from ckptavg.formats.tensors import Extent, TensorInfo, is_opaque


def lay_out(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    groups: Mapping[str, Attributes],
    number: int = 0,
) -> dict[str, Extent]:
    """Makes an HDF5 file whose tensors are to be written.

    Args:
        path: the file; it must not exist.
        tensors: by their paths in the file.
        groups: attributes of its folders, parents first; "" is the file itself.
        number: of the file in its checkpoint.

    Returns:
        Where the bytes of each tensor belong.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    extents = {}
    with _system_errors(path), h5py.File(path, "w-") as file:
        limit_cache(file)
        for name, attributes in groups.items():
            group = file.create_group(name) if name else file
            for key, value in attributes.items():
                group.attrs[key] = np.array(value) if isinstance(value, tuple) else value
        allocate = _Allocator(file)
        for name, tensor in tensors.items():
            offset = allocate(name, tensor).get_offset()
            assert offset is not None or tensor.nbytes == 0, name
            # HDF5 allocates nothing for an empty tensor.
            extents[name] = Extent(offset or 0, tensor.nbytes, number)
    return extents


class _Allocator:
    """Makes datasets that have a place in the file, but are not filled."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file.id
        self._creating = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._creating.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        self._creating.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        self._creating.set_obj_track_times(False)  # equal tensors give equal files
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
def _system_errors(path: Path) -> Iterator[None]:
    """Finds the OSError in the RuntimeError by which HDF5 reports a full disk."""
    try:
        yield
    except RuntimeError as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
