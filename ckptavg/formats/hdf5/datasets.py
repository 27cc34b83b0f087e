"""Shape, type and storage of a tensor, from the messages of its object header.

HDF5 File Format Specification 3.0, IV.A.2: b (dataspace), d (datatype), i (data layout), l (filter
pipeline), and IV.A.2 on shared messages.
"""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from ckptavg.formats.hdf5.object_headers import SHARED, Message, read_messages
from ckptavg.formats.hdf5.window import ADDRESS, UNDEFINED, DamagedError, Window, unpack

_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS = _KINDS = (0x01, 0x03, 0x07, 0x08, 0x0B)
_NULL = 2
"""Kind of a dataspace without elements."""
_INTEGER, _FLOAT, _STRING, _OPAQUE, _ENUM = 0, 1, 3, 5, 8
_CLASSES = (
    "integer",
    "float",
    "time",
    "string",
    "bit field",
    "opaque type",
    "compound type",
    "reference",
    "enumeration",
    "variable-length type",
    "array",
)
_FLOATS = {
    (2, 0x20, 15, 0, 16, 10, 5, 0, 10, 15): "float16",
    (4, 0x20, 31, 0, 32, 23, 8, 0, 23, 127): "float32",
    (8, 0x20, 63, 0, 64, 52, 11, 0, 52, 1023): "float64",
}
"""IEEE 754: size, an implied leading bit, place of the sign, offset and bits of the number, place
and bits of exponent and mantissa, bias of the exponent."""
_BOOLEANS = (b"FALSE\0\0\0TRUE\0\0\0\0\0\1", b"FALSE\0TRUE\0\0\1")
"""Members of the enumeration that h5py writes for booleans: names, padded or not, and values."""
_STRING_LIMIT = 64 * 1024

Filter = tuple[int, str, tuple[int, ...]]
"""Code, name, and parameters."""


class Layout(Enum):
    """Where the bytes of a tensor are."""

    COMPACT = 0
    CONTIGUOUS = 1
    CHUNKED = 2
    VIRTUAL = 3


class Index(Enum):
    """How the chunks of a tensor are found."""

    SINGLE = 1
    IMPLICIT = 2
    FIXED_ARRAY = 3
    EXTENSIBLE_ARRAY = 4
    B_TREE_2 = 5
    B_TREE_1 = 6
    """The only one before HDF5 1.10, and h5py's default; it has no number in a file."""


class RefusedError(ValueError):
    """A tensor is stored as no checkpoint of Keras is; the message follows the tensor's name."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What an HDF5 file says of a tensor.

    Attributes:
        shape: in elements.
        dtype: numpy's name of the type; `V2` for two opaque bytes.
        itemsize: bytes of an element.
        is_swapped: whether its numbers are big-endian.
        layout: where its bytes are.
        address: of the bytes, or of the index of its chunks.
        stored: the bytes themselves, of a compact tensor; of a single chunk that is filtered, its
            size and mask of filters.
        nbytes: how many bytes a compact or contiguous tensor takes.
        index: of its chunks.
        chunk: shape of a chunk.
        filters: in the order in which they were applied.
        has_plain_edges: whether they were not applied to chunks that reach beyond the tensor.
    """

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    is_swapped: bool
    layout: Layout
    address: int = UNDEFINED
    stored: bytes = b""
    nbytes: int = 0
    index: Index = Index.B_TREE_1
    chunk: tuple[int, ...] = ()
    filters: tuple[Filter, ...] = ()
    has_plain_edges: bool = False


def dataset_of(window: Window, messages: Iterable[Message]) -> Dataset | None:
    """The tensor that messages describe; None if they are of something else.

    Raises:
        DamagedError: a message is damaged.
        RefusedError: the tensor has no shape, an unknown type, or lies in another file.
    """
    found: dict[int, bytes] = {}
    for kind, flags, data in messages:
        if kind in _KINDS:
            if kind in found:
                raise DamagedError("an object header has a message twice")
            found[kind] = _shared(window, kind, data) if flags & SHARED else data
    if not {_DATASPACE, _DATATYPE, _LAYOUT} <= found.keys():
        return None
    if _EXTERNAL in found:
        raise RefusedError("is stored in another file")
    shape = _shape(found[_DATASPACE])
    dtype, itemsize, is_swapped = _dtype(found[_DATATYPE])
    filters = _filters(found[_FILTERS]) if _FILTERS in found else ()
    return _with_layout(found[_LAYOUT], shape, dtype, itemsize, is_swapped, filters)


