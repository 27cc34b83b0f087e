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

    An epoch is the number behind the word epoch; where no name has it, the whole number at the only
    place where the names differ in one. Decimals, such as losses, are none. Where several numbers
    differ, as in dates, the names do not tell.

    Returns:
        One epoch for each name; None if the names do not tell.
    """
    if not names:
        return None
    worded = [_EPOCH.search(name) for name in names]
    if all(worded):
        found = [int(match[1]) for match in worded]
        return found if len(set(found)) == len(found) else None
    fields = [_whole_numbers(name) for name in names]
    if len({len(field) for field in fields}) != 1:
        return None
    differing = [numbers for numbers in zip(*fields, strict=True) if len(set(numbers)) > 1]
    if len(differing) == 1:
        numbers = list(differing[0])
        return numbers if len(set(numbers)) == len(numbers) else None
    return None


def _whole_numbers(name: str) -> list[int]:
    """The whole numbers of a name. Of `5.0.33` the 5, as in `{epoch}.{loss:.2f}`."""
    numbers = (number.split(".") for number in _NUMBER.findall(name))
    return [int(whole) for whole, *decimals in numbers if len(decimals) != 1]
