"""Keras 3 as saving sees it: where its variables go in files, their values, its learning rate."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptavg.errors import SaverError
from ckptavg.formats import CheckpointReader, Structure, open_reader
from ckptavg.formats.weights_h5 import keras_structure
from ckptavg.keras_models import (
    batch_norm_layers,
    load_weights,
    model_config,
    save_weights,
    tracked_optimizers,
)
from ckptavg.saving.framework import DeviceAverages, Framework, Placement
from ckptavg.tensors import Extent, TensorInfo

_FIRST_MARK = 2**20
_MARK_SIZE = 64
"""Numbers set apart for each variable, more than a mark has."""
_FRACTION = 1 / 3
"""Of every mark: rounded to any number of decimals from 0 to 9 it is another float64."""
_MARK_DTYPE = np.dtype(">f8")
"""Of marks: what computes with them, or casts them to a type by name, gives another byte order."""


class Keras3(Framework):
    """Keras 3 on any of its backends."""

    packages = ("numpy", "h5py", "keras", keras.backend.backend())
    suffix = ".weights.h5"
    sharded_suffix = ".weights.json"

    def place(self, model: Any, include_optimizer: bool) -> Placement | None:
        """Lets Keras save marks in place of the variables, and looks where they went."""
        marks = _Marks()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "marks.weights.h5"
            stored: dict[str, Any] = {}
            groups: dict[str, dict[str, str]] = {}
            try:
                with marks:
                    save_weights(model, path)
                    for place, optimizer in _optimizers(model) if include_optimizer else ():
                        found: dict[str, Any] = {}
                        optimizer.save_own_variables(found)
                        stored |= {f"{place}/vars/{key}": mark for key, mark in found.items()}
                        groups |= {place: {}, f"{place}/vars": {"name": optimizer.name}}
            except Exception:  # a layer that computes with what it saves may raise anything
                return None
            with open_reader(path) as reader:
                stored |= {
                    name: _read(reader, tensor) for name, tensor in reader.structure.tensors.items()
                }
                structure = reader.structure
        variables = {name: marks.variable_of(values) for name, values in stored.items()}
        if any(variable is None for variable in variables.values()):
            return None
        tensors = {name: _tensor(name, variable) for name, variable in variables.items()}
        return Placement(keras_structure(Structure(tensors, structure.groups | groups)), variables)

    def save(self, model: Any, path: Any, include_optimizer: bool) -> None:
        if include_optimizer:
            keras.saving.save_weights(model, path)
        else:
            save_weights(model, path)

    def load(self, model: Any, path: Path) -> None:
        load_weights(model, path)

    def is_built(self, model: Any, include_optimizer: bool) -> bool:
        optimizers = tracked_optimizers(model) if include_optimizer else []
        return model.built and all(optimizer.built for optimizer in optimizers)

    def variables(self, model: Any, include_optimizer: bool) -> list[Any]:
        optimizers = tracked_optimizers(model) if include_optimizer else []
        return [*model.variables, *(v for o in optimizers for v in o.variables)]

    def device_averages(self, model: Any, variables: Sequence[Any], count: int) -> DeviceAverages:
        backend = keras.backend.backend()
        if backend == "tensorflow":
            from ckptavg.device_averages.on_tensorflow import TensorFlowAverages

            return TensorFlowAverages([variable.value for variable in variables], count)
        if backend == "jax":
            from ckptavg.device_averages.on_jax import JaxAverages

            return JaxAverages(model, variables, count)
        from ckptavg.device_averages.on_torch import TorchAverages

        return TorchAverages(variables, count)

    def check_tracking(self, model: Any) -> None:
        backend, processes = keras.backend.backend(), 1
        if backend not in ("tensorflow", "jax", "torch"):
            raise SaverError(
                "tracked_sigmas: averages are tracked on the backends tensorflow, jax and torch, "
                f"but Keras runs on {backend}"
            )
        if backend == "jax":
            import jax

            processes = jax.process_count()
        if processes > 1:
            raise SaverError(
                f"tracked_sigmas: averages are tracked in one process, but {processes} train "
                "together: leave tracked_sigmas away, and average checkpoints"
            )
        super().check_tracking(model)

    def host_view(self, variable: Any) -> np.ndarray:
        value = variable.value
        if keras.backend.backend() == "tensorflow":
            value = value.read_value()  # whose memory numpy reads as it is
        return np.asarray(keras.ops.convert_to_numpy(value))

    def model_json(self, model: Any) -> str:
        return model_config(model).to_json()

    def batch_norm_layers(self, model: Any) -> list[Any]:
        return batch_norm_layers(model)

    def learning_rate(self, optimizer: Any) -> float:
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def set_learning_rate(self, optimizer: Any, rate: float) -> None:
        optimizer.learning_rate = rate

    def iterations(self, optimizer: Any) -> int:
        return int(keras.ops.convert_to_numpy(optimizer.iterations))

    def batches(self, optimizer: Any) -> int:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        counter = next((v for v in inner.variables if v.name == "iteration"), None)
        if counter is None:
            return super().batches(optimizer)
        return int(keras.ops.convert_to_numpy(counter))

    def accumulation(self, optimizer: Any) -> int:
        return super().accumulation(getattr(optimizer, "inner_optimizer", optimizer))

    def synchronize(self, model: Any) -> None:
        # On JAX the state of a training is beside the variables until an epoch ends.
        if keras.backend.backend() == "jax":
            model.jax_state_sync()

    def is_chief(self, model: Any) -> bool:
        if keras.backend.backend() == "jax":
            import jax

            return jax.process_index() == 0
        return super().is_chief(model)


class _Marks(keras.StatelessScope):
    """A scope in which every variable has a small array of numbers of its own for its value.

    What a layer does to its variables before it saves them shows: the numbers are big-endian
    float64, negative and falling, a third beyond a whole one and more than a million, and their
    array has as many dimensions as the variable, of unequal size.

    Attributes:
        variables: by the first number of their marks.
        marks: by the identity of the variables.
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
        """The variable whose mark this is, untouched; None if it is no such."""
        values = np.asarray(values)
        if values.dtype != _MARK_DTYPE or not values.size:
            return None
        variable = self.variables.get(float(values.flat[0]))
        if variable is None or not np.array_equal(values, self.marks[id(variable)]):
            return None
        return variable


class _Mark(np.ndarray):
    """An array that is asked for its values as tensors are."""

    def numpy(self) -> np.ndarray:
        return np.asarray(self)


def _optimizers(owner: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The optimizers of a model, or within one, and the folders of files where Keras puts them."""
    seen = set()
    for name, value in sorted(vars(owner).items(), key=lambda item: _order(item[0])):
        if isinstance(value, keras.optimizers.Optimizer) and id(value) not in seen:
            seen.add(id(value))
            yield f"{prefix}{name}", value
            yield from _optimizers(value, f"{prefix}{name}/")


def _order(attribute: str) -> tuple[bool, str]:
    return attribute.startswith("_"), attribute


def _read(reader: CheckpointReader, tensor: TensorInfo) -> np.ndarray:
    buffer = bytearray(tensor.nbytes)
    reader.read_into(tensor, 0, memoryview(buffer))
    values = np.frombuffer(buffer, tensor.numpy_dtype).reshape(tensor.shape)
    # What Keras writes is big-endian, and then has no extent, only where a mark is.
    return values.astype(_MARK_DTYPE) if tensor.extent is None else values


def _tensor(name: str, variable: Any) -> TensorInfo:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    tensor = TensorInfo(name, tuple(variable.shape), dtype, None)
    return TensorInfo(name, tensor.shape, dtype, Extent(0, tensor.nbytes))
