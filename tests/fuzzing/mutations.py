"""Changes to files: of any bytes, of the places where formats keep numbers, of what JSON says."""

import copy
import json
import re
from collections.abc import Callable
from random import Random

from ckptavg.formats.tensorflow.table import read_table, write_table

_SIGNATURES = re.compile(rb"\x89HDF|TREE|SNOD|HEAP|GCOL|OHDR|PK\x01\x02|PK\x03\x04|PK\x05\x06")
_REACH = 96
"""Bytes after a signature that likely hold addresses, lengths and counts."""

_NUMBERS = (0, 1, 2, 7, 8, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_VALUES = (
    *(None, True, -1, 0, 1, 2, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308),
    *(float("nan"), float("inf"), "", "..", "/", "a\0b", "\ud800", "x" * 5000, "NaN", "ü"),
    *("../../etc/passwd", "/dev/zero", "~", [], {}, [[[]]], {"": {}}, [1e9] * 3, [None]),
)


def mutate(random: Random, content: bytes, name: str) -> bytes:
    """The content of a file, which is called so, changed in one to three places."""
    for end, change in _STRUCTURED.items():
        if name.endswith(end) and random.random() < 0.6:
            return change(random, content)
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(_EDITS)(random, data)
    return bytes(data)


def _place(random: Random, data: bytearray) -> int:
    """Anywhere, or a little after the signature of some structure."""
    places = [found.start() for found in _SIGNATURES.finditer(data)]
    if places and random.random() < 0.7:
        return min(random.choice(places) + random.randrange(_REACH), len(data) - 1)
    return random.randrange(len(data)) if data else 0


def _flip(random: Random, data: bytearray) -> None:
    if data:
        data[_place(random, data)] ^= 1 << random.randrange(8)


def _overwrite(random: Random, data: bytearray) -> None:
    place, size = _place(random, data), random.choice((1, 2, 4, 8))
    number = random.choice((*_NUMBERS, random.getrandbits(64))) % 256**size
    field = number.to_bytes(size, random.choice(("little", "big")))
    data[place : place + size] = field[: len(data) - place]


def _truncate(random: Random, data: bytearray) -> None:
    del data[_place(random, data) :]


def _remove(random: Random, data: bytearray) -> None:
    place = _place(random, data)
    del data[place : place + random.randint(1, 64)]


def _insert(random: Random, data: bytearray) -> None:
    place = _place(random, data)
    data[place:place] = random.randbytes(random.randint(1, 16))


def _repeat(random: Random, data: bytearray) -> None:
    """Copies a block to another place, between or over what is there."""
    place = _place(random, data)
    block = data[place : place + random.randint(1, 512)]
    place = _place(random, data)
    over = random.choice((0, len(block)))
    data[place : place + over] = block[: len(data) - place] if over else block


def _swap(random: Random, data: bytearray) -> None:
    size = random.choice((1, 2, 4, 8, 40))
    one, two = sorted(_place(random, data) // size * size for _ in range(2))
    if one + size <= two and two + size <= len(data):
        left, right = data[one : one + size], data[two : two + size]
        data[one : one + size], data[two : two + size] = right, left


_EDITS = (_flip, _flip, _flip, _overwrite, _overwrite, _overwrite, _repeat, _swap)
_EDITS += (_truncate, _remove, _insert)


def _change_json(random: Random, content: bytes) -> bytes:
    whole = [json.loads(content)]
    for _ in range(random.choice((1, 1, 2))):
        container, key = random.choice(_nodes(whole))
        action = random.choice(("replace", "replace", "remove", "rename", "exchange"))
        if action == "remove" and container is not whole:
            del container[key]
        elif action == "rename" and isinstance(container, dict):
            container[random.choice(("", "x", "layers", key + "é"))] = container.pop(key)
        elif action == "exchange":
            other, place = random.choice(_nodes(whole))
            container[key] = copy.deepcopy(other[place])
        else:
            container[key] = random.choice((*_VALUES, random.getrandbits(40), random.random()))
    return json.dumps(whole)[1:-1].encode()


def _nodes(value: dict | list) -> list[tuple]:
    """Every place of a JSON value: what holds it and its key there."""
    found = []
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(part, dict | list):
            found += _nodes(part)
    return found


def _change_header(random: Random, content: bytes) -> bytes:
    """The header of a safetensors file, its length made to fit."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = _change_json(random, content[8:end])
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _change_table(random: Random, content: bytes) -> bytes:
    """An entry of a TensorFlow index, the checksums of the index made to fit."""
    entries = list(read_table(content))
    number, part = random.randrange(len(entries)), random.choice((0, 1, 1))
    entry = list(map(bytearray, entries[number]))
    random.choice((_flip, _overwrite, _truncate, _insert))(random, entry[part])
    entries[number] = tuple(map(bytes, entry))
    return write_table(entries)


def _change_lines(random: Random, content: bytes) -> bytes:
    """One line of several, of which each but the first is JSON."""
    lines = content.splitlines()
    place = random.randrange(1, len(lines))
    lines[place] = _change_json(random, lines[place])
    return b"\n".join(lines) + b"\n"


_STRUCTURED: dict[str, Callable[[Random, bytes], bytes]] = {
    ".json": _change_json,
    ".safetensors": _change_header,
    ".index": _change_table,
    ".journal": _change_lines,
}
