"""`compare_recipes`: the coefficients that each recipe gives the same checkpoints."""

from dataclasses import dataclass

from ckptavg.errors import RecipeError, check_count
from ckptavg.recipes import RECIPES, UNIFORM, Recipe, all_parameters, effective_sample_size
from ckptavg.runs.selection import positions_in
from ckptavg.runs.sources import Sources, resolve

_EQUAL = 1e-9
"""Coefficients that differ by less than this fraction are equal but for rounding."""


@dataclass(frozen=True, slots=True)
class RecipeCoefficients:
    """A recipe and what it gives the checkpoints that are compared.

    Attributes:
        recipe: with its parameter, such as `ema:0.8`; its name if it does not go by positions.
        summary: what it does, in a line.
        coefficients: one per checkpoint; None if they do not follow from positions alone.
    """

    recipe: str
    summary: str
    coefficients: tuple[float, ...] | None = None

    @property
    def effective_sample_size(self) -> float | None:
        """Number of equally weighted checkpoints whose mean would be as noisy."""
        return None if self.coefficients is None else effective_sample_size(self.coefficients)

    @property
    def is_uniform(self) -> bool:
        """Whether it gives these checkpoints equal coefficients, as the plain mean does.

        Linear decay does for evenly spaced ones: each step of the rate falls by as much.
        """
        found = self.coefficients
        return found is not None and max(found) - min(found) <= _EQUAL * abs(max(found))


@dataclass(frozen=True, slots=True, repr=False)
class RecipeComparison:
    """What `compare_recipes` found.

    Attributes:
        positions: of the checkpoints in training, oldest first.
        unit: what positions count: `step`, `epoch` or `checkpoint`.
        recipes: all that there are.
    """

    positions: tuple[float, ...]
    unit: str
    recipes: tuple[RecipeCoefficients, ...]

    def __repr__(self) -> str:
        rows = (
            f"  {r.recipe:<20} effective sample size {r.effective_sample_size:.3g}"
            + (", = uniform" if r.is_uniform and r.recipe != UNIFORM else "")
            for r in self.recipes
            if r.effective_sample_size is not None
        )
        return "\n".join((f"RecipeComparison: {len(self.positions)} checkpoints", *rows))


def compare_recipes(
    sources: Sources | None = None, *, count: int = 10, **parameters: float | None
) -> RecipeComparison:
    """Compares the coefficients that the recipes give the same checkpoints.

    Args:
        sources: checkpoints, as in `merge`; by default evenly spaced ones.
        count: number of evenly spaced checkpoints, if there are no sources.
        **parameters: of the recipes, such as `decay` and `sigma_rel`; examples by default.

    Returns:
        The recipes, those with coefficients and those that need more than positions.

    Raises:
        RunError: there are no checkpoints where `sources` points.
        RecipeError: two checkpoints are at the same position, or a number is out of range.

    Example:
        >>> print(ckptavg.compare_recipes("run"))
    """
    if unknown := parameters.keys() - all_parameters().keys():
        raise TypeError(f"compare_recipes() got an unexpected keyword argument '{min(unknown)}'")
    given = {name: value for name, value in parameters.items() if value is not None}
    check_count("count", count, RecipeError)
    positions, unit = tuple(map(float, range(1, count + 1))), "checkpoint"
    if sources is not None:
        positions, unit = positions_in(resolve(sources))
    found = []
    for name, definition in RECIPES.items():
        if definition.over != "positions":
            found.append(RecipeCoefficients(name, definition.summary))
            continue
        own = [(p.name, given.get(p.name, p.example)) for p in definition.parameters]
        recipe = Recipe(name, parameters=own)
        coefficients = recipe.coefficients(positions)
        found.append(RecipeCoefficients(str(recipe), definition.summary, coefficients))
    return RecipeComparison(positions, unit, tuple(found))
