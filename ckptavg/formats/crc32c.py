"""CRC-32C of joined bytes, from those of the parts: arithmetic without the bytes themselves."""

from functools import lru_cache

import google_crc32c

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, with bit 31 as the constant term and x^32 left out."""

_ONE = 1 << 31
_X_TO_THE_8 = 1 << 23


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """The CRC-32C of bytes that follow those whose CRC-32C is `crc`."""
    return google_crc32c.extend(crc, bytes(data))  # it takes nothing else


def crc32c_combine(a: int, b: int, length_b: int) -> int:
    """The CRC-32C of two byte strings put together.

    Args:
        a: the CRC of the first.
        b: the CRC of the second.
        length_b: how many bytes the second has.
    """
    return _times(a, _x_to_the_8n(length_b)) ^ b


@lru_cache(maxsize=256)  # blocks of a tensor have few lengths
def _x_to_the_8n(n: int) -> int:
    """x^(8 n): what n further bytes do to the remainder of those before them."""
    result, square = _ONE, _X_TO_THE_8
    while n:
        if n & 1:
            result = _times(result, square)
        square = _times(square, square)
        n >>= 1
    return result


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo the CRC's."""
    product = 0
    for power in range(32):
        if a & _ONE >> power:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
