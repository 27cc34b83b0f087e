"""How commands print: JSON, and numbers in sentences."""

import json
import os
from collections.abc import Mapping
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


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def plural(count: int, noun: str) -> str:
    """A number with its noun, such as `1 layer` and `2 layers`."""
    return f"{count} {noun}" + ("s" if count != 1 else "")
