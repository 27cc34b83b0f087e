"""Keras 2 (tf_keras) as saving sees it: its legacy weights files, values, learning rate."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ckptavg.errors import SaverError
from ckptavg.formats import LEGACY, Structure
from ckptavg.models.attributes import find_attributes
from ckptavg.models.keras2 import batch_norm_layers
from ckptavg.models.model import load_unchecked
from ckptavg.models.placement import Placement, tensor_in_file
from ckptavg.runs.proof import check_intact
from ckptavg.saving.averages.tensorflow import TensorFlowAverages
from ckptavg.saving.framework import DeviceAverages, Framework
from ckptavg.saving.options import Options

_OPTIMIZERS = (tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer)
_TOP_LEVEL = "top_level_model_weights"
_LIST_LIMIT = 64512
"""Bytes of a list of names, above which tf_keras splits it: HDF5 holds only so much in a header."""


class KerasCallback(tf_keras.callbacks.Callback):
    """The base of callbacks for tf_keras."""

    def __init__(self) -> None:
        super().__init__()
        # Otherwise tf_keras would fetch the logs of every batch, and wait for it to end.
        self._supports_tf_logs = True


class Keras2(Framework):
    """tf_keras on TensorFlow, whose `model.save_weights("x.h5")` these files equal."""

    packages = ("numpy", "h5py", "tf_keras", "tensorflow")
    suffix = ".h5"
    model_type = tf_keras.Model

    def check(self, options: Options) -> None:
        if options.include_optimizer:
            raise SaverError(
                "include_optimizer: weights files of tf_keras hold no optimizer. Keep its state "
                "with tf_keras.callbacks.BackupAndRestore beside this callback"
            )
        if options.max_shard_size is not None:
            raise SaverError("max_shard_size: tf_keras loads weights from single files only")
        if options.save_dtype == "bfloat16":
            raise SaverError(
                "save_dtype is 'bfloat16', which tf_keras does not load: pass 'float16', or omit it"
            )

    def place(self, model: Any, include_optimizer: bool) -> Placement:
        """Puts variables where `model.save_weights` does: by layer and by name.

        Raises:
            SaverError: tf_keras could not save this model to a `.h5` file either.
        """
        folders = _folders(model)
        root = {
            **_listed("layer_names", (layer.name for layer in model.layers)),
            "backend": b"tensorflow",
            "keras_version": tf_keras.__version__.encode(),
        }
        groups: dict[str, Any] = {"": root}
        variables: dict[str, Any] = {}
        for folder, weights in folders.items():
            _check_variables(folder, weights, model)
            groups[folder] = _listed("weight_names", (weight.name for weight in weights))
            for weight in weights:
                name = f"{folder}/{weight.name}"
                if name in variables:
                    raise _twice("weights", name, model)
                variables[name] = weight
        tensors = {
            name: tensor_in_file(name, variable.shape, variable.dtype.base_dtype.name)
            for name, variable in variables.items()
        }
        return Placement(Structure(tensors, groups, naming=LEGACY), variables)

    def save(self, model: Any, path: Any, include_optimizer: bool) -> None:
        model.save_weights(path, save_format="h5")

    def load(self, model: Any, path: Path) -> None:
        check_intact(path)
        load_unchecked(model, path)

    def device_averages(self, model: Any, variables: Sequence[Any], count: int) -> DeviceAverages:
        return TensorFlowAverages(variables, count)

    def host_view(self, variable: Any) -> np.ndarray:
        # NumPy reads the memory of the tensor without a copy.
        return np.asarray(variable.read_value())

    def model_json(self, model: Any) -> None:
        """None: only tf_keras could build the model of its configuration, and merges use Keras."""

    def batch_norm_layers(self, model: Any) -> list[Any]:
        return batch_norm_layers(model)

    def optimizers(self, model: Any) -> list[Any]:
        layers = model._flatten_layers(include_self=True, recursive=True)
        return find_attributes(layers, _OPTIMIZERS)

    def learning_rate(self, optimizer: Any) -> float:
        rate = optimizer.learning_rate
        if isinstance(rate, tf_keras.optimizers.schedules.LearningRateSchedule):
            rate = rate(optimizer.iterations)  # legacy optimizers return the schedule itself
        return float(tf_keras.backend.get_value(rate))

    def set_learning_rate(self, optimizer: Any, rate: float) -> None:
        # A legacy optimizer would take a number in place of its schedule, bake it into the compiled
        # step, and never see another one.
        # See docs/decisions/0041-tf-keras-files-are-placed-by-their-lists.md.
        if not isinstance(optimizer.learning_rate, tf.Variable):
            raise TypeError("the learning rate is not a variable")
        optimizer.learning_rate = rate

    def iterations(self, optimizer: Any) -> int:
        return int(tf_keras.backend.get_value(optimizer.iterations))

    def steps_per_execution(self, model: Any) -> int:
        return int(tf_keras.backend.get_value(model.steps_per_execution))


def _folders(model: Any) -> dict[str, list[Any]]:
    """The weights of each folder of a file, in the order in which tf_keras lists them."""
    folders: dict[str, list[Any]] = {}
    for layer in sorted(model.layers, key=lambda layer: layer.name):
        if layer.name in folders:
            raise _twice("layers", layer.name, model)
        folders[layer.name] = [*layer.trainable_weights, *layer.non_trainable_weights]
    # Only these private lists omit what belongs to a layer.
    folders[_TOP_LEVEL] = [*model._trainable_weights, *model._non_trainable_weights]
    return folders


def _check_variables(layer: str, weights: Iterable[Any], model: Any) -> None:
    """Refuses what tf_keras itself cannot save, such as the table of a TextVectorization."""
    for weight in weights:
        if not isinstance(weight, tf.Variable):
            raise SaverError(
                f"the layer '{layer}' of the model '{model.name}' holds a "
                f"{type(weight).__name__}, but a .h5 file of tf_keras holds variables only: apply "
                "the layer to the data before the model sees them, or train with Keras 3"
            )


def _twice(what: str, name: str, model: Any) -> SaverError:
    return SaverError(
        f"two {what} of the model '{model.name}' have the name '{name}', but a .h5 file of "
        "tf_keras cannot hold both: give the layers unique names"
    )


def _listed(key: str, names: Iterable[str]) -> dict[str, tuple[bytes, ...]]:
    """A list of names as one attribute, or as few and as even parts as HDF5 needs."""
    found = np.array([name.encode() for name in names])
    for count in range(1, max(len(found), 1) + 1):
        parts = np.array_split(found, count)
        if all(part.nbytes <= _LIST_LIMIT for part in parts):
            break
    keys = [key] if count == 1 else [f"{key}{number}" for number in range(count)]
    return {key: tuple(part.tolist()) for key, part in zip(keys, parts, strict=True)}
