"""JSON encoded and decoded by types: a value that others wrote is of its type or is refused."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from ckptavg.runs.digest import DIGEST_SIZE

Scalar = str | int | float | bool | None

DAMAGE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What reading damaged JSON may raise: here, or where a key is missing or a list is a number."""

_DIGEST = re.compile(f"[0-9a-fA-F]{{{2 * DIGEST_SIZE}}}")


def _digest(value: Any) -> str:
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise ValueError(f"expected a digest of 32 hexadecimal digits, got {value!r:.40}")
    return value


def _whole(value: Any) -> int:
    # bool is a subclass of int, and no array or file has a size of 2^63 or more.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"expected an integer >= 0, got {value!r:.40}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"expected a string, got {value!r:.40}")
    if not value.isascii():
        value.encode()  # refuses half a surrogate pair, which no file name or output could hold
    return value


def _scalar(value: Any) -> Scalar:
    if not isinstance(value, Scalar):
        raise ValueError(f"expected a string or a number, got {value!r:.40}")
    return _text(value) if isinstance(value, str) else value


Digest = Annotated[str, _digest]
"""A digest in hexadecimal digits."""

_ADDED = {"non_finite", "ema", "choice", "tensors", "mode", "moving", "digest"}
_ADDED |= {"parts", "model_digest", "differences"}
"""Fields that records of earlier versions lack; any other one that is missing is damage."""

_READERS: Mapping[Any, Callable[[Any], Any]] = {
    # Every integer in a record is a count or a size. `float` also reads "nan" and "inf".
    **{int: _whole, float: float, str: _text, bool: bool},
    **{Digest: _digest, Scalar: _scalar},
}


def decode(kind: Any, value: Any) -> Any:
    """Makes a value of a type from JSON, or raises one of `DAMAGE`.

    Args:
        kind: a number, a string, a `Digest` or `Scalar`; or a dataclass, a tuple, a mapping from
            strings or an optional one of such types. Fields of a dataclass that do not take part in
            comparisons are not in the file.
        value: as JSON gives it.
    """
    return _reader_of(kind)(value)


def encode(value: Any) -> Any:
    """What `decode` reads again, for strict JSON.

    JSON has no NaN and no infinity: these become strings that `float` reads.
    """
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value) if f.compare}
    if isinstance(value, Mapping):
        return {name: encode(content) for name, content in value.items()}
    if isinstance(value, tuple | list):
        return list(map(encode, value))
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# The types are looked at once: a proof holds a digest for every 8 MiB of a model.
@cache
def _reader_of(kind: Any) -> Callable[[Any], Any]:
    if kind in _READERS:
        return _READERS[kind]
    if isinstance(kind, type) and is_dataclass(kind):
        return _reader_of_object(kind)
    # Of `tuple[X, ...]`, `Mapping[str, X]` and `X | None`, X is the last that is not None.
    inner = [argument for argument in get_args(kind) if argument not in (..., NoneType)]
    read = _reader_of(inner[-1])
    if get_origin(kind) is tuple:
        return lambda value: tuple(map(read, value))
    if get_origin(kind) is Mapping:
        return lambda value: {_text(name): read(content) for name, content in value.items()}
    return lambda value: None if value is None else read(value)


def _reader_of_object(kind: type) -> Callable[[Any], Any]:
    # With the extras: they tell a digest from any other string.
    hints = get_type_hints(kind, include_extras=True)
    stored = {f.name: _reader_of(hints[f.name]) for f in fields(kind) if f.compare}

    def read(value: Any) -> Any:
        names = [name for name in stored if name in value or name not in _ADDED]
        return kind(**{name: stored[name](value[name]) for name in names})

    return read
