"""Candidates of a search as a table for people, as JSON, and as a CSV beside the output."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ckptavg.cli.printing import NUMBER, NUMBERS, print_table
from ckptavg.errors import OutputError
from ckptavg.runs.outputs import writing
from ckptavg.storage.files import write_text


@dataclass(frozen=True, slots=True)
class Line:
    """One candidate: facts that say what it is, and its metrics."""

    facts: Mapping[str, Any]
    metrics: Mapping[str, float]

    def content(self) -> dict[str, Any]:
        return {**self.facts, "metrics": dict(self.metrics)}


def print_lines(lines: Sequence[Line], monitor: str, limit: int = 20) -> None:
    """Prints the first lines of a leaderboard, the metric that chose before the others."""
    metrics = _metrics(lines, monitor)
    rows = [
        (
            str(number),
            *map(_text, line.facts.values()),
            *(f"{line.metrics[name]:.5g}" for name in metrics),
        )
        for number, line in enumerate(lines[:limit], 1)
    ]
    facts = [title.replace("_", " ") for title in lines[0].facts]
    print_table(rows, (NUMBER, [""]), (NUMBERS, facts), (NUMBER, metrics))
    if len(lines) > limit:
        typer.echo(f"and {len(lines) - limit} more")


def print_scores(what: str, metrics: Mapping[str, float], data: str | None) -> None:
    """Prints metrics on data that were not used for selection."""
    told = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
    typer.echo(f"{what} on {data}: {told}")


def write_csv(path: Path, lines: Sequence[Line], monitor: str) -> None:
    """Writes all lines of a leaderboard, the best first."""
    text = io.StringIO()
    metrics = _metrics(lines, monitor)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", *lines[0].facts, *metrics])
    for number, line in enumerate(lines, 1):
        writer.writerow([number, *line.facts.values(), *(line.metrics[m] for m in metrics)])
    with writing(path):
        write_text(path, text.getvalue())


def check_csv(output: Path, overwrite: bool) -> None:
    """Refuses an output whose leaderboard would replace a file.

    Raises:
        OutputError: there is one, and it is not to be overwritten.
    """
    path = csv_path(output)
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists already: choose another name for {output.name}, or overwrite both "
            "(--overwrite)"
        )


def csv_path(output: Path) -> Path:
    """Where the leaderboard of an output goes."""
    return output.with_name(f"{output.name}.csv")


def _metrics(lines: Sequence[Line], monitor: str) -> list[str]:
    others = [name for name in lines[0].metrics if name != monitor]
    return [monitor, *others] if lines[0].metrics else []


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
