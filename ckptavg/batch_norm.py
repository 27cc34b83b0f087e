"""The BatchNorm forward pass: statistics of a model re-estimated from data, exactly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from ckptavg.batches import Progress, count_samples, input_batches
from ckptavg.errors import DataError, ModelError
from ckptavg.keras_models import batch_norm_layers, first_line


@dataclass(frozen=True, slots=True)
class BatchNormReport:
    """What a BatchNorm pass did.

    Attributes:
        layers: paths of the layers whose statistics were set.
        frozen: paths of layers left alone because their `trainable` is False.
        unused: paths of layers left alone because the forward pass did not reach them.
        samples: samples seen.
        batches: batches seen.
    """

    layers: tuple[str, ...]
    frozen: tuple[str, ...]
    unused: tuple[str, ...]
    samples: int
    batches: int


def update_batch_norm(
    model: keras.Model,
    data: Any,
    *,
    steps: int | None = None,
    progress: Progress | None = None,
) -> BatchNormReport:
    """Sets BatchNorm statistics to those of `data` under the model's present weights.

    The averaged network has other activations than any network it was averaged from, so that the
    averaged statistics are wrong for it (Izmailov et al., arXiv 1803.05407, section 3.2). This
    runs the model forward in training mode over all batches, as training saw them, and pools each
    layer's mean and (biased) variance over all of them in float64 by their true counts: batch x
    positions, or the number of unmasked ones. It does not depend on the layers' momentum or
    former statistics. Nothing else changes: the pass runs in a `keras.StatelessScope`, so that no
    variable is written until all statistics are known; after an error all are as they were.

    Args:
        model: a built Keras model on the TensorFlow backend.
        data: a `tf.data.Dataset` or other iterable of batches, a `keras.utils.PyDataset`, an array
            `x`, or a tuple `(x, y)`; targets are not used.
        steps: number of batches to see; all by default.
        progress: called with the number of new batches as they have been seen.

    Returns:
        What was done; a model without BatchNorm is left as it is, at once.

    Raises:
        DataError: the data are empty, cannot be read, or the model rejects them, or NaN or infinity
            reached a layer; the message names the batch.
        ModelError: the backend or a kind of layer is not supported.

    Example:
        >>> model.load_weights("swa.weights.h5")
        >>> ckptavg.update_batch_norm(model, train_dataset)
    """
    found = batch_norm_layers(model)
    layers = [layer for layer in found if layer.trainable]
    frozen = tuple(layer.path for layer in found if not layer.trainable)
    if not layers:
        return BatchNormReport((), frozen, (), 0, 0)
    _check_supported(layers)
    moments: dict[int, _Moments] = {}
    samples = batches = 0
    with _observed(layers) as observations:
        step = _compiled_step(model, layers, observations)
        for index, inputs in enumerate(input_batches(data, steps=steps)):
            for number, mean, variance, count in _run(step, inputs, index):
                _check_finite(layers[number], mean, variance, index)
                moments.setdefault(number, _Moments()).add(mean, variance, count)
            samples += count_samples(inputs)
            batches += 1
            if progress is not None:
                progress(1)
    if not batches:
        raise DataError("the data are empty: BatchNorm statistics need at least one batch")
    used = [layer for number, layer in enumerate(layers) if number in moments]
    for number, layer in enumerate(layers):
        if number in moments:
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(moments[number].mean.reshape(shape))
            layer.moving_variance.assign(moments[number].variance.reshape(shape))
    return BatchNormReport(
        layers=tuple(layer.path for layer in used),
        frozen=frozen,
        unused=tuple(layer.path for layer in layers if layer not in used),
        samples=samples,
        batches=batches,
    )


class _Moments:
    """Mean and variance of everything added so far, pooled in float64.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.mean: np.ndarray = np.float64(0.0)
        self._squares: np.ndarray = np.float64(0.0)

    def add(self, mean: np.ndarray, variance: np.ndarray, count: float) -> None:
        if count == 0:  # a batch that is masked as a whole
            return
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self._squares = self._squares + variance * count + shift**2 * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        return self._squares / max(self.count, 1.0)


