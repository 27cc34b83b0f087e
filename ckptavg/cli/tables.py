"""Tables that commands print: whole in a pipe, made to fit a terminal."""

import shutil
import string
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from unicodedata import east_asian_width

import typer


class Look(NamedTuple):
    """How a column stands.

    Attributes:
        right: whether it is aligned at the right, as numbers are.
        shortens: whether a narrow terminal shortens its texts, as names.
        folds: whether a narrow terminal breaks its texts between words; of the last column only.
    """

    right: bool = False
    shortens: bool = False
    folds: bool = False


NAME, PROSE = Look(shortens=True), Look(folds=True)
WORD, NUMBER = Look(), Look(right=True)

_BETWEEN, _GAP = "  ", "..."
_LEAST, _LEAST_PROSE = 12, 24
"""Characters that shortened names and titles keep at least, and lines of prose."""
_WIDEST_PROSE = 100
"""Characters of a line of prose below a table, also where there is room for more."""


def print_table(rows: Iterable[Sequence[str]], *columns: tuple[Look, Sequence[str]]) -> None:
    """Prints a table, each row on one line; columns are titles by how they stand.

    On a terminal, rows are made to fit as far as titles and names can be shortened and prose be
    folded. In a pipe nothing is: a program may read it.
    """
    heads = [(title, look) for look, titles in columns for title in titles]
    cells = [*zip(*rows, strict=True)] or [()] * len(heads)
    table = [
        _Column(title, look, [*map(_printable, texts)])
        for (title, look), texts in zip(heads, cells, strict=True)
    ]
    if sys.stdout.isatty():
        _fit(table, shutil.get_terminal_size().columns)
    for number, line in enumerate(zip(*(column.lines() for column in table), strict=True)):
        before = _BETWEEN.join([*line[:-1], ""])
        # Folded prose continues below its own beginning.
        text = f"\n{' ' * _length(before)}".join(line[-1].splitlines() or [""])
        text = f"{before}{text}".rstrip()
        typer.echo(typer.style(text, bold=True) if number == 0 else text)


def print_prose(text: str) -> None:
    """Prints sentences, such as those that explain a table, in lines that can be read."""
    typer.echo(_filled(text, min(shutil.get_terminal_size().columns, _WIDEST_PROSE)))


def _filled(text: str, width: int) -> str:
    """Lines of a width, without a break in an option such as `--eval-data`."""
    return textwrap.fill(text, width, break_on_hyphens=False)


@dataclass
class _Column:
    title: str
    look: Look
    cells: list[str]

    @property
    def widest(self) -> int:
        """Width of the widest cell, without the title."""
        return max((_length(part) for cell in self.cells for part in cell.split("\n")), default=0)

    @property
    def width(self) -> int:
        return max(self.widest, _length(self.title))

    def lines(self) -> list[str]:
        """The title and the cells, filled up to one width."""
        width, texts = self.width, [self.title, *self.cells]
        spaces = [" " * (width - _length(text)) for text in texts]
        pairs = zip(spaces, texts, strict=True)
        return [space + text if self.look.right else text + space for space, text in pairs]

    def shorten(self, width: int) -> None:
        """Shortens names to a width; what they begin and end with alike goes first."""
        start = len(_alike(self.cells).rstrip(string.digits))
        end = len(_alike([cell[::-1] for cell in self.cells]))
        self.cells = [_shortened(cell, width, start, len(cell) - end) for cell in self.cells]


def _fit(table: Sequence[_Column], width: int) -> None:
    """Makes columns narrower until they fit, or none may be narrower."""

    def excess() -> int:
        return sum(c.width for c in table) + len(_BETWEEN) * (len(table) - 1) - width

    # Titles first: what stands below them says more.
    for column in table:
        if excess() > 0:
            least = max(_LEAST, column.widest)
            column.title = _shortened(column.title, least, 0, len(column.title))
    last = table[-1]
    if last.look.folds and excess() > 0:
        room = max(_LEAST_PROSE, last.width - excess())
        last.cells = [_filled(cell, room) for cell in last.cells]
    names = sorted((c for c in table if c.look.shortens), key=lambda c: c.width, reverse=True)
    for column in names:
        if excess() > 0:
            column.shorten(max(_LEAST, column.width - excess()))


def _shortened(text: str, width: int, start: int, end: int) -> str:
    """A text of at most `width` characters, which keeps those from `start` to `end` if it can."""
    if len(text) <= width:
        return text
    room, rest = width - len(_GAP), len(text) - start
    # Not all from the start on has room: only what tells it from others is shown.
    if 0 < start < end and rest > room:
        if end - start > room - len(_GAP):
            return _GAP + _shortened(text[start:end], room, 0, end - start)
        return _GAP + text[start : start + room - len(_GAP)] + _GAP
    tail = rest if room // 2 < rest <= room else room // 2
    return text[: room - tail] + _GAP + text[len(text) - tail :]


def _alike(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts, default=""), max(texts, default="")
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((n for n, (one, other) in pairs if one != other), len(first))]


def _length(text: str) -> int:
    """Columns of a terminal that a text takes; the characters of East Asia take two."""
    return len(text) if text.isascii() else sum(1 + (east_asian_width(c) in "WF") for c in text)


def _printable(text: str) -> str:
    """Text without line breaks and what else would disturb a terminal: names are not trusted."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
