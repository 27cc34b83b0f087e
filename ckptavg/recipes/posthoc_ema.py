"""Post-hoc EMA: an average of any width, combined from a few that a training tracked (pure).

Derived from Karras et al., arXiv 2312.02696, section 3.2: what a training has averaged online
under two power-function profiles, saved at some steps, spans averages under other profiles nearly
exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckptavg.errors import RecipeError
from ckptavg.recipes.power_profiles import SIGMA_REL, gamma_of, overlap
from ckptavg.recipes.registry import Parameter, recipe

POSTHOC_EMA = "posthoc-ema"
AT_STEP = Parameter(
    "at_step",
    "Optimizer step at which the average ends; the last one by default.",
    "N",
    value_type=int,
    required=False,
)

_RANK = 1e-13
"""Of the correlation of profiles: what lies below is rounding."""


@dataclass(frozen=True, slots=True)
class TrackedAverage:
    """A power-function average as it was during training.

    Attributes:
        sigma_rel: its relative standard deviation.
        step: updates that it had seen, counted from 1.
    """

    sigma_rel: float
    step: int


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """An average as a combination of tracked ones.

    Attributes:
        coefficients: one for each tracked average, with sum 1; 0 for those after the target.
        error: distance between the combined profile and the wanted one, as a fraction of the
            latter's norm: 0 where the tracked averages span it.
        target: the wanted average.
    """

    coefficients: tuple[float, ...]
    error: float
    target: TrackedAverage


@recipe(
    POSTHOC_EMA,
    summary="an EMA of any --sigma-rel, combined from the averages that a run has tracked",
    parameters=[SIGMA_REL, AT_STEP],
    over="tracked averages",
)
def combine(
    tracked: Sequence[TrackedAverage], sigma_rel: float, at_step: int | None = None
) -> Reconstruction:
    """`reconstruct` of the average that ends at a step, by default at the last one.

    Raises:
        RecipeError: as `reconstruct` does; or `at_step` lies after the last tracked average.
    """
    last = max(average.step for average in tracked)
    step = last if at_step is None else at_step
    if step > last:
        raise RecipeError(
            f"averages were tracked up to step {last}, but the one at step {step} is wanted"
        )
    return reconstruct(tracked, TrackedAverage(sigma_rel, step))


def reconstruct(tracked: Sequence[TrackedAverage], target: TrackedAverage) -> Reconstruction:
    """The combination of tracked averages whose profile is nearest to a wanted one.

    The least-squares solution of A x = b, where A and b are inner products of profiles (arXiv
    2312.02696, section 3.2), in float64, with profiles scaled to length 1, over x that sum to 1.

    Args:
        tracked: averages at different steps or of different widths.
        target: the wanted average; tracked ones after its step are not used.

    Raises:
        RecipeError: a `sigma_rel` is impossible, or none was tracked up to the target's step.

    Example:
        >>> tracked = [TrackedAverage(s, t) for t in (100, 200) for s in (0.05, 0.10)]
        >>> reconstruct(tracked, TrackedAverage(0.10, 200)).coefficients
        (0.0, 0.0, 0.0, 1.0)
    """
    wanted = gamma_of(target.sigma_rel), float(target.step)
    # To the bit: the solution below would spread rounding over all tracked averages.
    if target in tracked:
        found = tracked.index(target)
        return Reconstruction(tuple(float(n == found) for n in range(len(tracked))), 0.0, target)
    used = [n for n, average in enumerate(tracked) if average.step <= target.step]
    if not used:
        first = min((average.step for average in tracked), default="?")
        raise RecipeError(
            f"no average was tracked up to step {target.step}: ask for step {first} or a later one"
        )
    profiles = [(gamma_of(tracked[n].sigma_rel), float(tracked[n].step)) for n in used]
    lengths = np.sqrt([overlap(*p, *p) for p in profiles])
    # Profiles of length 1: raw inner products span many orders of magnitude, which costs digits.
    gram = np.array([[overlap(*p, *q) for q in profiles] for p in profiles])
    gram /= np.outer(lengths, lengths)
    wanted_length = math.sqrt(overlap(*wanted, *wanted))
    shared = np.array([overlap(*p, *wanted) for p in profiles]) / (lengths * wanted_length)
    # Neighbouring profiles are nearly parallel; least squares drops what only rounding tells apart.
    solution = np.linalg.lstsq(gram, shared, rcond=_RANK)[0]
    coefficients = solution * wanted_length / lengths
    # The error is that of what will be averaged: after the coefficients were made to sum to 1.
    coefficients /= coefficients.sum()
    final = coefficients * lengths / wanted_length
    error = math.sqrt(max(0.0, 1.0 - 2.0 * final @ shared + final @ gram @ final))
    every = np.zeros(len(tracked))
    every[used] = coefficients
    return Reconstruction(tuple(map(float, every)), error, target)
