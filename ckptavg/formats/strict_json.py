"""JSON from files that may be hostile: one object, no key twice, only text that can be written."""

import json
import math
from pathlib import Path
from typing import NoReturn

from ckptavg.errors import FormatError


def parse_object(path: Path, what: str, data: bytes) -> dict[str, object]:
    """The JSON object that `data` is.

    Args:
        path: the file that it comes from, for messages.
        what: which part of the file it is, for messages.
        data: as it is stored, whose size the caller has limited.

    Raises:
        FormatError: it is not JSON, not an object, too deep, has a key twice or a number out of
            bounds, or holds half a surrogate pair, which no file name or output could hold.
    """
    try:
        text = data.decode("utf-8")
        found = json.loads(
            text, object_pairs_hook=_without_twins, parse_constant=_refuse, parse_float=_finite
        )
        if "\\u" in text:
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
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twin[:80]!r} is there twice")
    return found


def _finite(number: str) -> float:
    return float(number) if math.isfinite(float(number)) else _refuse(number)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant:.40} is not a number of JSON")
