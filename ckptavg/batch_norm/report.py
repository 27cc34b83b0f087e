"""What a BatchNorm pass did."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ckptavg.batch_norm.options import BATCH
from ckptavg.batch_norm.statistics import Statistics

_WORST_ERROR = 0.1
"""Expected error of the worst mean of a layer, in standard deviations, above which a pass warns."""


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the statistics of a layer moved, in standard deviations of the new ones.

    Attributes:
        layer: path of the layer.
        mean: root mean square over the channels of (new mean - former mean) / new deviation, where
            the deviation is sqrt(variance + epsilon), by which the layer divides.
        deviation: root mean square over the channels of (new - former deviation) / new deviation.
    """

    layer: str
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class BatchNormReport:
    """What a BatchNorm pass did.

    Attributes:
        layers: paths of the layers whose statistics were set.
        frozen: paths of layers that kept theirs because their `trainable` is False.
        unused: paths of layers that kept theirs because the forward pass did not reach them, or the
            model calls them with `training=False`.
        samples: number of samples seen.
        batches: number of batches seen.
        mode: how the statistics are defined: the `bn_mode` of `update_batch_norm`.
        shifts: how far the statistics of each of `layers` moved.
        warnings: what makes the statistics doubtful, in words.
    """

    layers: tuple[str, ...]
    frozen: tuple[str, ...]
    unused: tuple[str, ...]
    samples: int
    batches: int
    mode: str = BATCH
    shifts: tuple[Shift, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def facts(self) -> str:
        """What was done, in a few words, such as `2 BatchNorm layers from 96 samples (batch)`."""
        layers = f"{len(self.layers)} BatchNorm layer" + ("s" if len(self.layers) != 1 else "")
        return f"{layers} from {self.samples:,} samples ({self.mode})"


def shifts(layers: Iterable[tuple[Any, Statistics]]) -> Iterator[Shift]:
    """How far each layer will move, from its present statistics to those that it is paired with."""
    for layer, statistics in layers:
        mean, variance = (
            keras.ops.convert_to_numpy(variable.value).astype(np.float64)
            for variable in (layer.moving_mean, layer.moving_variance)
        )
        deviation = np.sqrt(statistics.variance + layer.epsilon)
        with np.errstate(invalid="ignore"):  # the former statistics may be NaN or infinite
            former = np.sqrt(variance + layer.epsilon)
            yield Shift(
                layer.path,
                _root_mean_square((statistics.mean - mean) / deviation),
                _root_mean_square((deviation - former) / deviation),
            )


def warnings(layers: Sequence[Any], samples: int) -> Iterator[str]:
    """Warns when there were too few samples for the number of channels.

    The mean of n samples is off by a normal error of 1/sqrt(n) standard deviations, the worst of C
    channels by sqrt(2 ln C / n). Positions within a sample depend on each other and do not count.
    """
    if not layers:
        return
    widest = max(layers, key=lambda layer: layer.moving_mean.shape[0])
    channels = widest.moving_mean.shape[0]
    enough = math.ceil(2 * math.log(max(channels, 2)) / _WORST_ERROR**2)
    if samples < enough:
        error = math.sqrt(2 * math.log(max(channels, 2)) / samples)
        yield (
            f"{samples:,} samples are few for the {channels:,} channels of '{widest.path}': the "
            f"worst mean may be off by {error:.3g} standard deviations; with {enough:,} samples or "
            f"more that is {_WORST_ERROR} at most"
        )


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