def _shared(window: Window, kind: int, data: bytes) -> bytes:
    """A message that lies in the header of another object, as that of a named type does."""
    version, where = unpack(struct.Struct("<BB"), data)
    if version not in (1, 2, 3) or (version == 3 and where != 2):
        raise DamagedError("a shared message is of an unknown kind")
    (address,) = unpack(ADDRESS, data, 8 if version == 1 else 2)
    # Many tensors may share it: it is read as if nothing had been read before.
    for message in read_messages(Window(window.file, window.base, window.size), address):
        if message.kind == kind and not message.flags & SHARED:
            return message.data
    raise DamagedError("a shared message is missing")


def _shape(data: bytes) -> tuple[int, ...]:
    version, rank, flags, kind = unpack(struct.Struct("<4B"), data)
    if version not in (1, 2) or rank > 32:
        raise DamagedError("a shape is damaged")
    if version == 2 and kind == _NULL:
        raise RefusedError("has no shape")
    sizes = struct.Struct(f"<{rank}Q")
    start = 4 if version == 2 else 8
    shape = unpack(sizes, data, start)
    if flags & 1:  # the sizes to which it may grow follow
        largest = unpack(sizes, data, start + sizes.size)
        if any(size > most for size, most in zip(shape, largest, strict=True)):
            raise DamagedError("a shape is damaged")
    return shape


def _dtype(data: bytes) -> tuple[str, int, bool]:
    """Name and size of a type, and whether it is big-endian."""
    first, bits, more_bits, _, size = unpack(struct.Struct("<4BI"), data)
    kind, is_swapped = first & 0x0F, bool(bits & 1)
    if first >> 4 not in range(1, 6) or not 0 < kind + 1 <= len(_CLASSES) or size == 0:
        raise DamagedError("a type is damaged")
    if kind == _INTEGER and size in (1, 2, 4, 8):
        sign = "" if bits & 8 else "u"
        if bits & ~9 == 0 and unpack(struct.Struct("<HH"), data, 8) == (0, 8 * size):
            return f"{sign}int{8 * size}", size, is_swapped and size > 1
        raise RefusedError(f"has a type of its own that only resembles {sign}int{8 * size}")
    if kind == _FLOAT:
        fields = unpack(struct.Struct("<HHBBBBI"), data, 8)
        name = _FLOATS.get((size, bits & 0x70, more_bits, *fields))
        if name is not None and bits & 0x0E == 0:
            return name, size, is_swapped
        if size in (2, 4, 8):
            raise RefusedError(f"has a type of its own that only resembles float{8 * size}")
    if kind == _STRING and size <= _STRING_LIMIT:
        return f"S{size}", size, False
    if kind == _OPAQUE and size <= 8:
        return f"V{size}", size, False
    is_pair = kind == _ENUM and size == 1 and (bits, more_bits) == (2, 0)
    if is_pair and data[20:].startswith(_BOOLEANS) and _dtype(data[8:20])[0] == "int8":
        return "bool", 1, False
    raise RefusedError(
        f"is stored as {_CLASSES[kind]} of {size} bytes, which is not a number of up to 8 bytes"
    )


