"""The step on TensorFlow: a `tf.function`, on every replica of a strategy."""

from functools import partial
from itertools import pairwise
from typing import Any

import keras
import tensorflow as tf

from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.step import Given, HiddenCallError, forward, seed_states
from ckptavg.models.batches import count_samples


class TensorFlowStep:
    """See `Step`. Batches that are not distributed yet are divided among the replicas."""

    def __init__(self, model: keras.Model, observer: Observer, training: bool) -> None:
        self._seeds = seeds = seed_states(model)
        self.given: Given = ()
        self._strategy: tf.distribute.Strategy = model.distribute_strategy
        self._replicas = self._strategy.num_replicas_in_sync
        self.restart()

        def replica(inputs: Any, values: list[Any], states: list[Any]) -> tuple[Any, ...]:
            graph = tf.compat.v1.get_default_graph()

            def check(number: int, mean: Any) -> None:
                if mean.graph is not graph:
                    raise HiddenCallError(number)

            variables = [variable for variable, _ in self.given]
            given = [*zip(variables, values, strict=True), *zip(seeds, states, strict=True)]
            tensors = partial(tf.nest.flatten, expand_composites=True)
            return forward(model, observer, training, inputs, given, check, tensors)

        def replicas(*arguments: Any) -> tuple[Any, ...]:
            if self._replicas == 1:
                return replica(*arguments)
            return self._strategy.run(replica, arguments)

        # Without autograph, as Keras itself traces a training step.
        self._run = tf.function(replicas, autograph=False, reduce_retracing=True)

    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        if self._replicas == 1:
            inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        else:
            inputs = keras.tree.map_structure(self._divided, inputs)
        values = [tf.constant(value, variable.dtype) for variable, value in self.given]
        outputs, columns, states = self._run(inputs, values, self._states)
        self._states = [self._local(state)[0] for state in states]
        return outputs, list(self._local(columns))

    def count(self, inputs: Any) -> int:
        return sum(map(count_samples, self._local(keras.tree.flatten(inputs)[0])))

    def restart(self) -> None:
        # Tensors, as they come back from each batch: variables would be traced apart from them.
        self._states = [tf.convert_to_tensor(seed.value) for seed in self._seeds]

    def is_exhausted(self, error: Exception) -> bool:
        return isinstance(error, tf.errors.ResourceExhaustedError)

    def _local(self, value: Any) -> tuple[Any, ...]:
        return self._strategy.experimental_local_results(value)

    def _divided(self, part: Any) -> Any:
        """A part of the inputs on all replicas, each with a share of the samples."""
        if isinstance(part, tf.distribute.DistributedValues):
            return part
        part = keras.ops.convert_to_tensor(part)
        bounds = [len(part) * n // self._replicas for n in range(self._replicas + 1)]
        shares = [part[start:end] for start, end in pairwise(bounds)]
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
