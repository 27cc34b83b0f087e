"""The step on JAX: a function of all variables, under `jax.jit`."""

from typing import Any

import jax
import keras
from keras import ops

from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.step import Given, HiddenCallError, forward, seed_states
from ckptavg.models.batches import count_samples


class JaxStep:
    """See `Step`."""

    def __init__(self, model: keras.Model, observer: Observer, training: bool) -> None:
        self._seeds = seeds = seed_states(model)
        known = {id(seed) for seed in seeds}
        self.given: Given = ()
        self._variables = [v for v in model.variables if id(v) not in known]
        self.restart()

        def run(inputs: Any, values: list[Any], states: list[Any]) -> tuple[Any, ...]:
            # Variables are arguments: as constants they would be compiled into the program.
            given = [*zip(self._variables, values, strict=True), *zip(seeds, states, strict=True)]
            return forward(
                model, observer, training, inputs, given, tensors=jax.tree_util.tree_leaves
            )

        self._run = jax.jit(run)

    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        given = {id(variable): value for variable, value in self.given}
        values = [
            ops.convert_to_tensor(given.get(id(variable), variable.value), variable.dtype)
            for variable in self._variables
        ]
        try:
            outputs, columns, self._states = self._run(inputs, values, self._states)
        except jax.errors.UnexpectedTracerError as error:
            raise HiddenCallError from error
        return outputs, [columns]

    def count(self, inputs: Any) -> int:
        return count_samples(inputs)

    def restart(self) -> None:
        self._states = [seed.value for seed in self._seeds]

    def is_exhausted(self, error: Exception) -> bool:
        return "RESOURCE_EXHAUSTED" in str(error)
