"""`ckptavg recipes`: the ways to weigh checkpoints, side by side."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ckptavg.cli.printing import Json, new_table, print_json, print_table
from ckptavg.errors import OutputError, SpecError
from ckptavg.recipes import (
    RECIPES,
    Recipe,
    effective_sample_size,
)
from ckptavg.runs.checkpoint import positions_in
from ckptavg.runs.sources import resolve

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 40
"""Bars of a plot in the terminal, at most."""


def recipes(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="A run or other checkpoints to weigh; evenly spaced ones if left out.",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Evenly spaced checkpoints.")
    ] = 10,
    decay: Annotated[float, typer.Option(metavar="D", help="Of ema.")] = 0.8,
    sigma_rel: Annotated[float, typer.Option(metavar="S", help="Of power-ema.")] = 0.1,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw them into a picture (needs matplotlib).", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes for `merge --recipe` and their coefficients."""
    places, unit = tuple(map(float, range(1, count + 1))), "checkpoint"
    if sources:
        places, unit = positions_in(resolve(sources))
    given = {"decay": decay, "sigma_rel": sigma_rel}
    found = {}
    for name, definition in RECIPES.items():
        if definition.over == "positions":
            own = {p.name: given.get(p.name, p.example) for p in definition.parameters}
            recipe = Recipe(name, **own)
            found[str(recipe)] = recipe.coefficients(places)
    if plot is not None:
        _draw(plot, places, unit, found)
    if json:
        print_json({"positions": places, "recipes": _content(found)})
        return
    table = new_table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("coefficients, oldest first", no_wrap=True)
    table.add_column("effective", justify="right", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    for name, definition in RECIPES.items():
        given = next((text for text in found if text.partition(":")[0] == name), None)
        bars, size = "", ""
        if given is not None:
            bars, size = draw_bars(found[given]), f"{effective_sample_size(found[given]):.3g}"
        table.add_row(given or name, bars, size, definition.summary)
    print_table(table)
    if plot is not None:
        typer.echo(f"\nwrote {plot}")


def draw_bars(coefficients: Sequence[float]) -> str:
    """Coefficients as a row of bars, the largest of full height; of many, sums of neighbours."""
    step = -(-len(coefficients) // _WIDTH)
    sums = [sum(coefficients[i : i + step]) for i in range(0, len(coefficients), step)]
    highest = max(sums)
    return "".join(_BARS[max(0, round(8 * value / highest))] for value in sums)


def _content(found: Mapping[str, Sequence[float]]) -> list[dict[str, object]]:
    return [
        {
            "recipe": name,
            "coefficients": coefficients,
            "effective_sample_size": effective_sample_size(coefficients),
        }
        for name, coefficients in found.items()
    ]


def _draw(
    path: Path, places: Sequence[float], unit: str, found: Mapping[str, Sequence[float]]
) -> None:
    if find_spec("matplotlib") is None:
        raise SpecError("--plot needs matplotlib: pip install 'ckptavg[plots]'")
    from ckptavg.analysis.plots import recipe_curves, save_figure

    try:
        save_figure(lambda ax: recipe_curves(places, found, ax=ax, unit=unit), path)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write the picture {path}: {error}") from error
