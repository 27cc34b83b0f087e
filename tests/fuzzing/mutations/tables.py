"""Changes to TensorFlow's tables: entries, varints and blocks, with checksums that fit again."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from ckptavg.formats.crc32c import crc32c
from ckptavg.formats.tensorflow import strings
from ckptavg.formats.tensorflow.protobuf import BYTES, VARINT, BundleEntry, Refused, fields, varint
from ckptavg.formats.tensorflow.table import mask, read_table, write_table
from tests.formats.tensorflow.test_snappy import packed
from tests.fuzzing.mutations.plain import NUMBERS, SAME_LENGTH, change_bytes, flip, set_byte

_FOOTER = 48
_TRAILER = 5
_SNAPPY = 1
_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"


def change(random: Random, content: bytes) -> bytes:
    """A change to entries of the table, to its blocks, or to the handles that lead to them."""
    kind = random.random()
    if kind < 0.6:
        return _change_entries(random, content)
    if kind < 0.85:
        return _change_block(random, content)
    data = bytearray(content)
    place = len(data) - _FOOTER + random.randrange(12)
    random.choice((flip, set_byte))(random, data, place)
    return bytes(data)


def change_data(
    random: Random, files: Mapping[str, bytes], name: str, index: str
) -> dict[str, bytes]:
    """Other bytes of a tensor, and the checksum of these in the index.

    A changed object graph keeps its length, or the index tells the new one.
    """
    entries = list(read_table(files[index]))
    data = bytearray(files[name])
    _, *tensors = range(len(entries))
    graphs = [number for number in tensors if entries[number][0] == _GRAPH]
    number = random.choice(graphs if graphs and random.random() < 0.6 else tensors)
    key, stored = entries[number]
    entry = BundleEntry.decode(stored)
    end = entry.offset + entry.size
    content = bytes(data[entry.offset : end])
    if key == _GRAPH and end == len(data) and random.random() < 0.7:
        text = _change_message(random, strings.decode(content))
        content = strings.encode(text)
        # TensorFlow's checksum counts the length as four bytes, however it is stored.
        crc = crc32c(len(text).to_bytes(4, "little") + content[-len(text) - 4 :])
    else:
        edited = bytearray(content)
        random.choice(SAME_LENGTH)(random, edited, random.randrange(len(edited) or 1))
        content = bytes(edited)
        crc = crc32c(content)
    data[entry.offset : end] = content
    entries[number] = key, replace(entry, size=len(content), crc=mask(crc)).encode()
    table = write_table(entries)
    if _is_compressed(files[index]):
        table = compressed(table, entries[-1][0])
    return {name: bytes(data), index: table}


def compressed(content: bytes, last: bytes) -> bytes:
    """A small table, whose last key is this, with blocks that Snappy compresses."""
    (start, end), (low, high), *_ = _blocks(content)
    out = bytearray()
    handles = [_append(out, content[start:end]), _append(out, content[low:high])]
    lengths = varint(0) + varint(len(last)) + varint(len(handles[0]))
    restarts = bytes(4) + (1).to_bytes(4, "little")
    handles.append(_append(out, lengths + last + handles[0] + restarts))
    _, *others = handles
    return bytes(out) + b"".join(others).ljust(_FOOTER - 8, b"\0") + content[-8:]


def _append(out: bytearray, block: bytes) -> bytes:
    """Adds a block; returns its handle."""
    stored = packed(block)
    handle = varint(len(out)) + varint(len(stored))
    stored += bytes([_SNAPPY])
    out += stored + mask(crc32c(stored)).to_bytes(4, "little")
    return handle


def _is_compressed(content: bytes) -> bool:
    return any(content[end] == _SNAPPY for _, end in _blocks(content))


def _change_entries(random: Random, content: bytes) -> bytes:
    entries = list(read_table(content))
    place = random.randrange(len(entries))
    key, value = entries[place]
    kind = random.random()
    if kind < 0.6:
        entries[place] = key, _change_message(random, value)
    elif kind < 0.75:
        entries[place] = key, random.choice(entries)[1]
    elif kind < 0.85:
        entries[place] = change_bytes(random, key), value
    elif kind < 0.95:
        del entries[place]
    else:
        entries.insert(place, random.choice(entries))
    if random.random() < 0.8:
        entries.sort()
    table = write_table(entries)
    return compressed(table, entries[-1][0]) if _is_compressed(content) else table


def _change_message(random: Random, message: bytes) -> bytes:
    """A message of a protocol buffer with another field, deep inside or at its top."""
    try:
        parts = list(fields(message))
    except Refused:
        return change_bytes(random, message)
    if not parts:
        return random.choice((b"", b"\x08\x01", b"\x0a\x00"))
    place = random.randrange(len(parts))
    field = parts[place]
    encoded = field.encoded
    if random.random() < 0.15:
        encoded = random.choice((b"", encoded * 2, random.choice(parts).encoded))
    elif field.wire_type == VARINT:
        number = random.choice((*NUMBERS, field.integer + 1, random.randrange(40)))
        encoded = varint(field.number << 3) + varint(number % 2**64)
    elif field.wire_type == BYTES:
        inner = _change_message(random, field.content)
        length = len(inner) + (random.random() < 0.05) * random.choice((1, 2**32))
        encoded = varint(field.number << 3 | BYTES) + varint(length) + inner
    else:
        encoded = change_bytes(random, encoded)
    whole = [part.encoded for part in parts]
    whole[place] = encoded
    return b"".join(whole)


def _change_block(random: Random, content: bytes) -> bytes:
    """Bytes of one block, its checksum made to fit; all of the file but the footer is blocks."""
    data = bytearray(content)
    blocks = [(start, end) for start, end in _blocks(content) if end > start]
    start, end = random.choice(blocks)
    block = data[start : end + 1]
    random.choice(SAME_LENGTH)(random, block, random.randrange(len(block)))
    data[start : end + 1] = block
    data[end + 1 : end + _TRAILER] = mask(crc32c(bytes(block))).to_bytes(4, "little")
    return bytes(data)


def _blocks(content: bytes) -> list[tuple[int, int]]:
    """Beginning and end of each block without its trailer: the checksum says where one ends."""
    found, start, limit = [], 0, len(content) - _FOOTER
    while start < limit:
        for end in range(start + 1, limit - _TRAILER + 1):
            stored = int.from_bytes(content[end + 1 : end + _TRAILER], "little")
            if content[end] < 2 and mask(crc32c(content[start : end + 1])) == stored:
                found.append((start, end))
                start = end + _TRAILER
                break
        else:
            break
    return found or [(0, limit - _TRAILER)]
