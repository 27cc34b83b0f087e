"""The step on JAX: a function of all variables, under `jax.jit`."""

from collections.abc import Iterable
from typing import Any

import jax
import keras
from keras import ops

from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.step import HiddenCallError, StatelessStep


class JaxStep(StatelessStep):
    """See `StatelessStep`."""

    def __init__(self, model: keras.Model, observer: Observer, training: bool) -> None:
        super().__init__(model, observer, training)
        seeds = {id(seed) for seed in self._seeds}
        self._variables = [v for v in model.variables if id(v) not in seeds]

        def run(inputs: Any, values: list[Any], states: list[Any]) -> tuple[Any, Any, list[Any]]:
            given = [
                *zip(self._variables, values, strict=True),
                *zip(self._seeds, states, strict=True),
            ]
            return self._forward(inputs, given)

        self._run = jax.jit(run)

    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        given = {id(variable): value for variable, value in self.given}
        # All variables are arguments: as constants they would be compiled into the program, which
        # would keep the weights of the first call.
        values = [
            ops.convert_to_tensor(given.get(id(variable), variable.value), variable.dtype)
            for variable in self._variables
        ]
        try:
            outputs, columns, self._states = self._run(inputs, values, self._states)
        except jax.errors.UnexpectedTracerError as error:
            raise HiddenCallError from error
        return outputs, [columns]

    def is_exhausted(self, error: Exception) -> bool:
        return "RESOURCE_EXHAUSTED" in str(error)  # JAX has no class for it

    def _tensors(self, inputs: Any) -> Iterable[Any]:
        leaves: list[Any] = jax.tree_util.tree_leaves(inputs)
        return leaves
