"""`ckptavg sweep`: many averages of a run, evaluated."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.leaderboard import Leaderboard, csv_path, owning_csv, print_scores
from ckptavg.cli.options import FOR_SELECTION, OUTPUT, RESOURCES, Option
from ckptavg.cli.printing import pick, plural, print_json
from ckptavg.cli.session import session
from ckptavg.cli.values import parse_size
from ckptavg.commands.sweep import sweep as search
from ckptavg.runs.describe import list_epochs

if TYPE_CHECKING:
    from ckptavg.search.sweep import Entry, SweepReport


@command(
    search,
    only={
        **FOR_SELECTION,
        "output": Option(
            OUTPUT,
            "Write the best average, .weights.h5 or .keras, and a CSV beside it.",
            "FILE",
            Path,
            short="-o",
        ),
        "max_memory": Option(
            RESOURCES,
            "Memory for sums of checkpoints; larger sums go to a file.",
            "SIZE",
            parse_size,
            default="1GiB",
        ),
    },
    example="ckptavg sweep run -o best.keras \\\n"
    "    --data train.py:bn_data --eval-data train.py:val_data",
)
def sweep(*, output: Path | None, overwrite: bool, json: bool, **options: Any) -> None:
    """Evaluate averages over windows of a run, print a leaderboard.

    Each average goes through a BatchNorm pass over --data and is evaluated on --eval-data. Scores
    are kept in the run's folder `search`: a sweep that was stopped continues where it was.
    """
    with owning_csv(output, overwrite):
        with session():
            report = search(output=output, overwrite=overwrite, **options)
        board = Leaderboard([(_facts(e), e.metrics) for e in report.entries], report.monitor)
        if report.output is not None:
            board.write(report.output)
    if json:
        print_json(_content(report, board))
        return
    board.print(
        "A row for each average, the best first; effective: how many equally weighted checkpoints "
        "would reduce noise as much."
    )
    _print_summary(report, options["eval_data"], options["test_data"])


def _facts(entry: "Entry") -> dict[str, Any]:
    return {
        "epochs": list_epochs(c.epoch for c in entry.checkpoints if c.epoch is not None),
        "checkpoints": len(entry.checkpoints),
        "recipe": entry.recipe,
        "effective": entry.effective_sample_size,
    }


def _print_summary(report: "SweepReport", eval_data: str, test_data: str | None) -> None:
    typer.echo(f"tried {report.tried} candidates, chosen by {report.monitor} on {eval_data}")
    if report.known:
        typer.echo(
            f"{plural(report.known, 'score')} of an earlier sweep; one was evaluated again and is "
            "the same"
        )
    if report.output is not None:
        typer.echo(f"wrote {report.output} and {csv_path(report.output).name}")
    if report.test_metrics is None:
        typer.echo(
            "The best of many scores is optimistic; pass --test-data (not used for\n"
            "selection) for an unbiased one."
        )
    else:
        print_scores("the best one", report.test_metrics, test_data)


def _content(report: "SweepReport", board: Leaderboard) -> dict[str, Any]:
    return {
        **pick(report, "monitor", "tried", "known", "output", "test_metrics"),
        "leaderboard": [
            {**line, "files": [c.path for c in entry.checkpoints], **pick(entry, "coefficients")}
            for line, entry in zip(board.content(), report.entries, strict=True)
        ],
    }
