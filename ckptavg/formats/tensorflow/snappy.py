"""Unpacks Snappy's raw format, by which TensorFlow 1 and TensorFlow Serving compress indexes.

A stream is the length of what it stands for, then elements: bytes as they are, or copies of what
was unpacked before (google/snappy, format_description.txt).
"""

from ckptavg.formats.tensorflow.protobuf import Refused, read_varint

_LITERAL = 0
_LONG_LITERAL = 60
"""Lengths of literals from here on stand in 1 to 4 bytes of their own."""
_EXPANSION_LIMIT = 22
"""The densest element stands in 3 bytes for 64."""


def unpack(stored: bytes, limit: int) -> bytes:
    """What a stream stands for.

    Args:
        stored: the whole stream.
        limit: bytes that it may stand for.

    Raises:
        Refused: the stream is damaged, or stands for more.
    """
    length, position = read_varint(stored, 0)
    if length > min(limit, _EXPANSION_LIMIT * len(stored)):
        raise Refused(f"a block of its index declares {length:,} bytes, which it cannot hold")
    found = bytearray()
    while position < len(stored):
        tag = stored[position]
        if tag & 3 == _LITERAL:
            position, size = _literal(stored, position)
            found += stored[position : position + size]
            position += size
        else:
            position, size, offset = _copy(stored, position)
            if not 0 < offset <= len(found):
                raise Refused("a block of its index is damaged: it copies what is not there")
            start = len(found) - offset
            # A copy may reach into itself: what it has copied is then repeated.
            pattern = found[start : start + size]
            found += (pattern * -(-size // len(pattern)))[:size]
        if position > len(stored) or len(found) > length:
            break
    if position != len(stored) or len(found) != length:
        raise Refused("a block of its index is damaged: it does not unpack to the declared length")
    return bytes(found)


def _literal(stored: bytes, position: int) -> tuple[int, int]:
    """Where the bytes of a literal begin, and their number."""
    size = stored[position] >> 2
    position += 1
    if size < _LONG_LITERAL:
        return position, size + 1
    width = size - _LONG_LITERAL + 1
    return position + width, int.from_bytes(stored[position : position + width], "little") + 1


def _copy(stored: bytes, position: int) -> tuple[int, int, int]:
    """Where the element after a copy begins, the number of bytes, and how far back they lie."""
    tag, position = stored[position], position + 1
    width = (1, 2, 4)[(tag & 3) - 1]
    offset = int.from_bytes(stored[position : position + width], "little")
    if width == 1:
        return position + width, (tag >> 2 & 7) + 4, offset | (tag >> 5) << 8
    return position + width, (tag >> 2) + 1, offset
