"""The step on torch, which is not compiled: Keras trains there without compiling, too."""

from typing import Any

import keras
import torch

from ckptavg.batch_norm.step import StatelessStep


class TorchStep(StatelessStep):
    """See `StatelessStep`."""

    def __call__(self, inputs: Any) -> tuple[Any, list[Any]]:
        inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        given = [*self.given, *zip(self._seeds, self._states, strict=True)]
        with torch.no_grad():
            outputs, columns, self._states = self._forward(inputs, given)
        return outputs, [columns]

    def is_exhausted(self, error: Exception) -> bool:
        return isinstance(error, torch.OutOfMemoryError)
