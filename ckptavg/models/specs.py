"""Models and data, given as live objects or as SPECs.

A SPEC is `file.py:callable` or `package.module:callable`; the callable takes no arguments. A model
SPEC may also be a `.keras` file or the `model.json` of a run. A data SPEC may also be an `.npz`
file with an array `x`, and `y` where targets are needed; for a BatchNorm pass also a folder.
"""

import importlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

from ckptavg.errors import CkptavgError, ModelError, SpecError, first_line
from ckptavg.models.batches import PreparedInputs
from ckptavg.models.data_folders import open_folder
from ckptavg.models.model import from_config

_FORMS = "file.py:callable or package.module:callable"


def load_model(spec: str | Path | None) -> keras.Model:
    """Loads the model that a SPEC names, such as that of a run.

    Args:
        spec: `file.py:callable`, `package.module:callable`, a `.keras` file, or the `model.json` of
            a run, which is `run.model_file`; that is None for a run without one, and refused.

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
            f"{_FORMS}, or a .keras file"
        )
    path = Path(spec)
    if path.suffix == ".keras":
        model = _load_archive(path)
    elif path.suffix == ".json":
        model = from_config(path)
    else:
        model = _call(str(spec), "model", f"{_FORMS}, or a .keras file")
    if not isinstance(model, keras.Model):
        raise SpecError(
            f"{spec} gave a {type(model).__name__}, but must give a keras.Model"
            + (" (of Keras 3, not tf_keras)" if "keras" in type(model).__module__ else "")
        )
    return model


def is_spec(value: object) -> bool:
    """Whether a model or data are named by a SPEC, rather than given as a live object."""
    return isinstance(value, str | os.PathLike)


def spec_name(value: object) -> str | None:
    """The SPEC as text; None for a live object, which has no name."""
    return str(value) if is_spec(value) else None


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


def as_data(data: Any, *, model: keras.Model | None = None) -> Any:
    """The data themselves, or those that a SPEC names.

    Args:
        data: live data, as in `update_batch_norm` and `evaluate`, or a SPEC: `file.py:callable`,
            `package.module:callable`, or an `.npz` file with `x` (and `y`). None stays None.
        model: the model that the data are for. A dictionary `{"x": ..., "y": ...}` stands for
            `(x, y)` unless the model has inputs of these names.

    Raises:
        SpecError: the SPEC leads nowhere; the message says which part.
    """
    if is_spec(data):
        path = Path(data)
        if path.suffix == ".npz":
            return _load_arrays(path)
        spec, data = str(data), _call(str(data), "data", f"{_FORMS}, a folder, or an .npz file")
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
        preprocess = _callable(preprocess, "preprocess", _FORMS)
    return PreparedInputs(data, batch_size, preprocess)


def _by_position(data: Any, model: keras.Model | None) -> Any:
    """`(x, y)` or `(x, y, sample_weight)` for a dictionary of these names; other data unchanged."""
    if not isinstance(data, dict) or not {"x", "y"} <= data.keys() <= {"x", "y", "sample_weight"}:
        return data
    inputs = {tensor.name for tensor in getattr(model, "inputs", None) or ()}
    return data if data.keys() <= inputs else keras.utils.pack_x_y_sample_weight(**data)


def _callable(spec: str, what: str, forms: str) -> Callable[..., Any]:
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise SpecError(f"the {what} SPEC '{spec}' must have the form {forms}")
    return _find(_import(spec, place), name, spec)


def _call(spec: str, what: str, forms: str) -> Any:
    function = _callable(spec, what, forms)
    try:
        return function()
    except CkptavgError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(f"{spec} was called and raised {_described(error)}") from error


def _import(spec: str, place: str) -> ModuleType:
    """Imports a file or a module, with its own folder first on the path, as Python would run it."""
    file = Path(place).resolve() if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise SpecError(f"in the SPEC '{spec}': there is no file {place}")
    folder = str(Path.cwd() if file is None else file.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(place) if file is None else _import_file(file)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if file is None and missing is not None and f"{place}.".startswith(f"{missing}."):
            raise SpecError(f"in the SPEC '{spec}': there is no module {missing}") from error
        raise SpecError(f"{place} cannot be imported: {_described(error)}") from error


def _import_file(path: Path) -> ModuleType:
    """Imports a file once."""
    name = f"_ckptavg_spec_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find(module: ModuleType, name: str, spec: str) -> Callable[..., Any]:
    if not hasattr(module, name):
        own = (
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        )
        known = ", ".join(sorted(own)) or "no function"
        raise SpecError(f"in the SPEC '{spec}': there is no '{name}' in the file, it has: {known}")
    function: Callable[..., Any] = getattr(module, name)
    if not callable(function):
        raise SpecError(f"in the SPEC '{spec}': '{name}' is not a function but {function!r:.60}")
    return function


def _load_archive(path: Path) -> keras.Model:
    if not path.is_file():
        raise SpecError(f"there is no model file {path}")
    try:
        with warnings.catch_warnings():
            # Averages hold no optimizer state, and nothing here needs it.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return keras.saving.load_model(path)
    except Exception as error:
        raise SpecError(f"Keras cannot load {path}: {first_line(error)}") from error


def _load_arrays(path: Path) -> Any:
    if not path.is_file():
        raise SpecError(f"there is no data file {path}")
    try:
        arrays = np.load(path, allow_pickle=False)
        found = {name: arrays[name] for name in ("x", "y") if name in arrays.files}
        known = ", ".join(arrays.files) or "no arrays"
        arrays.close()
    except Exception as error:  # numpy and zipfile raise nearly anything on a damaged file
        raise SpecError(f"cannot read {path}: {first_line(error)}") from error
    if "x" not in found:
        raise SpecError(f"{path} must hold an array 'x', but holds {known}")
    return (found["x"], found["y"]) if "y" in found else found["x"]


def _described(error: BaseException) -> str:
    """The error, and where in the user's own code it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if _is_users(f.filename)), None)
    where = f" ({Path(place.filename).name}, line {place.lineno})" if place else ""
    return first_line(error) + where


def _is_users(filename: str) -> bool:
    return "site-packages" not in filename and not filename.startswith(
        ("<", sys.base_prefix, str(Path(__file__).parent))
    )
