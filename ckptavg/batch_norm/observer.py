"""Layers that let their inputs be measured while a model runs forward."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from ckptavg.batch_norm.moments import Moments, batch_moments, wide_dtype
from ckptavg.batch_norm.statistics import INPUTS

Notes = list[tuple[int, Moments]]
"""Of each call that was watched: the number of the layer, and what it met."""


class Observer:
    """Notes the moments of every training-mode call of some layers during a forward pass.

    A watched call does not run the layer's own training mode. It measures the inputs, and runs the
    layer's inference mode with these statistics in the place of the moving ones: the outputs are
    those of training, nothing is measured twice, and neither momentum nor renorm nor what the
    moving statistics were have a say.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._running = threading.local()  # replicas of a strategy run in threads of their own

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watches the layers until the exit."""
        try:
            for number, layer in enumerate(self._layers):
                # Past Keras' own __setattr__, which would track it.
                object.__setattr__(layer, "call", self._watched(number, layer))
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("call", None)

    @contextmanager
    def watching(self, scope: keras.StatelessScope, training: bool) -> Iterator[Notes]:
        """Gives what is noted, as it is noted.

        Args:
            scope: in which the forward pass runs.
            training: whether only calls in training mode are measured, or all.
        """
        notes: Notes = []
        running = self._running
        running.scope, running.notes, running.training = scope, notes, training
        try:
            with scope:
                yield notes
        finally:
            running.scope = None

    def _watched(self, number: int, layer: Any) -> Callable:
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
            with _instead_of_moving_ones(scope, layer, moments):
                return call(inputs, training=False, **masks)

        return watched_call


def as_columns(notes: Notes, inputs: Iterable[Any]) -> Any:
    """Notes as one tensor of columns for `Gathering`, before them one of the inputs.

    Args:
        notes: of a batch.
        inputs: all tensors that the model was given.
    """
    calls = [
        ops.stack([ops.full_like(moments.count, number), *moments]) for number, moments in notes
    ]
    return ops.concatenate([_column(inputs), *calls], axis=1)


def _column(inputs: Iterable[Any]) -> Any:
    """What a layer makes of NaN or infinity, a relu or a maximum, may look like any number."""
    finite = ops.cast(1, "bool")
    for part in inputs:
        if keras.backend.is_float_dtype(part.dtype):
            finite = ops.logical_and(finite, ops.all(ops.isfinite(part)))
    column = (INPUTS, 1, ops.where(finite, 0.0, math.nan), 0)
    return ops.stack([ops.reshape(ops.cast(value, wide_dtype()), (1,)) for value in column])


@contextmanager
def _instead_of_moving_ones(
    scope: keras.StatelessScope, layer: Any, moments: Moments
) -> Iterator[None]:
    statistics = ((layer.moving_mean, moments.mean), (layer.moving_variance, moments.variance))
    former = [(variable, variable.value) for variable, _ in statistics]
    for variable, value in statistics:
        value = ops.reshape(ops.cast(value, variable.dtype), tuple(variable.shape))
        scope.add_update((variable, value))
    yield
    for update in former:  # for a later call in inference mode
        scope.add_update(update)


def _over_replicas(moments: Moments) -> Moments:
    """Moments of a batch that is spread over the replicas of a strategy, as one."""
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
