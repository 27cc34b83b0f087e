"""Makes HDF5 files whose tensors are allocated but not written."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ckptavg.formats.hdf5.walk import DTYPE_ATTRIBUTE
from ckptavg.formats.reader import Attributes
from ckptavg.formats.tensors import Extent, TensorInfo, is_opaque

_CACHE = 1024 * 1024


def lay_out(
    path: Path, tensors: Iterable[TensorInfo], groups: Mapping[str, Attributes], number: int = 0
) -> dict[str, Extent]:
    """Makes an HDF5 file whose tensors are to be written.

    Args:
        path: the file; it must not exist.
        tensors: whose names are paths in the file.
        groups: attributes of its folders, parents first; "" is the file itself.
        number: of the file in its checkpoint.

    Returns:
        Where the bytes of each tensor belong.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    extents = {}
    with _system_errors(path), h5py.File(path, "w-") as file:
        _limit_cache(file)
        for name, attributes in groups.items():
            group = file.create_group(name) if name else file
            for key, value in attributes.items():
                group.attrs[key] = np.array(value) if isinstance(value, tuple) else value
        # h5py's own `create_dataset` ignores the time of allocation for scalars.
        creating = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creating.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creating.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creating.set_obj_track_times(False)  # equal tensors give equal files
        linking = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        linking.set_create_intermediate_group(True)
        linking.set_char_encoding(h5py.h5t.CSET_UTF8)
        scalar = h5py.h5s.create(h5py.h5s.SCALAR)
        for tensor in tensors:
            opaque = is_opaque(tensor.dtype)
            dtype = np.dtype(f"V{tensor.numpy_dtype.itemsize}") if opaque else tensor.numpy_dtype
            kind = h5py.h5t.py_create(dtype, logical=True)
            space = h5py.h5s.create_simple(tensor.shape) if tensor.shape else scalar
            dataset = h5py.h5d.create(file.id, tensor.name.encode(), kind, space, creating, linking)
            if opaque:
                h5py.Dataset(dataset).attrs[DTYPE_ATTRIBUTE] = tensor.dtype
            offset = dataset.get_offset()
            assert offset is not None or tensor.nbytes == 0, tensor.name
            # HDF5 allocates nothing for an empty tensor.
            extents[tensor.name] = Extent(offset or 0, tensor.nbytes, number)
    return extents


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


def _limit_cache(tree: h5py.File) -> None:
    """Limits what HDF5 keeps in memory of a file's metadata to 2 MiB instead of 32."""
    # See docs/decisions/0028-the-hdf5-metadata-cache-is-capped.md.
    cache = tree.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size, cache.min_size, cache.max_size = _CACHE, _CACHE, 2 * _CACHE
    tree.id.set_mdc_config(cache)
