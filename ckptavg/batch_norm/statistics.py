"""Means and variances pooled over calls and batches: pure numpy, in float64."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

INPUTS = -1
"""Stands in place of a layer's number in the column that says whether the inputs are finite: its
mean is NaN if they are not."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a row of channels.

    Attributes:
        count: float64, how many values entered each channel.
        mean: float64.
        variance: float64, biased: the mean of the squared deviations.
    """

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


Merge = Callable[[Statistics, Statistics], Statistics]
"""Combines the statistics of two sets of values."""


def pooled(one: Statistics, two: Statistics) -> Statistics:
    """The statistics of all values of both; channels with count 0 do not contribute.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979, equation 2.1.
    """
    count = one.count + two.count
    share = two.count / np.maximum(count, 1.0)  # 0 / 1 where all positions were masked
    shift = two.mean - one.mean
    mean = one.mean + shift * share
    variance = (
        one.variance + (two.variance - one.variance) * share + shift**2 * (share * (1.0 - share))
    )
    return Statistics(count, mean, variance)


def averaged(one: Statistics, two: Statistics) -> Statistics:
    """Means of means and of unbiased variances, with equal weight for each batch, as in PyTorch.

    This is `torch.nn.BatchNorm2d` with `momentum=None`, which `torch.optim.swa_utils.update_bn`
    sets. It ignores the variance between the means of batches, and a short last batch weighs as
    much as any other.
    """
    count = one.count + two.count
    share = two.count / count
    return Statistics(
        count,
        one.mean + (two.mean - one.mean) * share,
        one.variance + (two.variance - one.variance) * share,
    )


def as_one_of_many(batch: Statistics) -> Statistics:
    """What a batch contributes to `averaged`; the variance of a single value is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unbiased = np.where(
            batch.count > 1, batch.variance * batch.count / (batch.count - 1.0), np.inf
        )
    return Statistics(np.ones_like(batch.count), batch.mean, unbiased)


class Pool:
    """Everything that the calls of some layers met, batch after batch.

    A batch comes as one array of shape (4, channels), so that it takes one transfer from the
    device: for each channel of each call the number of the layer, the count, the mean and the
    variance.
    """

    def __init__(self, merge: Merge = pooled) -> None:
        self._merge = merge
        # Batches whose calls come in the same order are merged column by column, all layers at
        # once; a model may call its layers differently from batch to batch.
        self._calls: dict[bytes, tuple[np.ndarray, Statistics]] = {}

    def add(self, columns: np.ndarray) -> None:
        """Merges the columns of a batch."""
        numbers, *parts = columns.astype(np.float64)
        batch = Statistics(*parts)
        if self._merge is averaged:
            batch = as_one_of_many(batch)
        order = numbers.tobytes()
        if order in self._calls:
            batch = self._merge(self._calls[order][1], batch)
        self._calls[order] = (numbers, batch)

    def by_layer(self, channels: Sequence[int]) -> Iterator[tuple[int, Statistics]]:
        """Yields number and statistics of every layer that was called, in order of first calls.

        Args:
            channels: the number of channels of each layer.
        """
        layers: dict[int, Statistics] = {}
        for numbers, calls in self._calls.values():
            for number in map(int, dict.fromkeys(numbers)):
                of_layer = numbers == number
                # A layer may be called several times in a batch: one row for each call.
                rows = (
                    part[of_layer].reshape(-1, channels[number])
                    for part in (calls.count, calls.mean, calls.variance)
                )
                for row in zip(*rows, strict=True):
                    call = Statistics(*row)
                    known = layers.get(number)
                    layers[number] = call if known is None else self._merge(known, call)
        yield from layers.items()
