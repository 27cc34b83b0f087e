"""How the values of options are read."""

import re
from collections.abc import Callable
from typing import Any

import typer

_UNITS = {"": 1, "B": 1}
_UNITS.update({f"{unit}B": 1000 ** (n + 1) for n, unit in enumerate("KMGT")})
_UNITS.update({f"{unit}IB": 1024 ** (n + 1) for n, unit in enumerate("KMGT")})


def parse_size(text: str) -> int:
    """Reads a size such as `96MiB`, `1.5GB` or `100000`, in bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or len(match[1]) > 15 or match[2].upper() not in _UNITS:
        raise ValueError(f"'{text}' is not a size: write it like 96MiB or 1GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_epochs(text: str) -> list[int | range]:
    """Reads a list of epochs and ranges of epochs such as `16-30` or `16,20,24-26`."""
    epochs: list[int | range] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"'{text}' names no epochs: write them like 16-30 or 16,20,24")
        first = int(match[1])
        epochs.append(range(first, int(match[2]) + 1) if match[2] else first)
    return epochs


def parse_numbers(text: str) -> list[float]:
    """Reads numbers such as `0.2,0.3,0.5`."""
    return [float(part) for part in text.split(",")]


def parse_texts(text: str) -> list[str]:
    """Reads words such as `uniform,ema:0.9`."""
    return [part.strip() for part in text.split(",")]


def parse_count(text: str) -> int:
    """Reads a number of checkpoints to draw."""
    if text.isdecimal() and 1 <= int(text) <= 1000:
        return int(text)
    raise ValueError(f"'{text}' is not an integer from 1 to 1000")


_EXPECTED: dict[Callable[[str], Any], str] = {
    int: "an integer",
    float: "a number",
    parse_numbers: "a list of numbers: write it like 0.2,0.3,0.5",
}
"""What a value must be, for parsers whose own message does not say it to a user."""


def read_by(parse: Callable[[str], Any], parameter: Any) -> Any:
    """Lets a function read the value of an argument or option, in place of Typer.

    Typer imports pydantic for any value, even that of `--help`: a third more of a start. See
    docs/decisions/0071-options-are-the-keywords-of-functions.md.
    """

    def process_value(ctx: Any, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return parse(value)
            except ValueError as error:
                expected = _EXPECTED.get(parse)
                message = f"'{value}' is not {expected}" if expected else str(error)
                raise typer.BadParameter(message, ctx=ctx, param=parameter) from None
        several = isinstance(value, tuple) and value
        if several or (value is parameter.default and not parameter.required):
            return value
        # A flag that was given, or what is required and missing.
        return type(parameter).process_value(parameter, ctx, value)

    parameter.process_value = process_value
    return parameter
