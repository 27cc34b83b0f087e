"""CheckpointSaver for models of Keras 2, the package tf_keras."""

from typing import Any

import tf_keras

from ckptavg.saving.callback import SavingCallback
from ckptavg.tf_keras_saving import Keras2


class CheckpointSaver(SavingCallback, tf_keras.callbacks.Callback):
    """Writes the weights of a tf_keras model at SWA-frequency epochs, each with a record.

    Arguments and behaviour are those of `ckptavg.CheckpointSaver`. Checkpoints are weights files of
    Keras 2, `<directory>/checkpoints/epoch-0016.h5`, as `model.save_weights` writes them. They hold
    no optimizer state and come in single files of float32, float16 or the model's own types, so
    that `include_optimizer`, `max_shard_size` and `save_dtype="bfloat16"` are errors. There is no
    `model.json`, because Keras 3 could not build the model. Load the average with tf_keras:

    Example:
        >>> saver = ckptavg.tf_keras.CheckpointSaver("run", start_epoch=16)
        >>> model.fit(x, y, epochs=30, callbacks=[saver])
        >>> ckptavg.merge("run", "swa.h5")
        >>> model.load_weights("swa.h5")
    """

    framework = Keras2()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Otherwise tf_keras would fetch the logs of every batch, and wait for it to end.
        self._supports_tf_logs = True
