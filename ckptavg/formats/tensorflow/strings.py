"""Texts as TensorFlow stores them in checkpoints: all lengths, their checksum, then all bytes."""

from collections.abc import Callable
from dataclasses import dataclass

import google_crc32c
import numpy as np

from ckptavg.formats.crc32c import crc32c_combine
from ckptavg.formats.tensorflow.protobuf import Refused, varint
from ckptavg.formats.tensorflow.table import mask

_CHUNK = 1024 * 1024
_CHECKSUM_SIZE = 4
_WIDTH_LIMIT = 5
"""Bytes of a length below 2^32; TensorFlow takes the checksum of longer ones in another way."""


@dataclass(frozen=True, slots=True)
class StringLayout:
    """What the lengths at the head of a string tensor tell.

    Attributes:
        start: first byte of the first text.
        size: of all stored bytes.
        difference: of the checksums of the lengths as stored and as numbers of 32 bits.
    """

    start: int
    size: int
    difference: int

    def translated(self, crc: int) -> int:
        """The CRC-32C of the stored bytes from TensorFlow's, and the other way around.

        TensorFlow's covers the lengths as numbers of 32 bits, and then the bytes as stored.
        """
        return crc32c_combine(self.difference, crc, self.size - self.start + _CHECKSUM_SIZE)


def scan(read: Callable[[int, int], bytes], count: int, size: int) -> StringLayout:
    """Checks the lengths of a string tensor, in steps of bounded memory.

    Args:
        read: gives that many bytes from a position on.
        count: how many texts there are.
        size: of all stored bytes.

    Raises:
        Refused: the lengths are damaged, or do not add up to the size.
    """
    position = total = crc = stored_crc = 0
    while count:
        chunk = read(position, min(_CHUNK, size - position))
        lengths, used = _decode_lengths(chunk, count)
        crc = google_crc32c.extend(crc, lengths.astype("<u4").tobytes())
        stored_crc = google_crc32c.extend(stored_crc, chunk[:used])
        count -= len(lengths)
        total += int(lengths.sum())
        position += used
    start = position + _CHECKSUM_SIZE
    if start + total != size or read(position, _CHECKSUM_SIZE) != _checksum(crc):
        raise Refused("holds texts whose lengths are damaged")
    return StringLayout(start, size, crc ^ stored_crc)


def encode(value: bytes) -> bytes:
    """One text as a string tensor of no dimensions is stored."""
    crc = google_crc32c.value(len(value).to_bytes(4, "little"))
    return varint(len(value)) + _checksum(crc) + value


def _checksum(crc: int) -> bytes:
    return mask(crc).to_bytes(_CHECKSUM_SIZE, "little")


def _decode_lengths(chunk: bytes, count: int) -> tuple[np.ndarray, int]:
    """Up to `count` numbers at the beginning of the bytes, and how many bytes they take."""
    data = np.frombuffer(chunk, np.uint8)
    ends = np.flatnonzero(data < 0x80)[:count]
    starts = np.concatenate(([0], ends[:-1] + 1))
    if not len(ends) or (widths := ends - starts + 1).max() > _WIDTH_LIMIT:
        raise Refused("holds texts whose lengths are damaged")
    values = np.zeros(len(ends), np.uint64)
    for step in range(_WIDTH_LIMIT):
        longer = widths > step
        bits = data[starts[longer] + step].astype(np.uint64) & np.uint64(0x7F)
        values[longer] |= bits << np.uint64(7 * step)
    if values.max() >= 2**32:
        raise Refused("holds texts of 4 GiB and more")
    return values, int(ends[-1]) + 1
