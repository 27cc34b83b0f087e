"""String tensors in TensorFlow checkpoints: all lengths, their checksum, then all bytes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ckptavg.formats.crc32c import crc32c, crc32c_combine
from ckptavg.formats.tensorflow.protobuf import Refused, read_varint, varint
from ckptavg.formats.tensorflow.table import mask
from ckptavg.formats.tensors import TensorInfo

_CHUNK = 1024 * 1024
_CHECKSUM_SIZE = 4
_WIDTH_LIMIT = 5
"""Bytes of a length below 2^32; TensorFlow computes the checksum of greater ones differently."""


@dataclass(frozen=True, slots=True)
class StringLayout:
    """How a string tensor is stored, found from the lengths at its beginning.

    Attributes:
        start: first byte of the first string.
        size: number of stored bytes.
        difference: XOR of the CRC-32C of the lengths as stored and as 32-bit integers.
    """

    start: int
    size: int
    difference: int

    def translated(self, crc: int) -> int:
        """The CRC-32C of the stored bytes from TensorFlow's, or TensorFlow's from that.

        TensorFlow computes it over the lengths as 32-bit integers, then over the bytes as stored.
        """
        # CRCs are linear: changing the lengths changes the CRC by their difference, moved to the
        # front of the remaining bytes.
        return crc32c_combine(self.difference, crc, self.size - self.start + _CHECKSUM_SIZE)


def scan(tensor: TensorInfo, read: Callable[[int, int], bytes]) -> StringLayout:
    """Checks the lengths of a string tensor, in steps of bounded memory.

    Args:
        tensor: which lies within its file.
        read: returns its stored bytes, given the first position and their number.

    Raises:
        Refused: the lengths are damaged, or do not add up to the size.
    """
    count, size = math.prod(tensor.shape), tensor.nbytes
    position = total = crc = stored_crc = 0
    while count:
        chunk = read(position, min(_CHUNK, size - position))
        lengths, used = _decode_lengths(tensor.name, chunk, count)
        crc = crc32c(lengths.astype("<u4").tobytes(), crc)
        stored_crc = crc32c(chunk[:used], stored_crc)
        count -= len(lengths)
        total += int(lengths.sum())
        position += used
    start = position + _CHECKSUM_SIZE
    if start + total != size or read(position, _CHECKSUM_SIZE) != _checksum(crc):
        raise Refused(f"'{tensor.name}' holds strings whose lengths are damaged")
    return StringLayout(start, size, crc ^ stored_crc)


def encode(value: bytes) -> bytes:
    """A single string as it is stored in a scalar string tensor."""
    crc = crc32c(len(value).to_bytes(4, "little"))
    return varint(len(value)) + _checksum(crc) + value


def decode(stored: bytes) -> bytes:
    """The single string in the bytes of a scalar string tensor, which were scanned."""
    _, position = read_varint(stored, 0)
    return stored[position + _CHECKSUM_SIZE :]


def _checksum(crc: int) -> bytes:
    return mask(crc).to_bytes(_CHECKSUM_SIZE, "little")


def _decode_lengths(name: str, chunk: bytes, count: int) -> tuple[np.ndarray, int]:
    """Up to `count` varints at the beginning of the bytes, and how many bytes they take."""
    data = np.frombuffer(chunk, np.uint8)
    ends = np.flatnonzero(data < 0x80)[:count]
    starts = np.concatenate(([0], ends[:-1] + 1))
    if not len(ends) or (widths := ends - starts + 1).max() > _WIDTH_LIMIT:
        raise Refused(f"'{name}' holds strings whose lengths are damaged")
    # All varints at once: step n adds the n-th group of 7 bits of those that are that long.
    values = np.zeros(len(ends), np.uint64)
    for step in range(_WIDTH_LIMIT):
        longer = widths > step
        bits = data[starts[longer] + step].astype(np.uint64) & np.uint64(0x7F)
        values[longer] |= bits << np.uint64(7 * step)
    if values.max() >= 2**32:
        raise Refused(f"'{name}' holds strings of 4 GiB or more")
    return values, int(ends[-1]) + 1
