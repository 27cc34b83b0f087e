"""The layers of a model whose statistics a pass sets, and how they are set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import keras
import numpy as np

from ckptavg.batch_norm.gathering import UNCHANGED, MeasuredLayer
from ckptavg.batch_norm.report import BatchNormReport, shifts, warnings
from ckptavg.batch_norm.statistics import Statistics
from ckptavg.errors import DataError, ModelError, NonFiniteError
from ckptavg.models.model import batch_norm_layers, check_has_call, layer_path
from ckptavg.models.specs import as_model

Values = list[tuple[Any, np.ndarray]]
"""Variables and their new values, float64."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The BatchNormalization layers of a model; `Observer` measures those in training mode only.

    Attributes:
        layers: layers that may be set; everywhere else they go by their number in this list.
        frozen: paths of layers that may not be set, because their `trainable` is False.
    """

    layers: list[Any]
    frozen: tuple[str, ...]

    @classmethod
    def of(cls, model: keras.Model) -> Self:
        """Finds the layers of a model.

        Raises:
            ModelError: not a model of Keras 3, one without `call()`, or a layer has no statistics
                yet.
        """
        model = as_model(model)
        check_has_call(model)
        found = batch_norm_layers(model)
        layers = [layer for layer in found if layer.trainable]
        for layer in layers:
            if not layer.built:
                raise ModelError(
                    f"the layer '{layer_path(model, layer)}' is not built: call the model on data "
                    "first"
                )
        return cls(layers, tuple(layer.path for layer in found if not layer.trainable))

    @property
    def measured(self) -> list[MeasuredLayer]:
        """The layers as `Gathering` needs to know them."""
        return [MeasuredLayer(layer.path, layer.moving_mean.shape[0]) for layer in self.layers]

    def values(self, found: dict[int, Statistics]) -> Values:
        """The values of variables that follow from statistics, by the number of the layer."""
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
            samples: number of samples that they come from.
            batches: number of batches that they come from.
            mode: how they are defined; see `update_batch_norm`.
            doubts: further warnings for the report.

        Raises:
            DataError: there was no batch, or a value is beyond the range of its variable.
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
        # Training with renorm continues from these, so they must fit the mean and the variance.
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
        with np.errstate(over="ignore"):
            stored = value.astype(np.dtype(variable.dtype))  # Keras registers bfloat16 with numpy
        if not np.isfinite(stored).all():
            raise NonFiniteError(
                f"statistics of up to {np.abs(value).max():.3g} are beyond the range of "
                f"'{variable.path}', which is {variable.dtype}: {UNCHANGED}"
            )
    former = [(variable, keras.ops.convert_to_numpy(variable.value)) for variable, _ in values]
    try:
        for variable, value in values:
            variable.assign(value)
    except BaseException:  # Ctrl-C, too, must not leave a mixture
        for variable, value in former:
            variable.assign(value)
        raise
