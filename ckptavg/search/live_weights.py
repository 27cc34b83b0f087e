"""The weights of a live model by their stored names, set in place."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np

from ckptavg.errors import ModelError
from ckptavg.formats import open_reader
from ckptavg.keras_models import save_weights
from ckptavg.search.sums import Tensor

_BASE = 100
"""Marks go from 1 to this: whole numbers that every floating-point type but float8 holds."""


class LiveWeights:
    """Sets the weights of a built model without a file, a hundred times faster than loading one.

    Which variable is stored under which name, Keras alone knows: the model is saved once with each
    variable's number in place of its values, in a scope that leaves the variables as they are.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        known = {id(v): v for v in (*model.weights, *model.non_trainable_variables)}
        variables = list(known.values())
        digits: dict[str, list[int]] = {}
        scale = 1
        while scale == 1 or scale < len(variables):
            marks = [n // scale % _BASE + 1 for n in range(len(variables))]
            for name, mark in _save_marks(model, variables, marks).items():
                digits.setdefault(name, []).append(mark - 1)
            scale *= _BASE
        self._variables = {
            name: variables[sum(digit * _BASE**n for n, digit in enumerate(found))]
            for name, found in digits.items()
        }

    def assign(self, tensors: Iterable[Tensor]) -> None:
        """Gives the variables the values of the tensors that are stored under their names.

        Raises:
            ModelError: the model has no tensor of a name, has one of another shape, or more.
        """
        missing = set(self._variables)
        for name, values in tensors:
            variable = self._variables.get(name)
            if variable is None or tuple(variable.shape) != values.shape:
                raise ModelError(
                    f"the checkpoints do not fit the model '{self._model.name}': the model has no "
                    f"'{name}' of shape {values.shape}"
                )
            variable.assign(values)
            missing.discard(name)
        if missing:
            raise ModelError(
                f"the checkpoints do not fit the model '{self._model.name}': they hold no "
                f"'{min(missing)}'"
            )


def _save_marks(model: keras.Model, variables: list, marks: list[int]) -> dict[str, int]:
    """What a file of the model holds under each name, where each variable holds its mark."""
    mapping, found = [], {}
    for variable, mark in zip(variables, marks, strict=True):
        values = np.full(variable.shape, mark).astype(variable.dtype)
        if not np.all(values.astype(np.float64) == mark):
            raise ModelError(
                f"the model '{model.name}' has a variable '{variable.path}' of type "
                f"{variable.dtype}, which cannot be set in place"
            )
        mapping.append((variable, values))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "marks.weights.h5"
        with keras.StatelessScope(mapping):
            save_weights(model, path)
        with open_reader(path) as reader:
            for name, tensor in reader.structure.model_tensors.items():
                data = bytearray(tensor.nbytes)
                reader.read_into(tensor, 0, memoryview(data))
                values = np.frombuffer(data, tensor.numpy_dtype).astype(np.float64)
                if (
                    not len(values)
                    or values[0] != np.round(values[0])
                    or np.any(values != values[0])
                ):
                    raise ModelError(
                        f"the model '{model.name}' does not save '{name}' as one of its variables: "
                        "its weights cannot be set in place"
                    )
                found[name] = int(values[0])
    return found
