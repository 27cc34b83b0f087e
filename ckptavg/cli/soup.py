"""`ckptavg soup`: an average of the checkpoints that improve it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.leaderboard import Leaderboard, csv_path, owning_csv, print_scores
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
    with owning_csv(output, overwrite):
        with session():
            report = cook(output=output, overwrite=overwrite, **options)
        facts = [_facts(ingredient, report.monitor) for ingredient in report.ingredients]
        scores = [ingredient.metrics for ingredient in report.ingredients]
        board = Leaderboard([*zip(facts, scores, strict=True)], report.monitor)
        board.write(output)
    if json:
        found = pick(report, "output", "monitor", "metrics", "tried", "test_metrics")
        print_json({**found, "ingredients": board.content()})
        return
    board.print(
        "A row for each checkpoint in the order in which it was tried, with its own metrics; soup "
        f"with it: {report.monitor} of the soup that includes it."
    )
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


def _facts(ingredient: "Ingredient", monitor: str) -> dict[str, Any]:
    return {
        "checkpoint": str(ingredient.checkpoint.path),
        "kept": "yes" if ingredient.kept else "no",
        "soup_with_it": (ingredient.with_soup or {}).get(monitor, ""),
    }
