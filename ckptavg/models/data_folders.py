"""Data in folders: images by class, and data sets that `tf.data.Dataset.save` wrote."""

from pathlib import Path
from typing import Any

import keras

from ckptavg.errors import SpecError, first_line
from ckptavg.models.batches import BATCH_SIZE

_SAVED = "dataset_spec.pb"
"""A file in every folder that `tf.data.Dataset.save` wrote."""

_COLOR_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}
"""Of Keras, by the number of channels."""


def open_folder(path: Path, model: keras.Model | None, batch_size: int | None) -> Any:
    """The data set in a folder.

    Images are resized to what the model takes, in a fixed random order, with values from 0 to
    255. A data set that was saved sample by sample is cut into batches.

    Args:
        path: the folder.
        model: that the data are for; images need it, which have no size of their own.
        batch_size: samples in a batch; None for 32, or as they were saved.

    Returns:
        A `tf.data.Dataset` of batches of inputs, or of what was saved.

    Raises:
        SpecError: the folder holds neither, or cannot be read.
    """
    try:
        if (path / _SAVED).is_file():
            return _open_saved(path, model, batch_size)
        return _open_images(path, model, batch_size or BATCH_SIZE)
    except SpecError:
        raise
    except Exception as error:  # of TensorFlow, of nearly any kind
        raise SpecError(
            f"the folder {path} holds neither images, by class or not, nor a data set that "
            f"tf.data.Dataset.save wrote: {first_line(error)}"
        ) from error


def _open_saved(path: Path, model: keras.Model | None, batch_size: int | None) -> Any:
    import tensorflow as tf

    data = tf.data.Dataset.load(str(path))
    inputs = keras.utils.unpack_x_y_sample_weight(data.element_spec)[0]
    ranks = sorted(len(spec.shape) for spec in keras.tree.flatten(inputs))
    wanted = sorted(len(x.shape) for x in getattr(model, "inputs", None) or ())
    if [rank + 1 for rank in ranks] == wanted:
        return data.batch(batch_size or BATCH_SIZE)
    return data


def _open_images(path: Path, model: keras.Model | None, batch_size: int) -> Any:
    height, width, channels = _image_shape(path, model)
    return keras.utils.image_dataset_from_directory(
        path,
        labels=None,
        color_mode=_COLOR_MODES[channels],
        batch_size=batch_size,
        image_size=(height, width),
        seed=0,  # shuffled: batches of a single class are not what training saw
        verbose=False,
    )


def _image_shape(path: Path, model: keras.Model | None) -> tuple[int, int, int]:
    inputs = getattr(model, "inputs", None) or ()
    shape = inputs[0].shape[1:] if len(inputs) == 1 else ()
    if len(shape) == 3 and keras.config.image_data_format() == "channels_first":
        shape = (*shape[1:], shape[0])
    if len(shape) != 3 or None in shape or shape[2] not in _COLOR_MODES:
        raise SpecError(
            f"the images in {path} need a model with one input of fixed height, width and 1, 3 or "
            f"4 channels, but this one takes {[x.shape for x in inputs] or 'anything'}: pass "
            "file.py:callable"
        )
    return shape
