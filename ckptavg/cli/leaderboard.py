"""Candidates of a search as a table for people, as JSON, and as a CSV beside the output."""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ckptavg.cli.tables import NAME, NUMBER, print_prose, print_table
from ckptavg.runs.outputs import check_name, check_place, owning, writing
from ckptavg.storage.files import write_text


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Candidates of a search.

    Attributes:
        lines: facts that say what each candidate is, and its metrics, the best candidate first.
        monitor: the metric used for selection.
    """

    lines: Sequence[tuple[Mapping[str, Any], Mapping[str, float]]]
    monitor: str

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, the one used for selection before the others."""
        return sorted(self.lines[0][1], key=lambda name: name != self.monitor)

    def print(self, explained: str, limit: int = 20) -> None:
        """Prints the first lines, and what they show below them."""
        rows = [
            [str(rank), *map(_text, facts.values()), *(f"{scores[m]:.5g}" for m in self.metrics)]
            for rank, (facts, scores) in enumerate(self.lines[:limit], 1)
        ]
        # The first fact says which checkpoints: by path, or by epochs.
        first, *others = (title.replace("_", " ") for title in self.lines[0][0])
        print_table(rows, (NUMBER, [""]), (NAME, [first]), (NUMBER, [*others, *self.metrics]))
        if len(self.lines) > limit:
            typer.echo(f"and {len(self.lines) - limit} more")
        typer.echo()
        print_prose(explained)

    def write(self, output: Path) -> None:
        """Writes all lines as a CSV beside an output, for who owns the CSV, see `owning_csv`."""
        text, path = io.StringIO(), csv_path(output)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["rank", *self.lines[0][0], *self.metrics])
        for rank, (facts, scores) in enumerate(self.lines, 1):
            writer.writerow([rank, *facts.values(), *(scores[m] for m in self.metrics)])
        with writing(path):
            write_text(path, text.getvalue())

    def content(self) -> list[dict[str, Any]]:
        """All lines, for machines."""
        return [{**facts, "metrics": scores} for facts, scores in self.lines]


def print_scores(what: str, metrics: Mapping[str, float], data: str | None) -> None:
    """Prints metrics on data that were not used for selection."""
    told = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
    typer.echo(f"{what} on {data}: {told}")


def owning_csv(output: Path | None, overwrite: bool) -> AbstractContextManager[None]:
    """Owns the file of the leaderboard of an output, if there is one; see `owning`."""
    if output is None:
        return nullcontext()
    check_name(output)
    return owning(csv_path(output), overwrite, check=check_place)


def csv_path(output: Path) -> Path:
    """Where the leaderboard of an output goes."""
    return output.with_name(f"{output.name}.csv")


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
