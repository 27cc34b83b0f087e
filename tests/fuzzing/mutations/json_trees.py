"""Changes to what JSON says, and to how it says it."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.fuzzing.mutations.plain import change_bytes

_VALUES = (
    *(None, True, False, -1, 0, 1, 2, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
    *(0.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "NaN", "inf", "1e999", ""),
    *("..", "/", ".", "a\0b", "\ud800", "x\udfff", "x" * 5000, "ü", "\x1b[31m", "\n", "٣", "1_0"),
    *("../../etc/passwd", "/dev/zero", "/dev/stdin", "~", "0" * 32, "0x10", "1", "none"),
    *([], {}, [[[]]], {"": {}}, [1e9] * 3, [None], [2**62, 2**62], {"\ud800": 1}),
)
_NAMES = ("", "x", "layers", "..", "\ud800", "__class__", "a/b", "\0", "optimizer")


def change(random: Random, content: bytes) -> bytes:
    """A few values or names changed, or how they are written."""
    try:
        whole = [json.loads(content)]
    except ValueError:  # it was changed before
        return change_bytes(random, content)
    for _ in range(random.choice((1, 1, 1, 2))):
        _change_node(random, whole)
    indent = random.choice((None, None, 1))
    text = json.dumps(whole[0], indent=indent, ensure_ascii=random.random() < 0.9)
    if random.random() < 0.15:
        text = random.choice(_SPELLINGS)(random, text)
    return text.encode("utf-8", "surrogatepass")


def change_lines(random: Random, content: bytes) -> bytes:
    """Lines of which some may be JSON: one is changed, or they move, double, tear or join."""
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    kind = random.random()
    if kind < 0.6:
        places = [n for n, line in enumerate(lines) if line.startswith((b"{", b"["))] or [place]
        place = random.choice(places)
        lines[place] = change(random, lines[place]).replace(b"\n", b" ")
    elif kind < 0.7:
        lines.insert(random.randrange(len(lines)), lines[place])
    elif kind < 0.8:
        lines.insert(random.randrange(len(lines)), lines.pop(place))
    elif kind < 0.9:
        del lines[place]
    else:
        return change_bytes(random, content)
    return random.choice((b"\n", b"\n", b"\n", b"\r\n", b"")).join(lines)


def _change_node(random: Random, whole: list[Any]) -> None:
    container, key = random.choice(list(_nodes(whole)))
    action = random.choice(("replace", "replace", "replace", "remove", "rename", "exchange"))
    action = random.choice((action, "grow"))
    if action == "remove" and container is not whole:
        del container[key]
    elif action == "rename" and isinstance(container, dict):
        container[random.choice((*_NAMES, f"{key}é"))] = container.pop(key)
    elif action == "exchange":
        other, place = random.choice(list(_nodes(whole)))
        container[key] = copy.deepcopy(other[place])
    elif action == "grow":
        container[key] = _grown(random, container[key])
    else:
        value = random.choice((*_VALUES, random.getrandbits(40), random.random()))
        container[key] = copy.deepcopy(value)  # a second change must not reach `_VALUES`


def _grown(random: Random, value: Any) -> Any:
    """A value of the same kind, as far as it has one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return random.choice((value + 1, value - 1, -value, value * 2, float(value), str(value)))
    if isinstance(value, str):
        return random.choice((value[1:], value * 2, value.upper(), value[::-1], f"./{value}"))
    if isinstance(value, list):
        return random.choice((value * 2, value[1:], value[::-1], [value], [*value, None]))
    return random.choice(({"": value}, [value], list(value), dict(reversed(value.items()))))


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value: what holds it, and its key there."""
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(part, dict | list):
            yield from _nodes(part)


def _nested(random: Random, text: str) -> str:
    depth = random.choice((60, 500, 990, 3000, 200_000))
    return text[:-1] + f', "deep": {"[" * depth}{"]" * depth}' + text[-1:]


def _number(random: Random, text: str) -> str:
    """A number that few readers take, in place of a digit."""
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    number = random.choice(("1e999", "9" * 5000, "-0", "1E400", "0.1e-400", "-Infinity", "0x1"))
    place = random.choice(digits) if digits else 0
    return text[:place] + number + text[place + 1 :]


def _twice(random: Random, text: str) -> str:
    """A key twice, with another value."""
    key = text[1:].partition(":")[0]
    return text[:-1] + f", {key}: {json.dumps(random.choice(_VALUES))}" + text[-1:]


_SPELLINGS = (
    _nested,
    _number,
    _twice,
    lambda _, text: "\ufeff" + text,
    lambda random, text: text + random.choice(("x", "\0", "{}", "\n\n", " " * 100_000)),
    lambda _, text: text.replace('"', "'"),
    lambda random, text: text[: random.randrange(len(text))],
)
