"""Averages that do to the weights what a falling learning rate would have done (pure)."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from ckptavg.recipes.moving_averages import mean_distance
from ckptavg.recipes.registry import recipe

LINEAR, COSINE, SQRT = "linear-decay", "cosine-decay", "sqrt-decay"


def decay_schedule(
    positions: Sequence[float], multiplier: Callable[[float], float]
) -> tuple[float, ...]:
    """The coefficients that do to updates what a falling learning rate would have done.

    With the multiplier w_i on all updates between checkpoints i - 1 and i the average is
    theta_0 + sum w_i (theta_i - theta_(i-1)), so that c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k
    (Tian et al., WSM, arXiv 2507.17634). The rate falls from the first checkpoint on and would
    reach 0 one mean distance after the last: w_i = multiplier(i / (k + 1)) at equal distances, and
    a falling line is then the plain mean.

    Args:
        positions: of the checkpoints in training, rising.
        multiplier: of the learning rate, falling from 1 to 0 over times from 0 to 1.
    """
    start = positions[0]
    length = positions[-1] + mean_distance(positions) - start
    factors = [multiplier((position - start) / length) for position in positions]
    # No update led to the first checkpoint: its multiplier counts as 1, like all before it.
    edges = [1.0, *factors[1:], 0.0]
    return tuple(a - b for a, b in pairwise(edges))


@recipe(LINEAR, summary="as if the learning rate had decayed linearly to 0")
def linear_decay(positions: Sequence[float]) -> tuple[float, ...]:
    """`decay_schedule` of 1 - t."""
    return decay_schedule(positions, lambda time: 1.0 - time)


@recipe(COSINE, summary="as if the learning rate had decayed along half a cosine to 0")
def cosine_decay(positions: Sequence[float]) -> tuple[float, ...]:
    """`decay_schedule` of (1 + cos(pi t)) / 2."""
    return decay_schedule(positions, lambda time: (1.0 + math.cos(math.pi * time)) / 2.0)


@recipe(SQRT, summary="as if the learning rate had decayed by 1 - sqrt(t): fast, then slowly")
def sqrt_decay(positions: Sequence[float]) -> tuple[float, ...]:
    """`decay_schedule` of 1 - sqrt(t)."""
    return decay_schedule(positions, lambda time: 1.0 - math.sqrt(time))
