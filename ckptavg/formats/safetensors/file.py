"""One `.safetensors` file: its header, read with distrust, and its layout, to be filled."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from ckptavg.errors import FormatError
from ckptavg.formats.strict_json import parse_object
from ckptavg.formats.tensors import Extent, TensorInfo
from ckptavg.storage.open_file import OpenFile

SUFFIX = ".safetensors"
TEXTS = "__metadata__"
"""The key of a header that names no tensor, but texts about the file."""

HEADER_LIMIT = 100_000_000
"""Bytes that the format allows a header."""

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
"""The format's names of types, by rising alignment. F4, F6 and F8_E8M0 are missing, the values and
scales of quantized blocks, which have no mean of their own, and C64, which is no weight."""
CODES = {dtype: code for code, dtype in _DTYPES.items()}
"""The format's name of each type that it and we know."""
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}

_PREFIX = 8
_ALIGNMENT = 8
_DIMENSIONS_LIMIT = 32
_ELEMENTS_LIMIT = 2**63
"""Beyond these no array can be made of a tensor, not even of an empty one."""


def read_header(opened: OpenFile, size: int, file: int) -> tuple[list[TensorInfo], dict[str, str]]:
    """The tensors of one file and its texts.

    Args:
        opened: the file.
        size: its size in bytes.
        file: its number among those of its checkpoint.

    Returns:
        The tensors in the order in which they lie in the file, and the texts by key.

    Raises:
        FormatError: the header is damaged, or the tensors do not fill the file one after another,
            which is the format's rule: no gap, no overlap, nothing behind the last one.
    """
    path = opened.path
    prefix = opened.read(0, _PREFIX)
    length = int.from_bytes(prefix, "little")
    base = _PREFIX + length
    if len(prefix) < _PREFIX or base > size:
        raise FormatError(
            f"{path} is not an intact {SUFFIX} file: a header of {length:,} bytes does not fit "
            f"into {size:,}"
        )
    if length > HEADER_LIMIT:
        raise FormatError(
            f"refusing {path}: its header has {length:,} bytes, more than the {HEADER_LIMIT:,} "
            "that the format allows"
        )
    header = parse_object(path, "header", opened.read(_PREFIX, length))
    texts = header.pop(TEXTS, {})
    if not is_texts(texts):
        raise FormatError(f"refusing {path}: its {TEXTS} is not an object of texts")
    found = (_tensor(path, name, entry, base, file) for name, entry in header.items())
    tensors = sorted(found, key=lambda tensor: (tensor.extent.offset, tensor.extent.nbytes))
    end = base
    for tensor in tensors:
        if tensor.extent.offset != end:
            what = "overlaps another tensor" if tensor.extent.offset < end else "follows a gap"
            raise FormatError(f"refusing {path}: {tensor.name!r:.80} {what}")
        end += tensor.extent.nbytes
    if end != size:
        raise FormatError(
            f"{path} is not an intact {SUFFIX} file: its tensors end at byte {end:,} of {size:,}"
        )
    return tensors, texts


def _tensor(path: Path, name: str, entry: object, base: int, file: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal(path, name, "is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise refusal(path, name, f"has the type {code!r:.40}; types with a mean are {known}")
    if not _is_naturals(shape) or len(shape) > _DIMENSIONS_LIMIT:
        raise refusal(path, name, f"has the shape {shape!r:.80}, which no array has")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refusal(path, name, f"has the offsets {offsets!r:.80}, which are no range")
    if math.prod(n for n in shape if n) >= _ELEMENTS_LIMIT:
        raise refusal(path, name, f"has the shape {shape!r:.80}, more than any memory holds")
    begin, end = offsets
    tensor = TensorInfo(name, tuple(shape), _DTYPES[code], Extent(base + begin, end - begin, file))
    if tensor.nbytes != tensor.extent.nbytes:
        raise refusal(
            path,
            name,
            f"has the offsets {offsets!r:.80} where its shape takes {tensor.nbytes:,} bytes",
        )
    return tensor


def lay_out(
    path: Path, number: int, tensors: Iterable[TensorInfo], texts: Mapping[str, str]
) -> dict[str, Extent]:
    """Makes a file with its tensors unwritten: a header, and a hole.

    Tensors are ordered as the format's own library does, by falling alignment and then by name.

    Args:
        path: the file to make; it must not exist.
        number: its number among those of its checkpoint.
        tensors: what it is to hold, of types in `CODES`.
        texts: what it is to say about itself.

    Returns:
        Where each tensor is to lie.

    Raises:
        FormatError: the names of all tensors together are too long.
    """
    header: dict[str, object] = {TEXTS: texts} if texts else {}
    ordered = sorted(tensors, key=lambda tensor: (-_RANKS[tensor.dtype], tensor.name))
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    if len(encoded) > HEADER_LIMIT:
        raise FormatError(f"cannot write {path}: its header would have {len(encoded):,} bytes")
    base = _PREFIX + len(encoded)
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(_PREFIX, "little") + encoded)
        file.truncate(base + end)
    return {
        tensor.name: Extent(base + header[tensor.name]["data_offsets"][0], tensor.nbytes, number)
        for tensor in ordered
    }


def is_texts(found: object) -> bool:
    """Whether this is a dictionary of texts."""
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def _is_naturals(found: object) -> bool:
    return isinstance(found, list) and all(type(n) is int and n >= 0 for n in found)


def refusal(path: Path, name: str, why: str) -> FormatError:
    """The error for an entry of a file; its name, which may be of any length, is cut."""
    return FormatError(f"refusing {path}: {name!r:.80} {why}")
