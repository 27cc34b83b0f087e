"""CRC-32C of bytes, and of joined parts from the CRCs of the parts alone."""

from functools import lru_cache

import google_crc32c

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's polynomial, bit 31 being the constant term; the term x^32 is implied."""

_ONE = 1 << 31
_X_TO_THE_8 = 1 << 23


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """The CRC-32C of `data`, or of what has the CRC-32C `crc` followed by `data`."""
    found: int = google_crc32c.extend(crc, bytes(data))  # it accepts no other buffers
    return found


def crc32c_combine(a: int, b: int, length_b: int) -> int:
    """The CRC-32C of two byte strings joined.

    Args:
        a: the CRC of the first.
        b: the CRC of the second.
        length_b: the length of the second in bytes.
    """
    # Appending n bytes multiplies the polynomial of the bytes before them by x^(8 n).
    return _times(a, _x_to_the_8n(length_b)) ^ b


@lru_cache(maxsize=256)  # all blocks but the last of a tensor are of one length
def _x_to_the_8n(n: int) -> int:
    """x^(8 n) modulo the polynomial, by repeated squaring."""
    result, square = _ONE, _X_TO_THE_8
    while n:
        if n & 1:
            result = _times(result, square)
        square = _times(square, square)
        n >>= 1
    return result


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo that of the CRC."""
    product = 0
    for power in range(32):
        if a & _ONE >> power:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
