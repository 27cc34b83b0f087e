"""CheckpointSaver and SWA for models of Keras 2, the package tf_keras."""

from collections.abc import Iterator
from typing import Any

import tf_keras

from ckptavg.batch_norm.keras2 import BatchNormPass2
from ckptavg.saving.callback import SavingCallback
from ckptavg.saving.epoch_pass import EpochPass
from ckptavg.saving.keras2 import Keras2, KerasCallback
from ckptavg.saving.swa_callback import AveragingCallback


class CheckpointSaver(SavingCallback, KerasCallback):
    """Writes the weights of a tf_keras model at SWA-frequency epochs, each with a record.

    Arguments and behaviour are those of `ckptavg.CheckpointSaver`. Checkpoints are weights files of
    Keras 2, `<directory>/checkpoints/epoch-0016.h5`, as `model.save_weights` writes them. They hold
    no optimizer state and are single files of float32, float16 or the types of the model, so
    `include_optimizer`, `max_shard_size` and `save_dtype="bfloat16"` are errors. There is no
    `model.json`, because Keras 3 could not build the model. Load the average with tf_keras:

    Example:
        >>> saver = ckptavg.tf_keras.CheckpointSaver("run", start_epoch=16)
        >>> model.fit(x, y, epochs=30, callbacks=[saver])
        >>> ckptavg.merge("run", "swa.h5")
        >>> model.load_weights("swa.h5")
    """

    framework = Keras2()


class _KerasPass(EpochPass):
    batch_norm_pass = BatchNormPass2

    def _run(self, iterator: Iterator[Any]) -> dict[str, Any]:
        logs = {}
        for _ in range(CheckpointSaver.framework.steps_per_execution(self._model)):
            x, y, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(next(iterator))
            outputs = self._pass.add(x)
            logs = _logs(self._model, x, y, sample_weight, outputs)
        return logs


class SWA(AveragingCallback, KerasCallback):
    """Stochastic weight averaging within `fit` of a tf_keras model; see `ckptavg.SWA`.

    Example:
        >>> swa = ckptavg.tf_keras.SWA(start_epoch=75, lr_schedule="constant", swa_lr=0.01)
        >>> model.fit(x, y, epochs=100, callbacks=[swa])
    """

    framework = Keras2()
    epoch_pass = _KerasPass


def _logs(model: Any, x: Any, y: Any, sample_weight: Any, outputs: Any) -> dict[str, Any]:
    """Loss and metrics of a batch, as a training step logs them."""
    if type(model).train_step is not tf_keras.Model.train_step:
        return {"loss": float("nan")}  # what a custom training step would log is unknown

    def update(x: Any, y: Any, sample_weight: Any, outputs: Any) -> None:
        model.compute_loss(x, y, outputs, sample_weight)
        model.compute_metrics(x, y, outputs, sample_weight)

    model.distribute_strategy.run(update, (x, y, sample_weight, outputs))
    return dict(model.get_metrics_result())
