"""The path of a training through its checkpoints: straight on, or about one place (pure)."""

import math
from dataclasses import dataclass

import numpy as np

_STRAIGHT, _BEYOND_CHANCE = 0.6, 1.5
"""Straightness from which a path is nearly one line, also as a multiple of a random walk's."""
_GROWTH = 1.25
"""How many times as long the longest weights may be as the shortest, of those about one place."""
_FEWEST = 4
"""The fewest checkpoints that show whether they stay about one place."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A path that leads on, so that the mean of its checkpoints lies behind its end.

    Attributes:
        straightness: which share of the way is displacement, from 0 to 1.
        norms: of the weights of the first and the last checkpoint.
        window: how many checkpoints at the end stay about one place; 0 if no 4 do.
    """

    straightness: float
    norms: tuple[float, float]
    window: int


def straightness(distances: np.ndarray) -> float:
    """The distance from end to end as a fraction of the way; NaN for a way of length 0.

    Args:
        distances: (K, K) between checkpoints, in the order of the path.
    """
    way = float(np.diagonal(distances, 1).sum())
    return float(distances[0, -1]) / way if way > 0 else math.nan


def is_one_line(straight: float, count: int) -> bool:
    """Whether a path of `count` checkpoints is nearly one line.

    See docs/decisions/0076-when-an-average-is-worse.md
    """
    return straight >= max(_STRAIGHT, _BEYOND_CHANCE * _chance(count))


def find_drift(distances: np.ndarray, norms: np.ndarray) -> Drift | None:
    """What to say of a path that is nearly one line, or whose norm grows or shrinks steadily.

    Args:
        distances: (K, K) between checkpoints, in the order of training.
        norms: (K,) of their weights.

    Returns:
        None if they stay about one place, or are fewer than 4.
    """
    count, share = len(norms), straightness(distances)
    if count < _FEWEST or not (is_one_line(share, count) or _grows(norms)):
        return None
    starts = range(1, count - _FEWEST + 1)
    start = next((n for n in starts if _stays(distances[n:, n:], norms[n:])), count)
    return Drift(share, (float(norms[0]), float(norms[-1])), count - start)


def _stays(distances: np.ndarray, norms: np.ndarray) -> bool:
    # A window that begins while the path still leads on is straighter than a random walk.
    return straightness(distances) < _chance(len(norms)) and not _grows(norms)


def _chance(count: int) -> float:
    """About the straightness of a random walk of as many steps."""
    return 1 / math.sqrt(max(1, count - 1))


def _grows(norms: np.ndarray) -> bool:
    first, last = sorted((float(norms[0]), float(norms[-1])))
    return last > _GROWTH * first
