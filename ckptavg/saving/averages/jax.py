"""Moving averages on JAX, where `fit` holds the variables' values beside the model."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from ckptavg.saving.framework import DeviceAverages

_LISTS = ("trainable_variables", "non_trainable_variables")


class JaxAverages(DeviceAverages):
    """See `DeviceAverages`."""

    def __init__(self, model: keras.Model, variables: Sequence[Any], count: int) -> None:
        """Makes `count` averages of a model's variables, all zero."""
        self._model = model
        self._variables = list(variables)
        places = {
            id(variable): (name, place)
            for name in _LISTS
            for place, variable in enumerate(getattr(model, name))
        }
        self._places = [places[id(variable)] for variable in self._variables]
        self._averages = [
            [jnp.zeros_like(value, jnp.float32) for value in self._values()] for _ in range(count)
        ]
        # The former averages are donated: the new ones are written into their memory.
        self._update = jax.jit(_updated, donate_argnums=0)

    def update(self, rates: Sequence[float]) -> None:
        given = np.asarray(rates, "float32")
        self._averages = self._update(self._averages, self._values(), given)

    def host_view(self, number: int, place: int) -> np.ndarray:
        return np.asarray(self._averages[number][place])

    def set(self, number: int, values: Sequence[np.ndarray]) -> None:
        self._averages[number] = [
            jax.device_put(value, average.sharding)
            for average, value in zip(self._averages[number], values, strict=True)
        ]

    def _values(self) -> list[jax.Array]:
        """The present values of the variables."""
        # Taken from where fit keeps them: jax_state_sync would put them into the variables, and
        # make fit gather all of its state again for the next batch.
        # See docs/decisions/0058-averages-are-tracked-after-every-step.md.
        state = self._model._jax_state
        if not state or self._model._jax_state_synced:
            return [variable.value for variable in self._variables]
        return [state[name][place] for name, place in self._places]


def _updated(
    averages: list[list[jax.Array]], values: list[jax.Array], rates: jax.Array
) -> list[list[jax.Array]]:
    return [
        [a + rates[n] * (v.astype(jnp.float32) - a) for a, v in zip(row, values, strict=True)]
        for n, row in enumerate(averages)
    ]
