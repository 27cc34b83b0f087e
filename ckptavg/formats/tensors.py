"""Tensors in files: what they are, where their bytes lie, and how they are split into blocks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

BLOCK_SIZE = 8 * 1024 * 1024
"""Bytes of a block. Records hold a digest of every block, so this cannot change."""

STRING = "string"
"""The dtype of TensorFlow's string tensors, whose stored bytes are copied as they are."""

_RANK_LIMIT, _SIZE_LIMIT = 32, 2**63
"""Dimensions and bytes; numpy 2 allows 64 dimensions."""

_ML_DTYPES = frozenset(
    name for name in dir(ml_dtypes) if name == "bfloat16" or name.startswith("float8_")
)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a tensor lie: contiguous and little-endian, in C order.

    Attributes:
        offset: first byte in the file.
        nbytes: length in bytes.
        file: number of the file in `CheckpointReader.files`.
    """

    # A number instead of a path: files that one program wrote for one model hold their tensors at
    # the same places, so one structure serves all of its checkpoints.
    # See docs/decisions/0001-a-tensor-is-an-extent-of-bytes.md.

    offset: int
    nbytes: int
    file: int = 0


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and dtype of a tensor in a checkpoint, and where its bytes lie.

    Attributes:
        name: the stored name, such as `layers/dense/vars/0`.
        shape: dimensions; `()` for a scalar.
        dtype: the name in numpy or ml_dtypes, such as `float32` or `bfloat16`, or `STRING`.
        extent: where the tensor's bytes lie; None if the reader must decode them, because they
            are compressed, chunked or big-endian.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    extent: Extent | None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of the values; that of bytes for strings."""
        return np.dtype(np.uint8 if self.dtype == STRING else self.dtype)

    @property
    def is_float(self) -> bool:
        """Whether the values have a mean."""
        return is_float(self.dtype)

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        if self.dtype == STRING:
            assert self.extent is not None, "strings are never decoded"
            return self.extent.nbytes
        return math.prod(self.shape) * self.numpy_dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """A range of a tensor's bytes that is read, averaged, written and digested as a unit.

    Attributes:
        index: number of the block within its tensor, and of its digest in the tensor's record.
        start: first byte, counted from the tensor's own first byte.
        nbytes: length in bytes, `BLOCK_SIZE` for all blocks of a tensor but the last.
    """

    # See docs/decisions/0002-one-block-is-one-digest-and-one-unit-of-work.md.

    index: int
    start: int
    nbytes: int


def blocks(nbytes: int) -> Iterator[Block]:
    """Splits a tensor of `nbytes` bytes into blocks; an empty tensor has none."""
    for index, start in enumerate(range(0, nbytes, BLOCK_SIZE)):
        yield Block(index, start, min(BLOCK_SIZE, nbytes - start))


def count_blocks(nbytes: int) -> int:
    """The number of blocks of a tensor of `nbytes` bytes."""
    return -(-nbytes // BLOCK_SIZE)


def is_shape(shape: tuple[int, ...], itemsize: int) -> bool:
    """Whether there are arrays of this shape, for which numpy has limits even if they are empty."""
    count = math.prod(shape) or math.prod(n for n in shape if n)
    return len(shape) <= _RANK_LIMIT and count * itemsize < _SIZE_LIMIT


def is_opaque(dtype: str) -> bool:
    """Whether this is a dtype of ml_dtypes, for which HDF5 has no type but opaque bytes."""
    return dtype in _ML_DTYPES


def is_float(dtype: str) -> bool:
    """Whether values of this dtype have a mean: numpy's floats, bfloat16 and the float8 dtypes."""
    return is_opaque(dtype) or (dtype != STRING and np.issubdtype(np.dtype(dtype), np.floating))


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite."""
    with np.errstate(all="ignore"):
        # A finite sum proves it at a fraction of the cost. One that overflows proves nothing.
        if np.isfinite(values.sum(dtype=np.float64)):
            return True
    return bool(np.isfinite(values.astype(np.float64)).all())
