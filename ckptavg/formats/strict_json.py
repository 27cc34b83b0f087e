"""Parses JSON of files that may be hostile: one object, no key twice, no invalid Unicode."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import NoReturn

from ckptavg.errors import FormatError


def parse_object(path: Path, what: str, data: bytes) -> dict[str, object]:
    """Parses a JSON object.

    Args:
        path: the file, for messages.
        what: the part of the file, for messages.
        data: the stored bytes, whose number the caller has limited.

    Raises:
        FormatError: the bytes are not a JSON object, or it is nested too deeply, has a key twice,
            or holds an infinite number or an unpaired surrogate.
    """
    try:
        text = data.decode("utf-8")
        found = json.loads(
            text, object_pairs_hook=_without_twins, parse_constant=_refuse, parse_float=_finite
        )
        if "\\u" in text:  # may be an unpaired surrogate, which no file name or output could hold
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise FormatError(f"refusing {path}: its {what} is nested too deeply") from error
    except ValueError as error:
        raise FormatError(f"{path} is not intact: its {what} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} is not intact: its {what} is not a JSON object")
    return found


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
