"""`ckptavg recipes`: the ways to weight checkpoints, side by side."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from ckptavg.cli.command import command
from ckptavg.cli.options import Argument
from ckptavg.cli.printing import pick, print_json
from ckptavg.cli.tables import NUMBER, PROSE, WORD, print_prose, print_table
from ckptavg.commands.compare_recipes import RecipeComparison, compare_recipes
from ckptavg.errors import OutputError, SpecError
from ckptavg.recipes import UNIFORM

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 40
"""Bars of a plot in the terminal, at most."""


@command(
    compare_recipes,
    only={
        "sources": Argument(
            "SOURCE",
            "A run or other checkpoints to weight; evenly spaced ones by default.",
            several=True,
        )
    },
    more={"plot": None},
    examples_of_recipes=True,
    example="ckptavg recipes run --decay 0.9",
)
def recipes(*, sources: tuple[str, ...], plot: Path | None, json: bool, **options: Any) -> None:
    """List the recipes for `merge --recipe` and their coefficients."""
    found = compare_recipes(sources or None, **options)
    if plot is not None:
        _draw(plot, found)
    if json:
        names = ("recipe", "coefficients", "effective_sample_size")
        weighted = [pick(r, *names) for r in found.recipes if r.coefficients is not None]
        print_json({"positions": found.positions, "recipes": weighted})
        return
    rows = []
    for recipe in found.recipes:
        bars = "" if recipe.coefficients is None else draw_bars(recipe.coefficients)
        # Ten equal bars look like a mistake where the name promises a decay.
        bars = "= uniform" if recipe.is_uniform and recipe.recipe != UNIFORM else bars
        size = recipe.effective_sample_size
        rows.append((recipe.recipe, bars, "" if size is None else f"{size:.3g}", recipe.summary))
    print_table(
        rows, (WORD, ["recipe", "oldest first"]), (NUMBER, ["effective"]), (PROSE, ["what it does"])
    )
    typer.echo()
    print_prose(
        "oldest first: the share of each checkpoint in the average; effective: how many equally "
        "weighted checkpoints would reduce noise as much."
    )
    if plot is not None:
        typer.echo(f"\nwrote {plot}")


def draw_bars(coefficients: Sequence[float]) -> str:
    """Coefficients as a row of bars, the largest of full height; of many, sums of neighbours."""
    step = -(-len(coefficients) // _WIDTH)
    sums = [sum(coefficients[i : i + step]) for i in range(0, len(coefficients), step)]
    highest = max(sums)
    return "".join(_BARS[max(0, round(8 * value / highest))] for value in sums)


def _draw(path: Path, found: RecipeComparison) -> None:
    if find_spec("matplotlib") is None:
        raise SpecError("--plot needs matplotlib: pip install 'ckptavg[plots]'")
    from ckptavg.analysis.plots import recipe_curves, save_figure

    drawn = {r.recipe: r.coefficients for r in found.recipes if r.coefficients is not None}
    try:
        save_figure(lambda ax: recipe_curves(found.positions, drawn, ax=ax, unit=found.unit), path)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write the picture {path}: {error}") from error
