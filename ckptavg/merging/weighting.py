"""Which checkpoints enter an average, each with which coefficient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckptavg.errors import RecipeError, warn
from ckptavg.recipes import COEFFICIENTS, UNIFORM, Recipe, check_coefficients
from ckptavg.recipes.posthoc_ema import Reconstruction
from ckptavg.runs.checkpoint import Checkpoint, TrackedCheckpoint
from ckptavg.runs.json_values import Scalar
from ckptavg.runs.selection import check_order, leave_out_non_finite, positions_in
from ckptavg.runs.sources import Sources, resolve, resolve_averages

_TOLERANCE = 0.01
"""How far the profile of a reconstructed average may be from the wanted one, as a share of it."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """Checkpoints with their coefficients.

    Attributes:
        checkpoints: those that enter the average.
        coefficients: one for each of them.
        recipe: how the coefficients came about, such as `ema:0.9`.
        left_out: checkpoints that hold NaN or infinity.
        choice: the recipe with its exact parameters, for the record; empty for the plain mean.
    """

    checkpoints: tuple[Checkpoint, ...]
    coefficients: tuple[float, ...]
    recipe: str
    left_out: tuple[Checkpoint, ...] = ()
    choice: Mapping[str, Scalar] = field(default_factory=dict)


def weigh(
    sources: Sources,
    recipe: Recipe | str = UNIFORM,
    *,
    coefficients: Sequence[float] | None = None,
    normalize: bool = True,
    finite_only: bool = True,
) -> Weighted:
    """Gives the checkpoints of `sources` their coefficients; arguments are those of `merge`.

    With `finite_only`, checkpoints whose records list NaN or infinity are left out, unless
    coefficients are given for each.

    Warns:
        CkptavgWarning: the averages that a run tracked cannot represent the wanted one well.

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
    if recipe.definition.over == "tracked averages":
        return _combine(resolve_averages(sources), recipe)
    checkpoints = resolve(sources)
    left_out: tuple[Checkpoint, ...] = ()
    if coefficients is not None:
        found = check_coefficients(coefficients, len(checkpoints), normalize=normalize)
    else:
        # A copy takes over what is there, NaN too.
        if finite_only:
            checkpoints, left_out = leave_out_non_finite(checkpoints)
        places, unit = positions_in(checkpoints)
        if unit == "checkpoint" and recipe.definition.distinct:
            check_order(checkpoints, recipe.name, required=False)
        found = recipe.coefficients(places)
    choice: dict[str, Scalar] = {}
    # The sources hold the coefficients; a plain mean needs no choice.
    if recipe.name not in (UNIFORM, COEFFICIENTS):
        choice = {"recipe": recipe.name, **dict(recipe.parameters)}
    return Weighted(checkpoints, found, str(recipe), left_out, choice)


def _combine(averages: Sequence[TrackedCheckpoint], recipe: Recipe) -> Weighted:
    """The tracked averages that make up another one."""
    averages, left_out = leave_out_non_finite(averages)
    tracked = [average.ema for average in averages]
    found: Reconstruction = recipe.definition.function(tracked, **dict(recipe.parameters))
    if found.error > _TOLERANCE:
        sigmas = ", ".join(f"{s:g}" for s in sorted({average.sigma_rel for average in tracked}))
        warn(
            f"the tracked averages (sigma_rel {sigmas}, {len(tracked)} files) cannot represent "
            f"sigma_rel {found.target.sigma_rel:g} at step {found.target.step} well: the profile "
            f"is off by {found.error:.1%}. Choose a width nearer to the tracked ones, or the step "
            "of a file"
        )
    used = [n for n, coefficient in enumerate(found.coefficients) if coefficient != 0.0]
    return Weighted(
        tuple(averages[n] for n in used),
        tuple(found.coefficients[n] for n in used),
        str(recipe),
        left_out,
        # Named even if it is the last one today: the run may go on.
        {"recipe": recipe.name, **dict(recipe.parameters), "at_step": found.target.step},
    )
