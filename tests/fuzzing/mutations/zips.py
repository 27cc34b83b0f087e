"""Changes to zip archives: to members, their checksums, both of their headers, and the directory.

Archives are taken apart and put together by hand, because Python's zipfile would repair them.
"""

import io
import json
import zipfile
import zlib
from dataclasses import dataclass, replace
from random import Random
from struct import Struct

from tests.fuzzing.mutations import hdf5, json_trees
from tests.fuzzing.mutations.plain import NUMBERS, change_bytes

_LOCAL = Struct("<4sHHHHHIIIHH")
_CENTRAL = Struct("<4sHHHHHHIIIHHHHHII")
_END = Struct("<4sHHHHIIH")
_STORED, _DEFLATED = 0, 8


@dataclass(frozen=True)
class _Member:
    name: bytes
    data: bytes
    method: int = _STORED
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    packed_size: int | None = None
    local_name: bytes | None = None
    extra: bytes = b""
    offset: int | None = None


def change(random: Random, content: bytes) -> bytes:
    """The archive with one or two changes, all else as it should be."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [_Member(n.encode(), archive.read(n)) for n in archive.namelist()]
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(members))
        kind = random.random()
        if kind < 0.35:
            members[place] = _with_other_content(random, members[place])
        elif kind < 0.8:
            members[place] = _with_other_header(random, members[place])
        elif kind < 0.9:
            members.insert(random.randrange(len(members)), random.choice(members))
        elif len(members) > 1:
            del members[place]
    whole = _joined(random, members)
    return change_bytes(random, whole) if random.random() < 0.05 else whole


def _with_other_content(random: Random, member: _Member) -> _Member:
    """Other bytes, with the checksum of these or of the former ones."""
    if member.name.endswith(b".h5"):
        data = hdf5.change(random, member.data)
    elif member.name.endswith(b".json"):
        data = json_trees.change(random, member.data)
    else:
        data = change_bytes(random, member.data)
    former = zlib.crc32(member.data)
    return replace(member, data=data, crc=former if random.random() < 0.3 else None)


def _with_other_header(random: Random, member: _Member) -> _Member:
    number = random.choice((*NUMBERS, len(member.data) - 1, len(member.data) + 1)) % 2**32
    name = random.choice((b"", b"../x", b"config.json", b"model.weights.h5", b"\xff\xfe", b"a/"))
    return random.choice(
        (
            replace(member, crc=number),
            replace(member, size=number),
            replace(member, packed_size=number),
            replace(member, size=number, packed_size=number),
            replace(member, method=random.choice((_DEFLATED, 12, 14, 99))),
            replace(member, method=_DEFLATED, data=b"[]," * 200_000),
            replace(member, flags=random.choice((1, 8, 64, 2048))),
            replace(member, name=name),
            replace(member, local_name=name),
            replace(member, extra=random.randbytes(random.randint(1, 24))),
            replace(member, extra=b"\1\0\x10\0" + number.to_bytes(8, "little") * 2),
            replace(member, offset=number),
            replace(member, data=json.dumps({"x": [[]] * 9}).encode()),
        )
    )


def _joined(random: Random, members: list[_Member]) -> bytes:
    out, directory = bytearray(), bytearray()
    for member in members:
        packed = member.data
        if member.method == _DEFLATED:
            packer = zlib.compressobj(wbits=-15)
            packed = packer.compress(member.data) + packer.flush()
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        size = len(member.data) if member.size is None else member.size
        packed_size = len(packed) if member.packed_size is None else member.packed_size
        local_name = member.name if member.local_name is None else member.local_name
        facts = (member.method, 0, 33, crc, packed_size, size)
        offset = len(out) if member.offset is None else member.offset
        lengths = len(member.name), len(member.extra)
        directory += _CENTRAL.pack(
            b"PK\1\2", 20, 20, member.flags, *facts, *lengths, 0, 0, 0, 0, offset
        )
        directory += member.name + member.extra
        local = len(local_name), len(member.extra)
        out += _LOCAL.pack(b"PK\3\4", 20, member.flags, *facts, *local)
        out += local_name + member.extra + packed
    count, start, size = len(members), len(out), len(directory)
    if random.random() < 0.1:
        number = random.choice(NUMBERS)
        others = [(number % 2**16, start, size), (count, number % 2**32, size)]
        count, start, size = random.choice([*others, (count, start, number % 2**32)])
    return bytes(out + directory) + _END.pack(b"PK\5\6", 0, 0, count, count, size, start, 0)
