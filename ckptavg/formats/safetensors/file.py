"""Reads and makes the header of one `.safetensors` file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard

from ckptavg.errors import FormatError
from ckptavg.formats.strict_json import parse_object
from ckptavg.formats.tensors import Extent, TensorInfo, is_shape
from ckptavg.storage.open_file import OpenFile

SUFFIX = ".safetensors"
METADATA = "__metadata__"
"""The key in a header that stands for strings about the file instead of a tensor."""

HEADER_LIMIT = 100_000_000
"""The format's own limit, in bytes."""

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
"""The format's names of dtypes, by rising alignment. F4, F6 and F8_E8M0, the values and scales of
quantized blocks, are missing because they have no mean of their own; no weights are C64."""

CODES = {dtype: code for code, dtype in _DTYPES.items()}
"""The format's name of each dtype that can be written."""

_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}

_PREFIX = 8
_ALIGNMENT = 8


def read_header(
    opened: OpenFile, size: int, number: int
) -> tuple[list[TensorInfo], dict[str, str]]:
    """The tensors of one file, and the strings about it.

    Args:
        opened: the file.
        size: its size in bytes.
        number: of the file in its checkpoint.

    Returns:
        The tensors in the order of their bytes, and the strings by their keys.

    Raises:
        FormatError: the header is damaged, or the tensors do not fill the file without gaps and
            overlaps, as the format demands.
    """
    path = opened.path
    prefix = opened.read(0, _PREFIX)
    length = int.from_bytes(prefix, "little")
    base = _PREFIX + length
    if len(prefix) < _PREFIX or base > size:
        raise FormatError(
            f"{path} is not an intact {SUFFIX} file: a header of {length:,} bytes does not fit "
            f"into a file of {size:,}"
        )
    if length > HEADER_LIMIT:
        raise FormatError(
            f"refusing {path}: its header has {length:,} bytes, more than the {HEADER_LIMIT:,} "
            "that the format allows"
        )
    header = parse_object(path, "header", opened.read(_PREFIX, length))
    strings = header.pop(METADATA, {})
    if not is_strings(strings):
        raise FormatError(f"refusing {path}: its {METADATA} is not an object of strings")
    placed = [_tensor(path, name, entry, base, number) for name, entry in header.items()]
    # Empty tensors come before others at the same offset.
    placed.sort(key=lambda found: (found[0].offset, found[0].nbytes))
    end = base
    for extent, tensor in placed:
        if extent.offset != end:
            what = "overlaps another tensor" if extent.offset < end else "follows a gap"
            raise refusal(path, tensor.name, what)
        end += extent.nbytes
    if end != size:
        raise FormatError(
            f"{path} is not an intact {SUFFIX} file: its tensors end at byte {end:,} of {size:,}"
        )
    return [tensor for _, tensor in placed], strings


def _tensor(
    path: Path, name: str, entry: object, base: int, number: int
) -> tuple[Extent, TensorInfo]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal(path, name, "is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise refusal(path, name, f"has the type {code!r:.40}; those that can be read are {known}")
    if not _is_naturals(shape):
        raise refusal(path, name, f"has the shape {shape!r:.80}, which no array has")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refusal(path, name, f"has the offsets {offsets!r:.80}, which are not a range")
    begin, end = offsets
    extent = Extent(base + begin, end - begin, number)
    tensor = TensorInfo(name, tuple(shape), _DTYPES[code], extent)
    if not is_shape(tensor.shape, tensor.numpy_dtype.itemsize):
        raise refusal(path, name, f"has the shape {shape!r:.80}, which no array has")
    if tensor.nbytes != extent.nbytes:
        raise refusal(
            path,
            name,
            f"has the offsets {offsets!r:.80}, but its shape takes {tensor.nbytes:,} bytes",
        )
    return extent, tensor


def lay_out(
    path: Path, number: int, tensors: Iterable[TensorInfo], strings: Mapping[str, str]
) -> dict[str, Extent]:
    """Makes a file whose tensors are to be written: a header, and a hole.

    Args:
        path: the file; it must not exist.
        number: of the file in its checkpoint.
        tensors: with dtypes in `CODES`.
        strings: about the file.

    Returns:
        Where the bytes of each tensor belong.

    Raises:
        FormatError: the names of all tensors together are too long.
    """
    header: dict[str, object] = {METADATA: strings} if strings else {}
    # The order of the format's own library, so that equal tensors give equal files.
    ordered = sorted(tensors, key=lambda tensor: (-_RANKS[tensor.dtype], tensor.name))
    begins: dict[str, int] = {}
    end = 0
    for tensor in ordered:
        begins[tensor.name], end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (begins[tensor.name], end),
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
        tensor.name: Extent(base + begins[tensor.name], tensor.nbytes, number) for tensor in ordered
    }


def is_strings(found: object) -> TypeGuard[dict[str, str]]:
    """Whether this is a dictionary of strings."""
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def _is_naturals(found: object) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(n) is int and n >= 0 for n in found)


def refusal(path: Path, name: str, why: str) -> FormatError:
    """The error for an entry of a file, whose name may be of any length."""
    return FormatError(f"refusing {path}: {name!r:.80} {why}")