@dataclass(slots=True)
class _Observation:
    """Statistics of one call of one layer, on one batch, on the device."""

    number: int
    mean: Any
    variance: Any
    count: Any


@contextmanager
def _observed(layers: list[Any]) -> Iterator[list[_Observation]]:
    """Makes layers note the statistics of every call, and forget their momentum, until the exit.

    With momentum 0 the moving statistics after a call are those of its batch alone.
    """
    observations: list[_Observation] = []
    momenta = [layer.momentum for layer in layers]

    def noting(number: int, layer: Any, call: Callable) -> Callable:
        def noting_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            outputs = call(inputs, *args, **kwargs)
            mask = kwargs.get("mask")
            observations.append(
                _Observation(
                    number,
                    ops.reshape(layer.moving_mean.value, (-1,)),
                    ops.reshape(layer.moving_variance.value, (-1,)),
                    _count(inputs, mask, layer.axis),
                )
            )
            return outputs

        return noting_call

    try:
        for number, layer in enumerate(layers):
            layer.momentum = 0.0
            # Past Keras' own __setattr__, which would track it.
            object.__setattr__(layer, "call", noting(number, layer, layer.call))
        yield observations
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.__dict__.pop("call", None)


def _count(inputs: Any, mask: Any, axis: int) -> Any:
    """How many values entered each channel's statistics."""
    if mask is not None:
        return ops.sum(ops.cast(mask, "int64"))
    shape = list(ops.shape(inputs))
    del shape[axis]
    count = 1
    for size in shape:
        count = count * ops.cast(size, "int64")
    return count


def _compiled_step(
    model: keras.Model, layers: list[Any], observations: list[_Observation]
) -> Callable[[Any], list[tuple[Any, ...]]]:
    """A graph of one forward pass that returns the observations and changes no variable."""
    import tensorflow as tf

    numbers: list[int] = []

    def forward(inputs: Any) -> list[tuple[Any, Any, Any]]:
        observations.clear()
        # 0 x momentum must not keep a NaN that the former statistics may hold.
        clean = [
            (variable, ops.zeros(variable.shape, variable.dtype))
            for layer in layers
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        with keras.StatelessScope(state_mapping=clean):
            model(inputs, training=True)
        numbers[:] = [o.number for o in observations]
        return [(o.mean, o.variance, o.count) for o in observations]

    graph = tf.function(forward, reduce_retracing=True)

    def step(inputs: Any) -> list[tuple[Any, ...]]:
        results = graph(inputs)
        return [(number, *result) for number, result in zip(numbers, results, strict=True)]

    return step


def _run(step: Callable, inputs: Any, index: int) -> Iterator[tuple[int, np.ndarray, Any, float]]:
    try:
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        results = step(inputs)
    except Exception as error:
        raise DataError(
            f"the model rejects batch {index} of the data: {first_line(error)}"
        ) from error
    for number, mean, variance, count in results:
        yield (
            number,
            ops.convert_to_numpy(mean).astype(np.float64),
            ops.convert_to_numpy(variance).astype(np.float64),
            float(count),
        )


def _check_finite(layer: Any, mean: np.ndarray, variance: np.ndarray, index: int) -> None:
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        raise DataError(
            f"batch {index} of the data brought NaN or infinity to the layer '{layer.path}': "
            "the statistics were left as they were"
        )


def _check_supported(layers: list[Any]) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            f"the BatchNorm pass runs on the TensorFlow backend, but Keras runs on "
            f"{keras.backend.backend()}: set KERAS_BACKEND=tensorflow"
        )
    for layer in layers:
        if not layer.built:
            raise ModelError(f"the layer '{layer.path}' is not built: call the model on data first")
        if getattr(layer, "renorm", False):
            raise ModelError(f"the layer '{layer.path}' uses renorm, which is not supported")
