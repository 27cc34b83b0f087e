"""JSON values that others wrote, decoded into types: each is of its type, or an error says so."""

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from ckptavg.runs.digest import DIGEST_SIZE

Scalar = str | int | float | bool | None
T = TypeVar("T")

DAMAGE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What reading damaged JSON may raise: here, or where a key is missing or a list is a number."""

_DIGEST = re.compile(f"[0-9a-fA-F]{{{2 * DIGEST_SIZE}}}")


def number(value: float | None) -> float | str | None:
    """A number for JSON, which has no NaN and no infinity: these become texts that float reads."""
    return value if value is None or math.isfinite(value) else str(value)


def digest_text(value: Any) -> str:
    """A digest in hexadecimal digits."""
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise ValueError(f"expected a digest of 32 hexadecimal digits, got {value!r:.40}")
    return value


def whole(value: Any) -> int:
    """An integer >= 0."""
    # bool is a subclass of int, and no array or file has a size of 2^63 or more.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"expected an integer >= 0, got {value!r:.40}")
    return value


def text(value: Any) -> str:
    """A text without null characters."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"expected a text, got {value!r:.40}")
    if not value.isascii():
        value.encode()  # refuses half a surrogate pair, which no file name or output could hold
    return value


def scalar(value: Any) -> Scalar:
    """A text, a number, a truth value or null."""
    if not isinstance(value, Scalar):
        raise ValueError(f"expected a text or a number, got {value!r:.40}")
    return text(value) if isinstance(value, str) else value


def optional(read: Callable[[Any], T], value: Any) -> T | None:
    """What `read` makes of a value; None of None."""
    return None if value is None else read(value)
