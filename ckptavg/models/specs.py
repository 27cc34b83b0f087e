"""Models and data, given as live objects or as SPECs.

A SPEC is `file.py:name` or `package.module:name`, of a function without arguments or of the model
or the data themselves. A model SPEC may also be a `.keras` file or the `model.json` of a run. A
data SPEC may also be an `.npz` file with an array `x`, and `y` where targets are needed; for a
BatchNorm pass also a folder.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptavg.errors import ModelError, SpecError, summary
from ckptavg.models.batches import PreparedInputs
from ckptavg.models.data_folders import open_folder
from ckptavg.models.model import from_config
from ckptavg.models.spec_source import FORMS, is_spec
from ckptavg.models.trained_model import resemble_trained
from ckptavg.models.user_code import find, find_or_call


def load_model(spec: str | Path | None) -> keras.Model:
    """Loads the model that a SPEC names, such as that of a run.

    Args:
        spec: `file.py:name` or `package.module:name`, of a model or of a function that returns one;
            a `.keras` file; or the `model.json` of a run, which is `run.model_file`; that is None
            for a run without one, and refused.

    Returns:
        The model, with the weights of the `.keras` file or with new ones.

    Raises:
        SpecError: the SPEC leads nowhere; the message says which part.

    Example:
        >>> model = ckptavg.load_model(ckptavg.open_run("run").model_file)
        >>> ckptavg.evaluate("swa-bn.weights.h5", model=model, data=(x_test, y_test))
    """
    if spec is None:
        raise SpecError(
            "no model was given, and the run has no configuration of its own (model.json): pass "
            f"{FORMS}, or a .keras file"
        )
    path = Path(spec)
    if path.suffix == ".keras":
        model = _load_archive(path)
    elif path.suffix == ".json":
        model = from_config(path)
    else:
        model = find_or_call(str(spec), "model")
    if not isinstance(model, keras.Model):
        raise SpecError(
            f"{spec} gave a {type(model).__name__}, but must give a keras.Model"
            + (" (of Keras 3, not tf_keras)" if "keras" in type(model).__module__ else "")
        )
    return model


def as_model(model: Any) -> keras.Model:
    """The model itself, or the one that a SPEC names.

    Args:
        model: a live model, or a SPEC as in `load_model`.

    Raises:
        ModelError: it is a live object of another kind.
        SpecError: the SPEC leads nowhere; the message says which part.
    """
    if model is None or is_spec(model):
        return load_model(model)
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"the model is a {type(model).__module__}.{type(model).__qualname__}, but must be a "
            "keras.Model of Keras 3, or a SPEC that names one: for tf_keras, ckptavg.tf_keras.SWA "
            "re-estimates statistics at the end of fit"
        )
    return model


def open_model(model: Any, checkpoints: Sequence[Path]) -> keras.Model:
    """As `as_model`, for checkpoints: a SPEC's model is compared with the one that was trained.

    Warns:
        CkptavgWarning: as `resemble_trained` does.
    """
    live = as_model(model)
    if checkpoints and is_spec(model):
        resemble_trained(live, str(model), checkpoints[-1])
    return live


def as_data(data: Any, *, model: keras.Model | None = None) -> Any:
    """The data themselves, or those that a SPEC names.

    Args:
        data: live data, as in `update_batch_norm` and `evaluate`, or a SPEC: `file.py:name` or
            `package.module:name`, of data or of a function that returns them, or an `.npz` file
            with `x` (and `y`). None stays None.
        model: the model that the data are for. A dictionary `{"x": ..., "y": ...}` stands for
            `(x, y)` unless the model has inputs of these names; so does one that is the batch of a
            `tf.data.Dataset`.

    Raises:
        SpecError: the SPEC leads nowhere; the message says which part.
    """
    if is_spec(data):
        path = Path(data)
        if path.suffix == ".npz":
            return _load_arrays(path)
        spec, data = str(data), find_or_call(str(data), "data")
        if data is None:
            raise SpecError(
                f"{spec} gave None, but must give data: a tf.data.Dataset, arrays, a "
                "keras.utils.PyDataset or an iterable of batches"
            )
    return _by_position(data, model)


def as_inputs(
    data: Any,
    *,
    model: keras.Model | None = None,
    batch_size: int | None = None,
    preprocess: Callable[[Any], Any] | str | None = None,
) -> Any:
    """The inputs of a BatchNorm pass, from live data or a SPEC.

    Args:
        data: as in `as_data`; a SPEC may also be a folder of images (in class subfolders or not),
            or a folder written by `tf.data.Dataset.save`. None stays None.
        model: the model that the inputs are for; needed for images.
        batch_size: samples per batch of arrays, images or a `tf.data.Dataset`.
        preprocess: function applied to the inputs of each batch, or the SPEC of one.

    Raises:
        SpecError: a SPEC leads nowhere; the message says which part.
        DataError: these data cannot be cut into batches of another size.
    """
    if is_spec(data) and (path := Path(data)).is_dir():
        data = open_folder(path, model, batch_size)
    else:
        data = as_data(data, model=model)
    if data is None or (batch_size is None and preprocess is None):
        return data
    if isinstance(preprocess, str):
        spec, preprocess = preprocess, find(preprocess, "preprocess")
        if not callable(preprocess):
            kind = type(preprocess).__name__
            raise SpecError(f"the preprocess SPEC '{spec}' is a {kind}, but must be a function")
    return PreparedInputs(data, batch_size, preprocess)


def _by_position(data: Any, model: keras.Model | None) -> Any:
    """`(x, y)` or `(x, y, sample_weight)` for a dictionary of these names; other data unchanged.

    The dictionary holds arrays, or is each batch of a `tf.data.Dataset`.
    """
    spec = getattr(data, "element_spec", None)
    if isinstance(spec, dict):  # a tf.data.Dataset of such batches
        positions = _by_position(spec, model)
        return data if positions is spec else data.map(lambda batch: _by_position(batch, model))
    if not isinstance(data, dict) or not {"x", "y"} <= data.keys() <= {"x", "y", "sample_weight"}:
        return data
    inputs = {tensor.name for tensor in getattr(model, "inputs", None) or ()}
    return data if data.keys() <= inputs else keras.utils.pack_x_y_sample_weight(**data)


def _load_archive(path: Path) -> keras.Model:
    if not path.is_file():
        raise SpecError(f"there is no model file {path}")
    try:
        with warnings.catch_warnings():
            # Averages hold no optimizer state, and nothing here needs it.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return keras.saving.load_model(path)
    except Exception as error:
        raise SpecError(f"Keras cannot load {path}: {summary(error)}") from error


def _load_arrays(path: Path) -> Any:
    if not path.is_file():
        raise SpecError(f"there is no data file {path}")
    try:
        arrays = np.load(path, allow_pickle=False)
        found = {name: arrays[name] for name in ("x", "y") if name in arrays.files}
        known = ", ".join(arrays.files) or "no arrays"
        arrays.close()
        # Of a member without its signature numpy gives the bytes.
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("it holds something else than arrays")
    except Exception as error:  # numpy and zipfile raise nearly anything on a damaged file
        raise SpecError(f"cannot read {path}: {summary(error)}") from error
    if "x" not in found:
        raise SpecError(f"{path} must hold an array 'x', but holds {known}")
    return (found["x"], found["y"]) if "y" in found else found["x"]
