"""Numbers in file names: the order that they give, and the epochs (pure)."""

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
    """The epochs in file names, as Keras' `ModelCheckpoint` writes them.

    An epoch is the number after the word epoch. Where no name has that word, it is the integer at
    the only place where the names differ in one. Decimals, such as losses, are not epochs. Where
    the names differ in several integers, as in dates, the epochs are not known. See
    docs/decisions/0029-epochs-in-file-names.md.

    Returns:
        One epoch for each name; None if they are not known.
    """
    if not names:
        return None
    found = [int(match[1]) for match in map(_EPOCH.search, names) if match]
    # Some names lack the word: in the others it may be part of a title.
    if len(found) < len(names):
        fields = [_whole_numbers(name) for name in names]
        if len({len(field) for field in fields}) != 1:
            return None
        differing = [numbers for numbers in zip(*fields, strict=True) if len(set(numbers)) > 1]
        found = list(differing[0]) if len(differing) == 1 else []
    # Two checkpoints of one epoch would be in no order.
    return found if found and len(set(found)) == len(found) else None


def numbers_in(names: Sequence[str]) -> list[tuple[int, ...]] | None:
    """The integers in file names, which order them, such as dates from the year to the day.

    Returns:
        The integers of each name; None if they do not order the names, because two have the same
        ones or some have more than others.
    """
    found = [tuple(_whole_numbers(name)) for name in names]
    ordered = len({len(numbers) for numbers in found}) == 1 and len(set(found)) == len(found)
    return found if ordered else None


def _whole_numbers(name: str) -> list[int]:
    """The integers of a name. Of `5.0.33`, as in `{epoch}.{loss:.2f}`, only the 5 is one."""
    numbers = (number.split(".") for number in _NUMBER.findall(name))
    return [int(whole) for whole, *decimals in numbers if len(decimals) != 1]
