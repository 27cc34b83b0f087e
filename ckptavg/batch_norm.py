"""The BatchNorm forward pass: statistics of a model re-estimated from data, exactly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from ckptavg.batches import Progress, count_samples, input_batches
from ckptavg.errors import DataError, ModelError, ResourceError, first_line
from ckptavg.keras_models import batch_norm_layers

_SEED_NAME = "seed_generator_state"
"""The name that Keras gives the variable of every random generator."""


@dataclass(frozen=True, slots=True)
class BatchNormReport:
    """What a BatchNorm pass did.

    Attributes:
        layers: paths of the layers whose statistics were set.
        frozen: paths of layers left alone because their `trainable` is False.
        unused: paths of layers left alone because the forward pass did not reach them, or the model
            calls them with `training=False`.
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
    former statistics. Layers that are frozen, or that the model calls with `training=False`, keep
    and use the statistics that they have. Nothing else changes: the pass runs in a
    `keras.StatelessScope`, so that no variable is written until all statistics are known; after an
    error all are as they were. Random layers, such as dropout and augmentation, draw anew for every
    batch, from the seeds that they hold, which stay.

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
    with _observed(layers) as observer:
        step = _Step(model, layers, observer)
        for index, inputs in enumerate(input_batches(data, steps=steps)):
            for number, mean, variance, count in step(inputs, index):
                _check_finite(layers[number], mean, variance, index)
                moments.setdefault(number, _Moments()).add(mean, variance, count)
            samples += count_samples(inputs)
            batches += 1
            if progress is not None:
                progress(1)
    if not batches:
        raise DataError("the data are empty: BatchNorm statistics need at least one batch")
    for number, pooled in moments.items():
        if pooled.count == 0:
            raise DataError(
                f"all positions that reach the layer '{layers[number].path}' are masked"
            )
    for number, pooled in moments.items():
        layers[number].moving_mean.assign(pooled.mean)
        layers[number].moving_variance.assign(pooled.variance)
    return BatchNormReport(
        layers=tuple(layers[number].path for number in sorted(moments)),
        frozen=frozen,
        unused=tuple(layer.path for n, layer in enumerate(layers) if n not in moments),
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


class _Observer:
    """Notes the batch statistics of every training-mode call of some layers during a forward pass.

    Attributes:
        notes: of each call: number of the layer, mean, variance, count of values; on the device.
        scope: the scope that the forward pass runs in.
    """

    def __init__(self) -> None:
        self.notes: list[tuple[int, Any, Any, Any]] = []
        self.scope: keras.StatelessScope | None = None

    @contextmanager
    def watching(self, scope: keras.StatelessScope) -> Iterator[None]:
        self.notes, self.scope = [], scope
        try:
            with scope:
                yield
        finally:
            self.scope = None

    def watched(self, number: int, layer: Any) -> Callable:
        """The layer's `call`, noting its statistics on the way."""
        call = layer.call
        variables = (layer.moving_mean, layer.moving_variance)

        def watched_call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            scope = self.scope
            if scope is None or not training:
                return call(inputs, training=training, mask=mask)
            former = [variable.value for variable in variables]
            for variable in variables:  # 0 x momentum must not keep a NaN of the former statistics
                scope.add_update((variable, ops.zeros(variable.shape, variable.dtype)))
            outputs = call(inputs, training=training, mask=mask)
            # With momentum 0 they are those of the batch alone.
            mean, variance = (
                ops.reshape(variable.value, tuple(variable.shape)) for variable in variables
            )
            self.notes.append((number, mean, variance, _count(inputs, mask, layer.axis)))
            for variable, value in zip(variables, former, strict=True):
                scope.add_update((variable, value))  # for a later call in inference mode
            return outputs

        return watched_call


@contextmanager
def _observed(layers: list[Any]) -> Iterator[_Observer]:
    """Lets an observer watch the layers, with momentum 0, until the exit."""
    observer = _Observer()
    momenta = [layer.momentum for layer in layers]
    try:
        for number, layer in enumerate(layers):
            layer.momentum = 0.0
            # Past Keras' own __setattr__, which would track it.
            object.__setattr__(layer, "call", observer.watched(number, layer))
        yield observer
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


class _Step:
    """A compiled forward pass that gives the statistics of a batch and changes no variable.

    The states of random generators are handed from batch to batch beside the model, so that each
    batch draws anew and the model keeps its own.
    """

    def __init__(self, model: keras.Model, layers: list[Any], observer: _Observer) -> None:
        import tensorflow as tf

        seeds = [v for v in model.non_trainable_variables if v.name == _SEED_NAME]

        def forward(inputs: Any, states: list[Any]) -> tuple[list[Any], list[Any]]:
            graph = tf.compat.v1.get_default_graph()
            scope = keras.StatelessScope(list(zip(seeds, states, strict=True)))
            with observer.watching(scope):
                model(inputs, training=True)
            for number, mean, *_ in observer.notes:
                if mean.graph is not graph:
                    raise _HiddenCallError(number)
            states = [scope.get_current_value(seed) for seed in seeds]
            return observer.notes, states

        self._layers = layers
        # Without autograph, as Keras itself traces a training step.
        self._forward = tf.function(forward, autograph=False, reduce_retracing=True)
        self._states = [seed.value for seed in seeds]
        self._exhausted = tf.errors.ResourceExhaustedError

    def __call__(self, inputs: Any, index: int) -> list[tuple[int, np.ndarray, np.ndarray, float]]:
        """Number of the layer, mean, variance and count of every call on batch `index`."""
        try:
            inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
            notes, self._states = self._forward(inputs, self._states)
        except self._exhausted as error:
            raise ResourceError(
                f"memory does not suffice for batch {index} of the data: use smaller batches"
            ) from error
        except _HiddenCallError as error:
            path = self._layers[error.number].path
            raise ModelError(
                f"the layer '{path}' is called inside a loop or a function of its own "
                "(a tf.function, an RNN cell), where its statistics cannot be seen"
            ) from error
        except Exception as error:
            raise DataError(
                f"the model rejects batch {index} of the data: {first_line(error)}"
            ) from error
        return [
            (int(number), _wide(mean), _wide(variance), float(count))
            for number, mean, variance, count in notes
        ]


class _HiddenCallError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _wide(values: Any) -> np.ndarray:
    return ops.convert_to_numpy(values).astype(np.float64)


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
