"""Numbers in file names: natural order, and epochs (pure)."""

import re
from collections.abc import Sequence

_EPOCH = re.compile(r"(?:^|[^a-z])(?:epochs?|ep)[-_=.: ]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)*")
_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts `weights.9` before `weights.10`."""
    parts = _DIGITS.split(name)
    return [(1, int(p), p) if n % 2 else (0, 0, p) for n, p in enumerate(parts)]


def epochs_in(names: Sequence[str]) -> list[int] | None:
    """The epochs that file names tell of, as Keras' `ModelCheckpoint` puts them there.

    An epoch is the number behind the word epoch; where no name has it, the first place at which
    every name has a whole number and no two the same. Decimals, such as losses, are none.

    Returns:
        One epoch for each name; None if the names do not tell.
    """
    worded = [_EPOCH.search(name) for name in names]
    if all(worded):
        found = [int(match[1]) for match in worded]
        return found if len(set(found)) == len(found) else None
    places = zip(*(_whole_numbers(name) for name in names), strict=False)
    for numbers in places:
        if None not in numbers and len(set(numbers)) == len(numbers):
            return list(numbers)
    return None


def _whole_numbers(name: str) -> list[int | None]:
    """The numbers of a name; None for a decimal. Of `5.0.33` the 5, as in `{epoch}.{loss:.2f}`."""
    found: list[int | None] = []
    for number in _NUMBER.findall(name):
        whole, *decimals = number.split(".")
        found.append(None if len(decimals) == 1 else int(whole))
    return found