def _filters(data: bytes) -> tuple[Filter, ...]:
    version, count = unpack(struct.Struct("<BB"), data)
    if version not in (1, 2) or count > 32:
        raise DamagedError("a list of filters is damaged")
    position = 8 if version == 1 else 2
    found = []
    for _ in range(count):
        (code,) = unpack(struct.Struct("<H"), data, position)
        position += 2
        length = 0
        if version == 1 or code >= 256:  # others have no name in version 2
            (length,) = unpack(struct.Struct("<H"), data, position)
            position += 2
        _, parameters = unpack(struct.Struct("<HH"), data, position)
        name = data[position + 4 : position + 4 + length].split(b"\0", 1)[0]
        position += 4 + (-(-length // 8) * 8 if version == 1 else length)
        values = unpack(struct.Struct(f"<{parameters}I"), data, position)
        position += 4 * (parameters + (parameters % 2 if version == 1 else 0))
        found.append((code, name.decode("utf-8", "replace") or f"filter {code}", values))
    return tuple(found)


def _with_layout(
    data: bytes,
    shape: tuple[int, ...],
    dtype: str,
    itemsize: int,
    is_swapped: bool,
    filters: tuple[Filter, ...],
) -> Dataset:
    version, kind = unpack(struct.Struct("<BB"), data)
    facts = (shape, dtype, itemsize, is_swapped)
    if version in (1, 2):
        return _old_layout(data, facts, filters)
    if version not in (3, 4, 5) or kind > len(Layout) - 1:
        raise DamagedError("the storage of a tensor is damaged")
    layout = Layout(kind)
    if layout is Layout.VIRTUAL:
        raise RefusedError("is stored in another file")
    if layout is Layout.COMPACT:
        (nbytes,) = unpack(struct.Struct("<H"), data, 2)
        return Dataset(*facts, layout, stored=data[4 : 4 + nbytes], nbytes=nbytes)
    if layout is Layout.CONTIGUOUS:
        address, nbytes = unpack(struct.Struct("<QQ"), data, 2)
        return Dataset(*facts, layout, address, nbytes=nbytes)
    if version == 3:
        rank, address = unpack(struct.Struct("<BQ"), data, 2)
        chunk = _chunk(unpack(struct.Struct(f"<{rank}I"), data, 11), shape, itemsize)
        return Dataset(*facts, layout, address, chunk=chunk, filters=filters)
    return _new_chunks(data, facts, filters)


def _old_layout(
    data: bytes, facts: tuple[tuple[int, ...], str, int, bool], filters: tuple[Filter, ...]
) -> Dataset:
    """Versions 1 and 2, before HDF5 1.6.3."""
    rank, kind = unpack(struct.Struct("<BB"), data, 1)
    if kind > Layout.CHUNKED.value:
        raise DamagedError("the storage of a tensor is damaged")
    layout, position, address = Layout(kind), 8, UNDEFINED
    if layout is not Layout.COMPACT:
        (address,) = unpack(ADDRESS, data, position)
        position += 8
    sizes = unpack(struct.Struct(f"<{rank}I"), data, position)
    position += 4 * rank
    if layout is Layout.COMPACT:
        (nbytes,) = unpack(struct.Struct("<I"), data, position)
        stored = data[position + 4 : position + 4 + nbytes]
        return Dataset(*facts, layout, stored=stored, nbytes=nbytes)
    if layout is Layout.CONTIGUOUS:  # its size is that of its shape
        return Dataset(*facts, layout, address, nbytes=math.prod(facts[0]) * facts[2])
    chunk = _chunk(sizes, facts[0], facts[2])
    return Dataset(*facts, layout, address, chunk=chunk, filters=filters)


def _new_chunks(
    data: bytes, facts: tuple[tuple[int, ...], str, int, bool], filters: tuple[Filter, ...]
) -> Dataset:
    """Chunks as HDF5 1.10 and later store them when told to, by h5py's `libver="latest"`."""
    flags, rank, width = unpack(struct.Struct("<BBB"), data, 2)
    position = 5 + rank * width
    if len(data) < position + 1 or not 1 <= width <= 8:
        raise DamagedError("the storage of a tensor is damaged")
    sizes = [int.from_bytes(data[n : n + width], "little") for n in range(5, position, width)]
    index = data[position]
    position += 1
    if not 1 <= index <= Index.B_TREE_2.value:
        raise DamagedError("the storage of a tensor is damaged")
    found, stored = Index(index), b""
    if found is Index.SINGLE and flags & 2:
        stored = data[position : position + 12]
        position += 12
    elif found is Index.FIXED_ARRAY:
        position += 1
    elif found in (Index.EXTENSIBLE_ARRAY, Index.B_TREE_2):
        raise RefusedError(
            "can grow and has chunks of a newer kind than is read here: save it without maxshape, "
            "or without libver='latest'"
        )
    (address,) = unpack(ADDRESS, data, position)
    chunk = _chunk(sizes, facts[0], facts[2])
    return Dataset(
        *facts,
        Layout.CHUNKED,
        address,
        stored=stored,
        index=found,
        chunk=chunk,
        filters=filters,
        has_plain_edges=bool(flags & 1),
    )


def _chunk(sizes: Iterable[int], shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The shape of chunks, whose last number is the size of an element."""
    *chunk, size = sizes if sizes else (0,)
    if len(chunk) != len(shape) or size != itemsize or 0 in chunk:
        raise DamagedError("the chunks of a tensor are damaged")
    return tuple(chunk)
