"""Which checkpoints enter an average, each with which coefficient."""

from collections.abc import Sequence
from dataclasses import dataclass

from ckptavg.checkpoints import Checkpoint, positions
from ckptavg.errors import RecipeError
from ckptavg.recipes import COEFFICIENTS, UNIFORM, Recipe, check_coefficients
from ckptavg.sources import Sources, resolve


@dataclass(frozen=True, slots=True)
class Weighted:
    """Checkpoints with their coefficients, and how these came about."""

    checkpoints: tuple[Checkpoint, ...]
    coefficients: tuple[float, ...]
    recipe: str


def weigh(
    sources: Sources,
    recipe: Recipe | str = UNIFORM,
    *,
    coefficients: Sequence[float] | None = None,
    normalize: bool = True,
) -> Weighted:
    """Gives the checkpoints of `sources` their coefficients; arguments are those of `merge`.

    Raises:
        RecipeError: recipe and coefficients do not fit each other, or the checkpoints.
        RunError: there are no checkpoints where `sources` points.
    """
    if coefficients is not None and recipe == UNIFORM:
        recipe = COEFFICIENTS
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    if (recipe.name == COEFFICIENTS) != (coefficients is not None):
        raise RecipeError(
            f"coefficients belong to the recipe {COEFFICIENTS}, not to {recipe}"
            if coefficients is not None
            else "the recipe coefficients needs coefficients (--coefficients)"
        )
    checkpoints = resolve(sources)
    if coefficients is not None:
        found = check_coefficients(coefficients, len(checkpoints), normalize=normalize)
    else:
        found = recipe.coefficients(positions(checkpoints))
    return Weighted(checkpoints, found, str(recipe))
