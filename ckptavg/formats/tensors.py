"""Facts about tensors in files: what they are, where their bytes lie, how they are split."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

BLOCK_SIZE = 8 * 1024 * 1024
"""Bytes of a block. Records hold a digest of every block, so this cannot change."""

STRING = "string"
"""The type of TensorFlow's texts: bytes with their lengths, opaque to us."""

_ML_DTYPES = frozenset(
    name for name in dir(ml_dtypes) if name == "bfloat16" or name.startswith("float8_")
)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a tensor lie: contiguous and little-endian, in C order.

    The file is only numbered, among those of its checkpoint, because files that the same program
    wrote for the same model hold their tensors at the same places, so that one index can serve
    many checkpoints.
    """

    offset: int
    nbytes: int
    file: int = 0


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and dtype of a tensor in a checkpoint, and where its bytes lie.

    Attributes:
        name: the stored name, such as `layers/dense/vars/0`.
        shape: dimensions; `()` for a scalar.
        dtype: numpy's or ml_dtypes' name of the type, such as `float32` or `bfloat16`; `string`
            for texts that only TensorFlow understands, which are carried as they are stored.
        extent: the tensor's bytes; None if they must be decoded (compressed, in chunks,
            big-endian), which its reader does.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    extent: Extent | None

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.dtype == STRING else self.dtype)

    @property
    def is_float(self) -> bool:
        return is_float(self.dtype)

    @property
    def nbytes(self) -> int:
        if self.dtype == STRING:
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
    """How many blocks a tensor of `nbytes` bytes has."""
    return -(-nbytes // BLOCK_SIZE)


def is_opaque(dtype: str) -> bool:
    """Whether this is a type of ml_dtypes, which HDF5 stores as bytes without a meaning."""
    return dtype in _ML_DTYPES


def is_float(dtype: str) -> bool:
    """Whether values of this type have a mean: numpy's floats, bfloat16 and the float8 types."""
    return is_opaque(dtype) or (dtype != STRING and np.issubdtype(np.dtype(dtype), np.floating))


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. A finite sum proves it at a fraction of the cost."""
    with np.errstate(all="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):
            return True
    return bool(np.isfinite(values.astype(np.float64)).all())
