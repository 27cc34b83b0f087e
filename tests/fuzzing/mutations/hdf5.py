"""Changes to HDF5 files: to signatures, addresses, headers, heaps and chunks, checksums mended."""

import re
from functools import lru_cache
from random import Random
from struct import Struct
from typing import NamedTuple

from ckptavg.formats.hdf5.window import lookup3
from tests.fuzzing.mutations.plain import OTHER_LENGTH, SAME_LENGTH, change_bytes

_SIGNATURES = re.compile(
    rb"\x89HDF|OHDR|OCHK|TREE|SNOD|HEAP|GCOL|FRHP|FHDB|FHIB|BTHD|BTLF|BTIN|FAHD|FADB|EAHD|SMTB"
)
_CHECKED = (b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"FHIB", b"BTHD", b"BTLF", b"BTIN")
_CHECKED += (b"FAHD", b"FADB", b"EAHD", b"\x89HDF")
_ADDRESS = Struct("<Q")
_LONGEST = 4096
"""Bytes of a block with a checksum that are tried."""
_MENDED = 0.75


class _Map(NamedTuple):
    """What a file holds, and where.

    Attributes:
        structures: where structures begin, by signature or because an address leads there.
        addresses: where the address of a structure is stored.
        checked: beginning and end of blocks that end in their checksum.
    """

    structures: tuple[int, ...]
    addresses: tuple[int, ...]
    checked: tuple[tuple[int, int], ...]


def change(random: Random, content: bytes) -> bytes:
    """Changes in one to four places; blocks of the same length get a checksum that fits."""
    if random.random() < 0.1 or len(content) < 64:
        return change_bytes(random, content)
    found, data = _map(content), bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if found.addresses and random.random() < 0.25:
            _lead_elsewhere(random, data, found)
            continue
        edit = random.choice(OTHER_LENGTH if random.random() < 0.03 else SAME_LENGTH)
        edit(random, data, min(_place(random, found, len(data)), max(0, len(data) - 1)))
    is_mended = random.random() < _MENDED and len(data) == len(content)
    return mended(bytes(data), content) if is_mended else bytes(data)


def mended(changed: bytes, intact: bytes) -> bytes:
    """The changed file, with checksums that fit what was changed in the intact one."""
    data = bytearray(changed)
    for start, end in _map(intact).checked:
        if changed[start:end] != intact[start:end]:
            data[end - 4 : end] = lookup3(changed[start : end - 4]).to_bytes(4, "little")
    return bytes(data)


def _place(random: Random, found: _Map, size: int) -> int:
    """A little after the beginning of a structure, around an address, or anywhere."""
    kind = random.random()
    if kind < 0.55:
        return random.choice(found.structures) + int(random.expovariate(1 / 40))
    if kind < 0.8 and found.addresses:
        return max(0, random.choice(found.addresses) + random.randrange(-24, 24))
    return random.randrange(size)


def _lead_elsewhere(random: Random, data: bytearray, found: _Map) -> None:
    """Makes an address lead to another structure, so that there are circles and mixed kinds."""
    place = random.choice(found.addresses)
    if place + _ADDRESS.size <= len(data):
        _ADDRESS.pack_into(data, place, random.choice(found.structures))


@lru_cache(maxsize=64)
def _map(content: bytes) -> _Map:
    signatures = [found.start() for found in _SIGNATURES.finditer(content)]
    # Headers of the first version have no signature, but something holds their addresses.
    pointing = {}
    for place in range(0, len(content) - 7):
        (address,) = _ADDRESS.unpack_from(content, place)
        if 48 <= address < len(content) - 8 and (
            address in signatures or content[address : address + 2] == b"\x01\0"
        ):
            pointing[place] = address
    structures = sorted({*signatures, *pointing.values()}) or [0]
    checked = [
        (start, end) for start in signatures if (end := _end(content, start, signatures)) > start
    ]
    return _Map(tuple(structures), tuple(pointing), tuple(checked))


def _end(content: bytes, start: int, signatures: list[int]) -> int:
    """Where a block with a checksum ends, or 0: it has the length with which the checksum fits."""
    if not content.startswith(_CHECKED, start):
        return 0
    if content.startswith(b"OHDR", start):
        flags = content[start + 5]
        head = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        size = int.from_bytes(content[start + head : start + head + width], "little")
        lengths = [head + width + size + 4]
    else:
        following = [place - start for place in signatures if place > start]
        limit = min([_LONGEST, len(content) - start, *following[1:2]])
        lengths = [*following[:1], *range(16, limit + 1)]
    for length in lengths:
        end = start + length
        stored = int.from_bytes(content[end - 4 : end], "little")
        if stored and lookup3(content[start : end - 4]) == stored:
            return end
    return 0
