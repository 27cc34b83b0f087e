"""`ckptavg soup`: an average of the checkpoints that improve it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.leaderboard import Line, check_csv, csv_path, print_lines, print_scores, write_csv
from ckptavg.cli.options import FOR_SELECTION, Argument
from ckptavg.cli.printing import pick, plural, print_json
from ckptavg.cli.session import session
from ckptavg.commands.soup import soup as cook

if TYPE_CHECKING:
    from ckptavg.search.soup import Ingredient, SoupReport


@command(
    cook,
    only={
        **FOR_SELECTION,
        "sources": Argument(
            "CKPT",
            "Checkpoints of one model, of one or several runs; runs; patterns.",
            several=True,
        ),
    },
    example="ckptavg soup run -o soup.keras \\\n"
    "    --data train.py:bn_data --eval-data train.py:val_data",
)
def soup(*, output: Path, overwrite: bool, json: bool, **options: Any) -> None:
    """Average the subset of checkpoints that scores best (greedy soup).

    A greedy soup begins with the best checkpoint and keeps each further one with which it is not
    worse on --eval-data. A CSV beside the output lists all that were tried.
    """
    check_csv(output, overwrite)
    with session():
        report = cook(output=output, overwrite=overwrite, **options)
    lines = [_line(ingredient, report.monitor) for ingredient in report.ingredients]
    write_csv(csv_path(output), lines, report.monitor)
    if json:
        facts = pick(report, "output", "monitor", "metrics", "tried", "test_metrics")
        print_json({**facts, "ingredients": [line.content() for line in lines]})
        return
    print_lines(lines, report.monitor)
    typer.echo()
    _print_summary(report, **{key: options[key] for key in ("method", "eval_data", "test_data")})


def _print_summary(
    report: "SoupReport", method: str, eval_data: str, test_data: str | None
) -> None:
    kept = sum(ingredient.kept for ingredient in report.ingredients)
    typer.echo(
        f"wrote {report.output} and {csv_path(report.output).name}: "
        f"{method} soup of {plural(kept, 'checkpoint')}"
    )
    value = report.metrics[report.monitor]
    typer.echo(
        f"tried {report.tried} candidates, chosen by {report.monitor} on {eval_data}: {value:.5g}"
    )
    if report.test_metrics is not None:
        print_scores("the soup", report.test_metrics, test_data)


def _line(ingredient: "Ingredient", monitor: str) -> Line:
    with_soup = (ingredient.with_soup or {}).get(monitor)
    return Line(
        {
            "checkpoint": str(ingredient.checkpoint.path),
            "kept": "yes" if ingredient.kept else "no",
            "soup_with_it": "" if with_soup is None else with_soup,
        },
        ingredient.metrics,
    )
