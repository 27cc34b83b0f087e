"""Parses JSON of files that may be hostile: bounded, no key twice, no invalid Unicode."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from ckptavg.errors import FormatError

_VALUES_LIMIT = 4_000_000
"""Values in one file: the header of 400,000 tensors has as many."""
_VALUE_MEMORY = 96
"""Bytes of the smallest object of Python, an empty list, with its place in another."""


def parse(data: bytes, **hooks: Any) -> Any:
    """Parses JSON that may be hostile: a few bytes of it can stand for a hundred in memory.

    Args:
        data: the stored bytes, whose number the caller has limited.
        **hooks: of `json.loads`.

    Raises:
        ValueError: the bytes are not JSON, or hold too many values.
        RecursionError: the values are nested too deeply.
    """
    count = _count_values(data)
    if count > _VALUES_LIMIT:
        raise ValueError(f"it holds {count:,} values, but at most {_VALUES_LIMIT:,} are expected")
    return json.loads(data.decode("utf-8"), **hooks)


def memory_to_parse(data: bytes) -> int:
    """Bytes of memory that parsing JSON may take, with the text itself."""
    # A single character beyond the first 65,536 makes Python store every one in four bytes.
    return 5 * len(data) + _VALUE_MEMORY * _count_values(data)


def parse_object(path: Path, what: str, data: bytes) -> dict[str, object]:
    """Parses a JSON object.

    Args:
        path: the file, for messages.
        what: the part of the file, for messages.
        data: the stored bytes, whose number the caller has limited.

    Raises:
        FormatError: the bytes are not a JSON object, or it is nested too deeply, has a key twice,
            or holds too many values, an infinite number or an unpaired surrogate.
    """
    try:
        found = parse(
            data, object_pairs_hook=_without_twins, parse_constant=_refuse, parse_float=_finite
        )
        if b"\\u" in data:  # may be an unpaired surrogate, which no file name or output could hold
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise FormatError(f"refusing {path}: its {what} is nested too deeply") from error
    except ValueError as error:
        raise FormatError(f"{path} is not intact: its {what} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} is not intact: its {what} is not a JSON object")
    return found


def _count_values(data: bytes) -> int:
    """At least as many as there are, since each follows one of these; strings may hold them too."""
    return sum(map(data.count, (b",", b"[", b"{")))


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key[:80]!r} occurs twice")
    return found


def _finite(number: str) -> float:
    return float(number) if math.isfinite(float(number)) else _refuse(number)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant:.40} is not a number in JSON")
