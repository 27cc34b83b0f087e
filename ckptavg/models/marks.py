"""Finds where Keras 3 stores each variable, by letting it save marks in place of the values."""

import math
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptavg.formats import CheckpointReader, open_reader
from ckptavg.formats.hdf5.keras3 import keras_structure
from ckptavg.formats.tensors import TensorInfo
from ckptavg.models.attributes import find_attributes
from ckptavg.models.model import save_weights, tracked_optimizers
from ckptavg.models.optimizer_state import placed_optimizers
from ckptavg.models.placement import Placement, tensor_in_file

# See docs/decisions/0052-marks-show-rounding.md for why marks are what they are.
_FIRST_MARK = 2**20
_MARK_SIZE = 64
"""Distance of the first numbers of two marks, more than the 36 numbers that a mark has at most."""
_FRACTION = 1 / 3
"""Fraction of every number in a mark, which rounding to 0 to 9 decimals changes."""
_MARK_DTYPE = np.dtype(">f8")
"""Big-endian: arithmetic, and a cast to a type by name, return the machine's own byte order."""


def place(model: keras.Model, *, include_optimizer: bool = False) -> Placement | None:
    """Finds where Keras stores each variable, by letting it save marks in place of the values.

    Args:
        model: a built model.
        include_optimizer: whether to find the variables of its optimizers, too.

    Returns:
        None if a layer saves something other than its variables, as quantized ones do, or if an
        optimizer hangs where only Keras knows its folder: on a layer, in a list, or in another one.
    """
    optimizers = dict(placed_optimizers(model)) if include_optimizer else {}
    if include_optimizer and not _are_all(model, optimizers.values()):
        return None
    marks = _Marks()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "marks.weights.h5"
        stored: dict[str, Any] = {}
        groups: dict[str, dict[str, str]] = {}
        try:
            with marks:
                save_weights(model, path)
                # docs/decisions/0046-optimizers-are-marked-separately.md
                for folder_name, optimizer in optimizers.items():
                    found: dict[str, Any] = {}
                    optimizer.save_own_variables(found)
                    stored |= {f"{folder_name}/vars/{key}": mark for key, mark in found.items()}
                    groups |= {folder_name: {}, f"{folder_name}/vars": {"name": optimizer.name}}
        except Exception:  # a layer that computes with what it saves may raise anything on marks
            return None
        with open_reader(path) as reader:
            stored |= {
                name: _read(reader, tensor) for name, tensor in reader.structure.tensors.items()
            }
            structure = reader.structure
    variables: dict[str, Any] = {n: marks.variable_of(values) for n, values in stored.items()}
    if any(variable is None for variable in variables.values()):
        return None
    tensors = {
        name: tensor_in_file(name, variable.shape, keras.backend.standardize_dtype(variable.dtype))
        for name, variable in variables.items()
    }
    return Placement(keras_structure(tensors, {**structure.groups, **groups}), variables)


class _Marks(keras.StatelessScope):
    """A scope in which the value of every variable is a small array of numbers of its own.

    A layer that changes its variables before it saves them is found out: the numbers are big-endian
    float64, negative, falling, larger than a million and one third beyond an integer, and their
    array has as many dimensions as the variable, of unequal size. Clipping, absolute values,
    sorting, transposing, casting and rounding all leave something else.

    Attributes:
        variables: the variables by the first number of their marks.
        marks: the marks by the identity of their variables.
    """

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[float, Any] = {}
        self.marks: dict[int, np.ndarray] = {}

    def get_current_value(self, variable: Any) -> np.ndarray:
        if id(variable) not in self.marks:
            shape = [(2, 3, 2, 3)[axis] if axis < 4 else 1 for axis in range(len(variable.shape))]
            first = _FIRST_MARK + _MARK_SIZE * len(self.marks)
            numbers = -(np.arange(first, first + math.prod(shape)) + _FRACTION)
            self.marks[id(variable)] = numbers.reshape(shape).astype(_MARK_DTYPE).view(_Mark)
            self.variables[float(numbers[0])] = variable
        return self.marks[id(variable)].copy()

    def variable_of(self, values: np.ndarray) -> Any | None:
        """The variable whose mark these values are; None if they are not an untouched mark."""
        values = np.asarray(values)
        if values.dtype != _MARK_DTYPE or not values.size:
            return None
        variable = self.variables.get(float(values.flat[0]))
        if variable is None or not np.array_equal(values, self.marks[id(variable)]):
            return None
        return variable


class _Mark(np.ndarray):
    """An array that can be asked for its values as tensors are: some layers save `v.numpy()`."""

    def numpy(self) -> np.ndarray:
        return np.asarray(self)


def _are_all(model: keras.Model, found: Collection[Any]) -> bool:
    """Whether there are no optimizers in a model but those that were found."""
    known = {id(optimizer) for optimizer in found}
    inner = find_attributes(found, keras.optimizers.Optimizer)
    return all(id(optimizer) in known for optimizer in (*tracked_optimizers(model), *inner))


def _read(reader: CheckpointReader, tensor: TensorInfo) -> np.ndarray:
    buffer = bytearray(tensor.nbytes)
    reader.read_into(tensor, 0, memoryview(buffer))
    values = np.frombuffer(buffer, tensor.numpy_dtype).reshape(tensor.shape)
    # Only a mark is stored big-endian, and big-endian tensors have no extent; readers swap bytes.
    return values.astype(_MARK_DTYPE) if tensor.extent is None else values
