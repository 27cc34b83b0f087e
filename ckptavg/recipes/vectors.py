"""Vectors of coefficients: what makes one an average, and what it is worth (pure)."""

import math
from collections.abc import Sequence

from ckptavg.errors import RecipeError
from ckptavg.recipes.registry import recipe

COEFFICIENTS = "coefficients"

_SUM_TOLERANCE = 1e-6


@recipe(COEFFICIENTS, summary="the numbers given by --coefficients", over="given numbers")
def check_coefficients(
    coefficients: Sequence[float], count: int, *, normalize: bool = True
) -> tuple[float, ...]:
    """Makes sure that coefficients describe an average of `count` checkpoints.

    Args:
        coefficients: one for each checkpoint; they may be negative.
        count: number of checkpoints.
        normalize: whether they must sum to 1, as those of an average do; sums of task vectors
            (Ilharco et al., arXiv 2212.04089) do not.

    Returns:
        The coefficients; if they must sum to 1, divided by their sum, which is 1 but for rounding.

    Raises:
        RecipeError: they are not numbers, there are more or fewer than checkpoints, one is not
            finite, or they do not sum to 1 within 1e-6 though they must.
    """
    try:
        values = tuple(float(value) for value in coefficients)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"coefficients must be numbers, but are {coefficients!r:.80}") from error
    if len(values) != count:
        raise RecipeError(f"there are {len(values)} coefficients for {count} checkpoints")
    # First: in the sums below NaN and infinity would look like an overflow.
    if not all(math.isfinite(value) for value in values):
        raise RecipeError(f"coefficients must be finite numbers, but are {list(values)}")
    if not math.isfinite(sum(map(abs, values))):
        raise RecipeError(
            f"coefficients as large as {max(map(abs, values)):.3g} overflow their sum"
        )
    if not normalize:
        return values
    total = math.fsum(values)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise RecipeError(
            f"coefficients must sum to 1, but sum to {total:.9g}: change them, or keep their sum "
            "(--no-normalize, in Python normalize=False)"
        )
    return tuple(value / total for value in values)


def effective_sample_size(coefficients: Sequence[float]) -> float:
    """How many independent checkpoints would give a plain mean with as little noise.

    (sum c)^2 / sum c^2 (Kish), which is 1 / sum c^2 where the coefficients sum to 1.
    """
    squares = math.fsum(c * c for c in coefficients)
    return math.fsum(coefficients) ** 2 / squares if squares else 0.0
