"""Layers that let their inputs be measured while a model runs forward."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
from keras import ops

from ckptavg.batch_norm.moments import Moments, batch_moments, wide_dtype
from ckptavg.batch_norm.statistics import INPUTS

Notes = list[tuple[int, Moments]]
"""For each call that was measured: the number of the layer, and what it met."""

Call = Callable[..., Any]
"""The `call` of a layer."""


@contextmanager
def replaced_calls(
    layers: Sequence[Any], replacement: Callable[[int, Any], Call]
) -> Iterator[None]:
    """Replaces the `call` of layers until the exit.

    Args:
        layers: the layers, of Keras 3 or Keras 2.
        replacement: makes the new `call` from a layer's number and the layer.
    """
    try:
        for number, layer in enumerate(layers):
            # Keras' own __setattr__ would track the function as a part of the layer.
            object.__setattr__(layer, "call", replacement(number, layer))
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("call", None)


class Observer:
    """Notes the moments of every training-mode call of some layers during a forward pass.

    A watched call does not run the layer's own training mode. It measures the inputs, then runs the
    layer's inference mode with these statistics in place of the moving ones. The outputs are those
    of training, nothing is measured twice, and neither momentum nor renorm nor the former moving
    statistics matter.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._running = threading.local()  # replicas of a strategy run in threads of their own

    def attached(self) -> AbstractContextManager[None]:
        """Watches the layers until the exit."""
        return replaced_calls(self._layers, self._watched)

    @contextmanager
    def watching(self, scope: keras.StatelessScope, training: bool) -> Iterator[Notes]:
        """Yields a list that fills with notes while the model runs.

        Args:
            scope: the scope in which the forward pass runs.
            training: True measures only calls in training mode, False measures all.
        """
        notes: Notes = []
        running = self._running
        running.scope, running.notes, running.training = scope, notes, training
        try:
            with scope:
                yield notes
        finally:
            running.scope = None

    def _watched(self, number: int, layer: Any) -> Call:
        call = layer.call

        def watched_call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            masks = {} if mask is None else {"mask": mask}
            running = self._running
            scope = getattr(running, "scope", None)
            if scope is None or (running.training and not training):
                return call(inputs, training=training, **masks)
            moments = batch_moments(inputs, mask, layer.axis)
            running.notes.append((number, moments))
            if not running.training:
                return call(inputs, training=training, **masks)
            if getattr(layer, "synchronized", False):
                moments = _over_replicas(moments)
            # docs/decisions/0011-a-watched-layer-is-measured-then-runs-in-inference-mode.md
            with _in_place_of_moving_ones(scope, layer, moments):
                return call(inputs, training=False, **masks)

        return watched_call


def as_columns(notes: Notes, inputs: Iterable[Any]) -> Any:
    """Notes as one tensor of columns for `Gathering`, preceded by one column for the inputs.

    Args:
        notes: those of a batch.
        inputs: all tensors that the model was given.
    """
    calls = [
        ops.stack([ops.full_like(moments.count, number), *moments]) for number, moments in notes
    ]
    return ops.concatenate([_column(inputs), *calls], axis=1)


def _column(inputs: Iterable[Any]) -> Any:
    """Says whether all inputs are finite.

    The layers cannot tell: what a relu or a maximum makes of NaN or infinity may be any number.
    """
    finite = ops.cast(1, "bool")
    for part in inputs:
        if keras.backend.is_float_dtype(part.dtype):
            finite = ops.logical_and(finite, ops.all(ops.isfinite(part)))
    column = (INPUTS, 1, ops.where(finite, 0.0, math.nan), 0)
    return ops.stack([ops.reshape(ops.cast(value, wide_dtype()), (1,)) for value in column])


@contextmanager
def _in_place_of_moving_ones(
    scope: keras.StatelessScope, layer: Any, moments: Moments
) -> Iterator[None]:
    statistics = ((layer.moving_mean, moments.mean), (layer.moving_variance, moments.variance))
    former = [(variable, variable.value) for variable, _ in statistics]
    for variable, value in statistics:
        value = ops.reshape(ops.cast(value, variable.dtype), tuple(variable.shape))
        scope.add_update((variable, value))
    yield
    # The same layer may be called again in inference mode, with the statistics that it has.
    for update in former:
        scope.add_update(update)


def _over_replicas(moments: Moments) -> Moments:
    """The moments of a batch that is spread over the replicas of a strategy."""
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return moments

    def total(value: Any) -> Any:
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)

    count = total(moments.count)
    divisor = ops.maximum(count, 1.0)
    mean = total(moments.count * moments.mean) / divisor
    spread = moments.variance + ops.square(moments.mean - mean)
    return Moments(count, mean, total(moments.count * spread) / divisor)
