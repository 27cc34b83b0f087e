"""The weights of a live model, set by their stored names."""

import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptavg.errors import ModelError
from ckptavg.formats import layers, open_reader
from ckptavg.models.marks import place
from ckptavg.models.model import batch_norm_layers, load_weights, save_weights
from ckptavg.models.placement import Placement, moving_statistics
from ckptavg.search.weight_rows import Tensor


class Weights(ABC):
    """Sets the weights of a built model by their stored names.

    Attributes:
        moving_statistics: stored names of the moving statistics of BatchNorm layers.
    """

    moving_statistics: tuple[str, ...]
    _model: keras.Model

    @abstractmethod
    def assign(self, tensors: Iterable[Tensor]) -> None:
        """Sets the weights to the tensors that are stored under their names.

        Raises:
            ModelError: a tensor fits no weight, or a weight gets no tensor.
        """

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restores all variables to their present values at the exit."""
        variables = self._model.variables
        former = [(v, np.array(keras.ops.convert_to_numpy(v.value))) for v in variables]
        try:
            yield
        finally:
            for variable, value in former:
                variable.assign(value)


def live_weights(model: keras.Model) -> Weights:
    """Finds out which variable of a built model is stored under which name.

    Raises:
        ModelError: Keras cannot save the model.
    """
    placement = place(model)
    return WeightsOfFile(model) if placement is None else WeightsInPlace(model, placement)


class WeightsInPlace(Weights):
    """Sets variables, without a file: the usual case, and the fastest."""

    def __init__(self, model: keras.Model, placement: Placement) -> None:
        self._model = model
        self._variables = placement.variables
        self.moving_statistics = moving_statistics(batch_norm_layers(model), placement)

    def assign(self, tensors: Iterable[Tensor]) -> None:
        for name, values in _fitting(tensors, self._variables, self._model.name):
            self._variables[name].assign(values)


class WeightsOfFile(Weights):
    """Has Keras load a file, where a layer computes what it saves, and undoes that when it loads.

    A layer with LoRA saves its kernel with the adapter added to it; to load it is to set the kernel
    and to empty the adapter, which only the layer itself can do.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path = Path(folder) / "live.weights.h5"
        try:
            save_weights(model, self._path)
        except Exception as error:  # layers may raise anything
            raise ModelError(
                f"the weights of the model '{model.name}' cannot be saved: {error}"
            ) from error
        with open_reader(self._path) as reader:
            self._tensors = reader.structure.model_tensors
            statistics = layers.moving_statistics(reader.structure)
        self.moving_statistics = tuple(name for names in statistics.values() for name in names)

    def assign(self, tensors: Iterable[Tensor]) -> None:
        with self._path.open("r+b") as file:
            for name, values in _fitting(tensors, self._tensors, self._model.name):
                tensor = self._tensors[name]
                if not values.size:
                    continue
                if tensor.extent is None:
                    raise ModelError(f"'{name}' ({tensor.dtype}) cannot be set in a file")
                data = np.ascontiguousarray(values, tensor.numpy_dtype)
                file.seek(tensor.extent.offset)
                file.write(data.reshape(-1).view(np.uint8).data)  # all of it, even beyond 2 GiB
        load_weights(self._model, self._path)


def _fitting(tensors: Iterable[Tensor], known: Mapping[str, Any], model: str) -> Iterator[Tensor]:
    """Tensors, each of which is known with its shape, as are all that are known."""
    missing = set(known)
    for name, values in tensors:
        if name not in known or tuple(known[name].shape) != values.shape:
            raise ModelError(
                f"the checkpoints do not fit the model '{model}': the model has no '{name}' of "
                f"shape {values.shape}"
            )
        yield name, values
        missing.discard(name)
    if missing:
        raise ModelError(
            f"the checkpoints do not fit the model '{model}': they hold no '{min(missing)}'"
        )
