"""The plain mean and moving averages: each checkpoint stands for a share of time (pure).

Checkpoints at equal distances get the textbook's coefficients.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from ckptavg.errors import RecipeError
from ckptavg.recipes.power_profiles import SIGMA_REL, gamma_of
from ckptavg.recipes.registry import Parameter, recipe

UNIFORM, EMA, POWER_EMA = "uniform", "ema", "power-ema"


def check_decay(decay: float) -> None:
    """Makes sure that the decay of a moving average lies between 0 and 1.

    Raises:
        RecipeError: it does not.
    """
    if not (isinstance(decay, int | float) and 0 < decay < 1):
        raise RecipeError(f"decay is {decay!r:.40}, but must lie between 0 and 1, such as 0.9")


DECAY = Parameter(
    "decay",
    "Factor by which coefficients fall from one checkpoint to the one before it, such as 0.9.",
    "D",
    example=0.8,
    check=check_decay,
)


def uniform(count: int) -> tuple[float, ...]:
    """The plain mean of `count` checkpoints, as in SWA (Izmailov et al., arXiv 1803.05407)."""
    return (1.0 / count,) * count


@recipe(UNIFORM, summary="the plain mean, as in SWA", distinct=False)
def _uniform(positions: Sequence[float]) -> tuple[float, ...]:
    return uniform(len(positions))


@recipe(
    EMA,
    summary="an exponential moving average: falls by --decay with each checkpoint further back",
    parameters=[DECAY],
)
def ema(positions: Sequence[float], decay: float) -> tuple[float, ...]:
    """The bias-corrected exponential moving average over checkpoints.

    At equal distances c_i = (1 - decay) decay^(k - i) / (1 - decay^k): what the update
    average <- decay * average + (1 - decay) * checkpoint gives when it starts from 0, over its sum
    of coefficients. At other distances a checkpoint stands for the time since the one before it.

    Args:
        positions: of the checkpoints in training, rising.
        decay: over the mean distance of checkpoints. One of d for each optimizer step is d^n
            where checkpoints are n steps apart.

    Raises:
        RecipeError: `decay` is not between 0 and 1.
    """
    check_decay(decay)
    distance, end = mean_distance(positions), positions[-1]
    return _shares(positions, lambda time: decay ** ((end - time) / distance))


@recipe(
    POWER_EMA,
    summary="grows as a power of time; --sigma-rel is its width as a fraction of the training",
    parameters=[SIGMA_REL],
)
def power_ema(positions: Sequence[float], sigma_rel: float) -> tuple[float, ...]:
    """The power-function moving average (Karras et al., arXiv 2312.02696, section 3.1).

    c_i = (t_i / T)^(gamma + 1) - (t_(i-1) / T)^(gamma + 1), the profile's integral over the time
    since the checkpoint before; made to sum to 1 where the first one comes late in training.

    Args:
        positions: of the checkpoints, counted from the beginning of training, rising.
        sigma_rel: relative standard deviation of the profile; see `gamma_of`.

    Raises:
        RecipeError: `sigma_rel` is not between 0 and 0.289.
    """
    power, end = gamma_of(sigma_rel) + 1, positions[-1]
    # Time before the training began has no share, and its power would not be a real number.
    return _shares(positions, lambda time: (time / end) ** power if time > 0 else 0.0)


def mean_distance(positions: Sequence[float]) -> float:
    """The mean distance of neighbouring checkpoints; 1 for a single one."""
    if len(positions) == 1:
        return 1.0
    return (positions[-1] - positions[0]) / (len(positions) - 1)


def _shares(positions: Sequence[float], until: Callable[[float], float]) -> tuple[float, ...]:
    """What the time since the checkpoint before adds to a cumulative profile, for each checkpoint.

    The time of the first begins one mean distance before it. No checkpoint stands for what came
    earlier, and the shares are made to sum to 1 without it. See
    docs/decisions/0036-recipes-are-shares-of-time.md.
    """
    edges = [until(positions[0] - mean_distance(positions)), *map(until, positions)]
    shares = [after - before for before, after in pairwise(edges)]
    total = math.fsum(shares)
    return tuple(share / total for share in shares)
