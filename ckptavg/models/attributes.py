"""Finds objects of some kind among the attributes of others."""

from collections.abc import Iterable
from typing import Any


def find_attributes(owners: Iterable[Any], kind: type | tuple[type, ...]) -> list[Any]:
    """The attributes of some objects that are of a kind, each once.

    Lists, tuples and dictionaries are searched, too, as Keras does when it saves.

    Args:
        owners: whose attributes are searched.
        kind: what is looked for.
    """
    waiting = [value for owner in owners for value in vars(owner).values()]
    found: dict[int, Any] = {}
    seen = set()
    for value in waiting:  # which grows meanwhile
        if isinstance(value, kind):
            found[id(value)] = value
        elif isinstance(value, (list, tuple, dict)) and id(value) not in seen:
            seen.add(id(value))  # one may hold itself
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return [*found.values()]
