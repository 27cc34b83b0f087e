"""BatchNorm statistics of tf_keras models, gathered from batches of a forward pass."""

import math
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from ckptavg.batch_norm.gathering import Gathering, MeasuredLayer
from ckptavg.batch_norm.observer import Call, replaced_calls
from ckptavg.batch_norm.statistics import INPUTS
from ckptavg.batch_norm.step import Step
from ckptavg.errors import DataError
from ckptavg.models.batches import count_samples, input_batches
from ckptavg.models.keras2 import batch_norm_layers


class BatchNormPass2:
    """Does for a tf_keras model what `ckptavg.batch_norm.BatchNormPass` does for Keras 3.

    The layers' own training mode runs, because Keras 2 has no scope that protects variables;
    `finish` therefore restores all weights but the statistics.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers = [layer for layer in batch_norm_layers(model) if layer.trainable]
        self._kept: list[np.ndarray] = []
        self._gathering = Gathering(
            _Step(model, self._layers),
            [MeasuredLayer(layer.name, layer.moving_mean.shape[0]) for layer in self._layers],
        )

    def add(self, inputs: Any) -> Any:
        """Runs the model forward in training mode; returns its outputs, per replica."""
        if not self._gathering.batches:
            self._kept = self._model.get_weights()
        return self._gathering.add(inputs)

    def run(self, data: Any) -> None:
        """Adds all batches of live data, and finishes."""
        for inputs in input_batches(data):
            self.add(inputs)
        self.finish()

    def finish(self) -> None:
        """Sets the statistics of all layers that were called, and nothing else.

        Raises:
            DataError: there was no batch, or one holds NaN or infinity or brought it to a layer.
        """
        statistics = self._gathering.statistics()
        if not self._gathering.batches:
            raise DataError("the data are empty: BatchNorm statistics need at least one batch")
        self._model.set_weights(self._kept)
        for number, found in statistics.items():
            self._layers[number].moving_mean.assign(found.mean)
            self._layers[number].moving_variance.assign(found.variance)


class _Step(Step):
    """A compiled forward pass over the replicas of the model's strategy.

    Its moments are TensorFlow's own operations, because Keras 3 may run on another backend here.
    """

    def __init__(self, model: Any, layers: list[Any]) -> None:
        self._layers = layers
        self.takes = tf.nest.flatten(model.inputs or [])
        self._strategy = model.distribute_strategy
        self._notes = threading.local()  # replicas run in threads of their own

        def replica(inputs: Any) -> tuple[Any, Any]:
            self._notes.found = []
            outputs = model(inputs, training=True)
            found, self._notes.found = self._notes.found, None
            return outputs, tf.concat([_column(inputs), *found], 1)

        self._run = tf.function(
            lambda inputs: self._strategy.run(replica, (inputs,)), autograph=False
        )

    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        with replaced_calls(self._layers, self._noting):
            outputs, columns = self._run(inputs)
        return outputs, [
            column.numpy() for column in self._strategy.experimental_local_results(columns)
        ]

    def count(self, inputs: Any) -> int:
        first = tf.nest.flatten(inputs)[0]
        return sum(map(count_samples, self._strategy.experimental_local_results(first)))

    def is_exhausted(self, error: Exception) -> bool:
        return isinstance(error, tf.errors.ResourceExhaustedError)

    def _noting(self, number: int, layer: Any) -> Call:
        call = layer.call

        def noting_call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            found = getattr(self._notes, "found", None)
            if found is not None and training is not False:
                found.append(_moments(number, inputs, mask, layer.axis))
            masks = {} if mask is None else {"mask": mask}
            return call(inputs, training=training, **masks)

        return noting_call


def _column(inputs: Any) -> Any:
    """The column for `Gathering` that says whether the inputs are finite."""
    parts = tf.nest.flatten(inputs, expand_composites=True)
    finite = tf.constant(True)
    for part in parts:
        if part.dtype.is_floating:
            finite &= tf.reduce_all(tf.math.is_finite(part))
    column = (INPUTS, 1, tf.where(finite, 0.0, math.nan), 0)
    return tf.stack([tf.reshape(tf.cast(value, tf.float64), (1,)) for value in column])


def _moments(number: int, inputs: Any, mask: Any, axis: Any) -> Any:
    """A column for `Gathering` for each channel: number, count, mean, variance."""
    values = tf.cast(inputs, tf.float64)
    channels = axis[0] if isinstance(axis, list | tuple) else axis
    axes = [other for other in range(values.shape.rank) if other != channels % values.shape.rank]
    weights = tf.ones_like(values)
    if mask is not None:
        weights *= tf.cast(mask, tf.float64)[..., None]
    count = tf.reduce_sum(weights, axes)
    divisor = tf.maximum(count, 1.0)
    shape = [-1 if other not in axes else 1 for other in range(values.shape.rank)]
    mean = tf.reduce_sum(tf.where(weights > 0, values, 0.0), axes) / divisor
    deviations = tf.where(weights > 0, tf.square(values - tf.reshape(mean, shape)), 0.0)
    variance = tf.reduce_sum(deviations, axes) / divisor
    return tf.stack([tf.fill(tf.shape(mean), tf.cast(number, tf.float64)), count, mean, variance])
