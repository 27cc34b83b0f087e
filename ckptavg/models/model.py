"""A Keras model: its layers, its configuration, and its weights in files."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from ckptavg.errors import ModelError, summary
from ckptavg.formats import ModelConfig, open_reader
from ckptavg.models.attributes import find_attributes
from ckptavg.models.batches import peek
from ckptavg.runs.proof import check_intact


def all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields every layer of a model once, including those inside nested models and wrappers."""
    # `model.layers` stops at the first level; only this private method of Keras goes deeper.
    yield from model._flatten_layers(include_self=False, recursive=True)


def batch_norm_layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNormalization layers of a model, nested ones included, in Keras' order."""
    return [
        layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)
    ]


def check_has_call(model: Any, base: type[Any] = keras.Model) -> None:
    """Makes sure that a model can be called, as a GAN that only has a training step cannot.

    Args:
        model: the model.
        base: the class of models of its framework.

    Raises:
        ModelError: it has no `call()`.
    """
    if type(model).call is not base.call:
        return
    attributes = {**vars(model), **getattr(model, "_modules", {})}  # where torch keeps layers
    parts = [
        name
        for name, part in attributes.items()
        if isinstance(part, base) and type(part).call is not base.call
    ]
    part = f"model.{parts[0]}" if parts else "model.part"
    raise ModelError(
        f"the model '{model.name}' has no call(), so that no data can pass through it as a whole: "
        f"pass a part of it with data of its own, ckptavg.update_batch_norm({part}, inputs), or "
        "call the parts in a loop with ckptavg.batch_norm.BatchNormPass"
    )


def layer_path(model: Any, layer: Any) -> str:
    """Where a layer of a model is, by the names of the layers around it; Keras knows it once built.

    Args:
        model: a model of Keras 3 or of tf_keras.
        layer: one of its layers, at any depth.
    """

    def below(owner: Any, path: str) -> Iterator[str]:
        for child in owner._flatten_layers(include_self=False, recursive=False):
            if child is layer:
                yield f"{path}{child.name}"
            yield from below(child, f"{path}{child.name}/")

    return getattr(layer, "path", None) or next(below(model, ""), layer.name)


@contextmanager
def mixed_float16(model: keras.Model) -> Iterator[None]:
    """Lets float32 layers compute in float16 until the exit; their variables stay float32."""
    # See docs/decisions/0013-mixed-precision-passes-use-float16.md. Layers read their policy when
    # they are called, so a step that is compiled within keeps it.
    layers = [layer for layer in (model, *all_layers(model)) if layer.compute_dtype == "float32"]
    policies = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = "mixed_float16"
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy


def model_config(model: keras.Model) -> ModelConfig:
    """The configuration of a model and of its compilation, as a `.keras` file holds it.

    Raises:
        ModelError: the model cannot be serialized.
    """
    try:
        config = json.dumps(keras.saving.serialize_keras_object(model))
    except Exception as error:  # a user's get_config may raise anything
        raise ModelError(
            f"Keras cannot serialize the model '{model.name}': {summary(error)}"
        ) from error
    metadata = json.dumps({"keras_version": keras.__version__})
    return ModelConfig(config, metadata, any(hasattr(x, "save_assets") for x in all_layers(model)))


def from_config(path: Path) -> keras.Model:
    """Builds the model that a `model.json` describes, compiled as it was, with new weights.

    Raises:
        FormatError: the file is damaged.
        ModelError: it names classes that Keras does not know, or that it considers unsafe.
    """
    config = ModelConfig.read(path)
    try:
        # Safe mode: a configuration comes from a file, which must not run code of its own.
        return keras.saving.deserialize_keras_object(json.loads(config.config), safe_mode=True)
    except Exception as error:
        raise ModelError(
            f"Keras cannot build the model of {path} ({summary(error)}): pass --model file.py:name"
        ) from error


def build(model: keras.Model, data: Any = None) -> Any:
    """Makes sure that a model has its variables, if necessary by calling it on a batch of data.

    Returns:
        The data, complete: if they can be read only once, the batch is put back.

    Raises:
        ModelError: the model is not built, and there are no data to build it from.
    """
    if model.built:
        return data
    if data is None:
        raise ModelError(
            f"the model '{model.name}' has no weights yet: call it on a batch in the function that "
            "builds it, or pass data (--data)"
        )
    check_has_call(model)
    first, data = peek(data)
    try:
        model(keras.tree.map_structure(keras.ops.convert_to_tensor, first))
    except Exception as error:
        raise ModelError(f"the model rejects its data: {summary(error)}") from error
    return data


def save_weights(model: keras.Model, path: Path) -> None:
    """Writes a `.weights.h5` file in place, without any optimizer that the model holds."""
    keras.saving.save_weights(model, path, objects_to_skip=tracked_optimizers(model) or None)


def tracked_optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """The optimizers that Keras saves with a model: wherever they hang on it or on its layers."""
    return find_attributes((model, *all_layers(model)), keras.optimizers.Optimizer)


def save_model(model: keras.Model, path: Path) -> None:
    """Writes a `.weights.h5` or `.keras` file without optimizer state, in place."""
    if path.name.endswith(".keras"):
        with without_optimizer(model):
            model.save(path)
    else:
        save_weights(model, path)


def load_weights(model: keras.Model, path: Path) -> None:
    """Loads a `.weights.h5` or `.keras` file into a model that is built.

    Raises:
        FormatError: the file is not a checkpoint, or is damaged.
        IntegrityError: the file differs from its record, if it has one.
        ModelError: the checkpoint does not fit the model.
    """
    check_intact(path)
    check_all_used(model, path)
    with without_optimizer(model):
        load_unchecked(model, path)


def load_unchecked(model: Any, path: Path) -> None:
    """Has Keras or tf_keras load a file, with the state of optimizers if they are built.

    Raises:
        ModelError: the checkpoint does not fit the model.
    """
    try:
        model.load_weights(path)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} does not fit the model '{model.name}': {summary(error)}"
        ) from error


def check_all_used(model: keras.Model, path: Path) -> None:
    """Refuses a checkpoint with tensors that the model lacks, which Keras would ignore."""
    with open_reader(path) as reader:
        stored = set(reader.structure.model_tensors)
    if len(stored) <= len(model.weights):
        return
    # Some layers save a tensor twice, so a larger number alone proves nothing: compare with what
    # the model itself saves.
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own.weights.h5"
        save_weights(model, own)
        with open_reader(own) as reader:
            unknown = stored - set(reader.structure.tensors)
    if unknown:
        raise ModelError(
            f"{path} does not fit the model '{model.name}': the model has no '{min(unknown)}'"
        )


@contextmanager
def without_optimizer(model: keras.Model) -> Iterator[None]:
    """Hides the optimizer, so that Keras neither saves its state nor misses it when loading."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        yield
        return
    model.optimizer = None
    try:
        yield
    finally:
        model.optimizer = optimizer
