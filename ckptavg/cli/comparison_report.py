"""Scores of checkpoints and averages as a table, with what they mean below it."""

from typing import TYPE_CHECKING

import typer

from ckptavg.cli.tables import NAME, NUMBER, print_prose, print_table

if TYPE_CHECKING:
    from ckptavg.analysis.comparison.results import Comparison


def print_comparison(found: "Comparison") -> None:
    """Prints a row for each score, the best one marked, and the verdict."""
    metrics = list(found.rows[0].metrics)
    rows = [
        (
            row.title,
            *(f"{row.metrics[name]:.4g}" for name in metrics),
            "best" if row is found.best and len(found.rows) > 1 else "",
        )
        for row in found.rows
    ]
    print_table(rows, (NAME, ["on the held-out data"]), (NUMBER, [*metrics, ""]))
    for sentence in found.verdict:
        typer.echo()
        print_prose(sentence)
