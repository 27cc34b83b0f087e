"""The step on torch, which runs without being compiled, as Keras trains there."""

from typing import Any

import keras
import torch
from keras import ops

from ckptavg.batch_norm.observer import Observer
from ckptavg.batch_norm.step import Given, forward, seed_states
from ckptavg.models.batches import count_samples


class TorchStep:
    """See `Step`."""

    def __init__(self, model: keras.Model, observer: Observer, training: bool) -> None:
        self.given: Given = ()
        self._model, self._observer, self._training = model, observer, training
        self._seeds = seed_states(model)
        self.restart()

    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        given = [*self.given, *zip(self._seeds, self._states, strict=True)]
        with torch.no_grad():
            outputs, columns, self._states = forward(
                self._model, self._observer, self._training, inputs, given
            )
        return outputs, [columns]

    def count(self, inputs: Any) -> int:
        return count_samples(inputs)

    def restart(self) -> None:
        self._states = [seed.value for seed in self._seeds]

    def is_exhausted(self, error: Exception) -> bool:
        return isinstance(error, torch.OutOfMemoryError)
