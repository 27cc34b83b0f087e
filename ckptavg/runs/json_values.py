"""Values from JSON that others wrote: each is what it must be, or an error that says so."""

import math
import re
from collections.abc import Callable
from typing import Any

DIGEST_SIZE = 16
"""Bytes of a digest, which is written as twice as many hexadecimal digits."""

_DIGEST = re.compile(f"[0-9a-fA-F]{{{2 * DIGEST_SIZE}}}")


def number(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity: they are written as strings that float() reads."""
    return value if value is None or math.isfinite(value) else str(value)


def digest_text(value: Any) -> str:
    """A digest in hexadecimal digits."""
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise ValueError(f"expected a digest of 32 hexadecimal digits, got {value!r:.40}")
    return value


def whole(value: Any) -> int:
    """A whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"expected a whole number, got {value!r:.40}")
    return value


def text(value: Any) -> str:
    """A text without null bytes."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"expected a text, got {value!r:.40}")
    if not value.isascii():
        value.encode()  # refuses half a surrogate pair
    return value


def optional(read: Callable[[Any], Any], value: Any) -> Any:
    """What `read` makes of a value; None of None."""
    return None if value is None else read(value)
