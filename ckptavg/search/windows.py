"""The averages that a sweep tries: recipes over windows of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from ckptavg.errors import RecipeError, RunError, check_count
from ckptavg.recipes import UNIFORM, Recipe
from ckptavg.runs.run import Run
from ckptavg.runs.selection import positions

LAST, ALL = "last", "all"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An average of consecutive checkpoints of a run.

    Attributes:
        start: index of its first checkpoint in the run.
        stop: index after its last one.
        recipe: how it weights them.
        coefficients: one for each of its checkpoints.
    """

    start: int
    stop: int
    recipe: Recipe
    coefficients: tuple[float, ...]

    def of_run(self, count: int) -> tuple[float, ...]:
        """Coefficients of all `count` checkpoints of the run."""
        return (0.0,) * self.start + self.coefficients + (0.0,) * (count - self.stop)


def list_candidates(
    run: Run,
    *,
    windows: str = LAST,
    stride: int = 1,
    recipes: Sequence[Recipe | str] = (UNIFORM,),
    budget: int | None = None,
) -> list[Candidate]:
    """The averages that a sweep evaluates; arguments are those of `ckptavg.sweep`.

    Windows are sorted by their ends, then by their lengths; the longest of each end is always among
    them. Recipes that give a window the same coefficients count once.

    Raises:
        RunError: `windows`, `stride` or `budget` is invalid.
        RecipeError: a recipe is unknown, or does not apply to the checkpoints of a run.
    """
    if windows not in (LAST, ALL):
        raise RunError(f"windows is {windows!r:.40}, but must be '{LAST}' or '{ALL}'")
    for name, value in (("stride", stride), ("budget", budget)):
        check_count(name, value, RunError)
    if isinstance(recipes, str | Recipe):
        raise TypeError(f"recipes is {recipes!r:.80}, but must be a list, such as ['ema:0.9']")
    if not recipes:
        raise RecipeError("recipes is empty: name at least one, such as 'uniform'")
    chosen = [Recipe.parse(r) if isinstance(r, str) else r for r in recipes]
    count, places = len(run.checkpoints), positions(run.checkpoints)
    found: dict[tuple[float, ...], Candidate] = {}
    # Counted back from the last checkpoint, so it always is an end.
    ends = [count] if windows == LAST else list(range(count, 0, -stride))[::-1]
    for stop in ends:
        for length in sorted({*range(1, stop + 1, stride), stop}):
            start = stop - length
            for recipe in chosen:
                coefficients = recipe.coefficients(places[start:stop])
                candidate = Candidate(start, stop, recipe, coefficients)
                # Rounded, because recipes compute the same coefficients in different ways.
                same = tuple(round(c, 12) for c in candidate.of_run(count))
                found.setdefault(same, candidate)
    every = list(found.values())
    if budget is None or budget >= len(every):
        return every
    if budget == 1:
        return every[-1:]
    # Evenly spread, with the first and the last candidate.
    return [every[round(n * (len(every) - 1) / (budget - 1))] for n in range(budget)]
