"""Means and variances pooled over calls and batches: pure numpy, in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

INPUTS = -1
"""Number, in the place of a layer's, of a column whose mean is NaN if the inputs are not finite."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a row of channels.

    Attributes:
        count: how many values entered each channel, float64.
        mean: float64.
        variance: float64, biased: the mean of the squared deviations.
    """

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


Merge = Callable[[Statistics, Statistics], Statistics]
"""Statistics of two sets of values as one."""


def pooled(one: Statistics, two: Statistics) -> Statistics:
    """The statistics of all values of both; what has the count 0 has no say.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979, equation 2.1.
    """
    count = one.count + two.count
    share = two.count / np.maximum(count, 1.0)
    shift = two.mean - one.mean
    mean = one.mean + shift * share
    variance = (
        one.variance + (two.variance - one.variance) * share + shift**2 * (share * (1.0 - share))
    )
    return Statistics(count, mean, variance)


def averaged(one: Statistics, two: Statistics) -> Statistics:
    """Means of means and of unbiased variances, each batch with weight 1, as PyTorch has it.

    `torch.nn.BatchNorm2d` with `momentum=None`, which `torch.optim.swa_utils.update_bn` sets. The
    variance between the batches' means is lost, and a ragged last batch weighs as much as any.
    """
    count = one.count + two.count
    share = two.count / count
    return Statistics(
        count,
        one.mean + (two.mean - one.mean) * share,
        one.variance + (two.variance - one.variance) * share,
    )


def as_one_of_many(batch: Statistics) -> Statistics:
    """What a batch contributes to `averaged`; of a single value the variance is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unbiased = np.where(
            batch.count > 1, batch.variance * batch.count / (batch.count - 1.0), np.inf
        )
    return Statistics(np.ones_like(batch.count), batch.mean, unbiased)


class Pool:
    """Everything that the calls of some layers met, batch after batch.

    A batch comes as one array of shape (4, channels), so that it takes one transfer from the
    device: of each channel of each call the number of the layer, the count, the mean and the
    variance.
    """

    def __init__(self, merge: Merge = pooled) -> None:
        self._merge = merge
        # By the order of the calls, which a model may change from batch to batch.
        self._calls: dict[bytes, tuple[np.ndarray, Statistics]] = {}

    def add(self, columns: np.ndarray) -> None:
        numbers, *parts = columns.astype(np.float64)
        batch = Statistics(*parts)
        if self._merge is averaged:
            batch = as_one_of_many(batch)
        order = numbers.tobytes()
        if order in self._calls:
            batch = self._merge(self._calls[order][1], batch)
        self._calls[order] = (numbers, batch)

    def by_layer(self, channels: Callable[[int], int]) -> Iterator[tuple[int, Statistics]]:
        """Number and statistics of every layer that was called, in the order of first calls.

        Args:
            channels: the number of channels of a layer, by its number.
        """
        layers: dict[int, Statistics] = {}
        for numbers, calls in self._calls.values():
            for number in map(int, dict.fromkeys(numbers)):
                of_layer = numbers == number
                rows = (
                    part[of_layer].reshape(-1, channels(number))
                    for part in (calls.count, calls.mean, calls.variance)
                )
                for row in zip(*rows, strict=True):
                    call = Statistics(*row)
                    known = layers.get(number)
                    layers[number] = call if known is None else self._merge(known, call)
        yield from layers.items()
