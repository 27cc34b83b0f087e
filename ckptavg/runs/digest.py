"""The digest that proves bytes: xxh3-128, 16 bytes, written as 32 hexadecimal digits."""

import xxhash

DIGEST_SIZE = 16
"""Bytes of a digest."""


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """The digest of bytes."""
    return xxhash.xxh3_128_digest(data)
