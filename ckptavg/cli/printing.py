"""How commands print: JSON, tables, and numbers in them."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import typer


def print_json(content: Mapping[str, object]) -> None:
    """Prints a result on stdout for machines."""
    typer.echo(json.dumps(as_json(content), indent=2, default=str))


def as_json(value: object) -> Any:
    """What JSON can hold of a value: dataclasses become objects, paths text.

    NaN and infinity become null, because JSON has no numbers for them.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value


def pick(value: object, *names: str) -> dict[str, Any]:
    """Attributes of a result by name, for JSON; `plan.recipe` is an attribute of an attribute."""
    return {name.rpartition(".")[2]: reduce(getattr, name.split("."), value) for name in names}


TEXT, NUMBERS = {"overflow": "fold"}, {"overflow": "fold", "justify": "right"}
WORD, NUMBER = {"no_wrap": True}, {"no_wrap": True, "justify": "right"}
"""Columns of tables; texts are folded in a narrow terminal, words and numbers are cut."""


def print_table(
    rows: Iterable[Sequence[str]], *columns: tuple[Mapping[str, Any], Sequence[str]]
) -> None:
    """Prints a table to fit the terminal; columns are titles by how they stand."""
    from rich.console import Console  # only where there is a table
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for look, titles in columns:
        for title in titles:
            table.add_column(title, **look)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def plural(count: int, noun: str) -> str:
    """A number with its noun, such as `1 layer` and `2 layers`."""
    return f"{count} {noun}" + ("s" if count != 1 else "")
