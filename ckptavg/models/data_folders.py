"""Data in folders: images by class, and data sets that `tf.data.Dataset.save` wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from ckptavg.errors import SpecError, summary
from ckptavg.models.batches import BATCH_SIZE

_SAVED = "dataset_spec.pb"
"""A file in every folder written by `tf.data.Dataset.save`."""

_COLOR_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}
"""Keras' color modes by number of channels."""


def open_folder(path: Path, model: keras.Model | None, batch_size: int | None) -> Any:
    """Opens the data set in a folder.

    Images are resized to what the model takes, and come in a fixed random order with values from 0
    to 255. A data set that was saved sample by sample is cut into batches.

    Args:
        path: a folder of images (in class subfolders or not), or one written by
            `tf.data.Dataset.save`.
        model: the model that the data are for; images need it, because it says their size.
        batch_size: samples per batch; None for 32, or the batches that were saved.

    Returns:
        A `tf.data.Dataset` of batches of inputs, or of what was saved.

    Raises:
        SpecError: the folder holds neither images nor a data set, or cannot be read.
    """
    try:
        if (path / _SAVED).is_file():
            return _open_saved(path, model, batch_size)
        size, color_mode = _image_shape(path, model)
        return keras.utils.image_dataset_from_directory(
            path,
            labels=None,
            color_mode=color_mode,
            batch_size=batch_size or BATCH_SIZE,
            image_size=size,
            seed=0,  # shuffled: training did not see batches of a single class
            verbose=False,
        )
    except SpecError:
        raise
    except Exception as error:  # TensorFlow raises errors of nearly any kind
        raise SpecError(
            f"the folder {path} holds neither images (in class subfolders or not) nor a data set "
            f"written by tf.data.Dataset.save: {summary(error)}"
        ) from error


def _open_saved(path: Path, model: keras.Model | None, batch_size: int | None) -> Any:
    import tensorflow as tf

    data = tf.data.Dataset.load(str(path))
    inputs = keras.utils.unpack_x_y_sample_weight(data.element_spec)[0]
    ranks = sorted(len(spec.shape) for spec in keras.tree.flatten(inputs))
    wanted = sorted(len(x.shape) for x in getattr(model, "inputs", None) or ())
    # Without the axis of samples that the model expects: it was saved sample by sample.
    if [rank + 1 for rank in ranks] == wanted:
        return data.batch(batch_size or BATCH_SIZE)
    return data


def _image_shape(path: Path, model: keras.Model | None) -> tuple[tuple[int, int], str]:
    """Height and width of the images that a model takes, and their color mode."""
    inputs: Sequence[Any] = getattr(model, "inputs", None) or ()
    shape: list[int | None] = list(inputs[0].shape[1:]) if len(inputs) == 1 else []
    if keras.config.image_data_format() == "channels_first":
        shape = [*shape[1:], *shape[:1]]
    height, width, channels = shape if len(shape) == 3 else (None, None, None)
    color_mode = _COLOR_MODES.get(channels or 0)
    if height is None or width is None or color_mode is None:
        raise SpecError(
            f"the images in {path} need a model with one input of fixed height, width and 1, 3 or "
            f"4 channels, but this one takes {[x.shape for x in inputs] or 'anything'}: pass "
            "file.py:name"
        )
    return (height, width), color_mode
