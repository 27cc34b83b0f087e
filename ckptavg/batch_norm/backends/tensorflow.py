"""The step on TensorFlow: a `tf.function`, run on every replica of a strategy."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import keras
import tensorflow as tf

from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.step import HiddenCallError, StatelessStep
from ckptavg.models.batches import count_samples


class TensorFlowStep(StatelessStep):
    """See `StatelessStep`. Batches that are not distributed yet are divided among the replicas."""

    def __init__(self, model: keras.Model, observer: Observer, training: bool) -> None:
        super().__init__(model, observer, training)
        self._strategy: tf.distribute.Strategy = model.distribute_strategy
        self._replicas: int = self._strategy.num_replicas_in_sync

        def replica(inputs: Any, values: list[Any], states: list[Any]) -> Any:
            variables = [variable for variable, _ in self.given]
            given = [*zip(variables, values, strict=True), *zip(self._seeds, states, strict=True)]
            return self._forward(inputs, given)

        def replicas(*arguments: Any) -> Any:
            if self._replicas == 1:
                return replica(*arguments)
            return self._strategy.run(replica, arguments)

        # Without autograph, as Keras itself traces a training step.
        self._run = tf.function(replicas, autograph=False, reduce_retracing=True)

    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        part = keras.ops.convert_to_tensor if self._replicas == 1 else self._divided
        inputs = keras.tree.map_structure(part, inputs)
        values = [tf.constant(value, variable.dtype) for variable, value in self.given]
        outputs, columns, states = self._run(inputs, values, self._states)
        self._states = [self._local(state)[0] for state in states]
        return outputs, list(self._local(columns))

    def count(self, inputs: Any) -> int:
        return sum(map(count_samples, self._local(keras.tree.flatten(inputs)[0])))

    def restart(self) -> None:
        # As tensors, which is how they come back from each batch: a variable in the first call
        # would be traced a second time as a tensor.
        self._states = [tf.convert_to_tensor(seed.value) for seed in self._seeds]

    def is_exhausted(self, error: Exception) -> bool:
        return isinstance(error, tf.errors.ResourceExhaustedError)

    def _tensors(self, inputs: Any) -> Iterable[Any]:
        tensors: list[Any] = tf.nest.flatten(inputs, expand_composites=True)
        return tensors

    def _check_visible(self, number: int, mean: Any) -> None:
        # A tensor of another graph belongs to a nested tf.function, and cannot be returned here.
        if mean.graph is not tf.compat.v1.get_default_graph():
            raise HiddenCallError(number)

    def _local(self, value: Any) -> tuple[Any, ...]:
        """The values of all replicas."""
        values: tuple[Any, ...] = self._strategy.experimental_local_results(value)
        return values

    def _divided(self, part: Any) -> Any:
        """Divides a part of the inputs among the replicas, sample by sample."""
        if isinstance(part, tf.distribute.DistributedValues):
            return part
        part = keras.ops.convert_to_tensor(part)
        bounds = [len(part) * n // self._replicas for n in range(self._replicas + 1)]
        shares = [part[start:end] for start, end in pairwise(bounds)]
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
