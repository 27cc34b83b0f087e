"""The layers of a model whose statistics a pass sets, and the setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import keras
import ml_dtypes
import numpy as np

from ckptavg.batch_norm.report import BatchNormReport, shifts, warnings
from ckptavg.batch_norm.statistics import Statistics
from ckptavg.errors import DataError, ModelError, NonFiniteError
from ckptavg.models.model import batch_norm_layers

Values = list[tuple[Any, np.ndarray]]
"""Variables and what they are to hold, float64."""


@dataclass(frozen=True, slots=True)
class Targets:
    """BatchNormalization layers of a model.

    Attributes:
        layers: those that may be set; everything else calls them by their number in this list.
        frozen: paths of those that may not, because their `trainable` is False.
    """

    layers: list[Any]
    frozen: tuple[str, ...]

    @classmethod
    def of(cls, model: keras.Model) -> Self:
        """
        Raises:
            ModelError: it is no model of Keras 3, or a layer has no statistics yet.
        """
        if not isinstance(model, keras.Model):
            raise ModelError(
                f"the model is a {type(model).__module__}.{type(model).__qualname__}, but must be "
                "a keras.Model of Keras 3: for tf_keras, ckptavg.tf_keras.SWA re-estimates "
                "statistics at the end of fit"
            )
        found = batch_norm_layers(model)
        layers = [layer for layer in found if layer.trainable]
        for layer in layers:
            if not layer.built:
                raise ModelError(
                    f"the layer '{layer.path}' is not built: call the model on data first"
                )
        return cls(layers, tuple(layer.path for layer in found if not layer.trainable))

    def values(self, found: dict[int, Statistics]) -> Values:
        """What statistics, by the number of the layer, make of variables."""
        return [
            value
            for number, statistics in found.items()
            for value in _values(self.layers[number], statistics)
        ]

    def write(
        self,
        found: dict[int, Statistics],
        *,
        samples: int,
        batches: int,
        mode: str,
        doubts: Sequence[str] = (),
    ) -> BatchNormReport:
        """Sets the statistics of the layers that were found, all or none, and reports.

        Args:
            found: statistics by the number of the layer.
            samples: they come from.
            batches: they came in.
            mode: how they are defined.
            doubts: warnings for the report.

        Raises:
            DataError: there was no batch, or a value is beyond the dtype of its variable.
        """
        if self.layers and not batches:
            raise DataError("the data are empty: BatchNorm statistics need at least one batch")
        found = dict(sorted(found.items()))
        layers = [self.layers[number] for number in found]
        moved = tuple(shifts(zip(layers, found.values(), strict=True)))
        _assign(self.values(found))
        return BatchNormReport(
            layers=tuple(layer.path for layer in layers),
            frozen=self.frozen,
            unused=tuple(x.path for number, x in enumerate(self.layers) if number not in found),
            samples=samples,
            batches=batches,
            mode=mode,
            shifts=moved,
            warnings=(*doubts, *warnings(layers, samples)),
        )


def _values(layer: Any, statistics: Statistics) -> Values:
    mean, variance = statistics.mean, statistics.variance
    values = [(layer.moving_mean, mean), (layer.moving_variance, variance)]
    if getattr(layer, "renorm", False):
        deviation = np.sqrt(variance + layer.epsilon)
        values += [
            (layer.moving_stddev, deviation),
            (layer.renorm_mean, mean),
            (layer.renorm_stddev, deviation),
        ]
    # A mask makes Keras drop dimensions of size 1.
    return [(variable, value.reshape(tuple(variable.shape))) for variable, value in values]


def _assign(values: Values) -> None:
    for variable, value in values:
        largest = np.abs(value).max(initial=0.0)
        if largest > float(ml_dtypes.finfo(variable.dtype).max):
            raise NonFiniteError(
                f"statistics of {largest:.3g} do not fit '{variable.path}', which is "
                f"{variable.dtype}: the statistics were left as they were"
            )
    former = [(variable, keras.ops.convert_to_numpy(variable.value)) for variable, _ in values]
    try:
        for variable, value in values:
            variable.assign(value)
    except BaseException:
        for variable, value in former:
            variable.assign(value)
        raise
