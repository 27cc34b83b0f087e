"""SWA, the Keras callback that averages weights within `fit`, BatchNorm statistics included."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from ckptavg.batch_norm import BatchNormPass
from ckptavg.saving.epoch_pass import EpochPass
from ckptavg.saving.keras3 import Keras3
from ckptavg.saving.swa_callback import AveragingCallback

_JAX_STATE = tuple(
    f"{kind}_variables" for kind in ("trainable", "non_trainable", "optimizer", "metrics")
)


class _KerasPass(EpochPass):
    """The pass on any backend of Keras 3."""

    batch_norm_pass = BatchNormPass

    def _run(self, *arguments: Any) -> Any:
        # Each backend's fit hands other things to the function that it calls for a batch.
        runs: dict[str, Callable[..., Any]] = {
            "tensorflow": self._take_execution,
            "torch": self._on_torch,
            "jax": self._on_jax,
        }
        return runs[keras.backend.backend()](*arguments)

    def _take_execution(self, iterator: Iterator[Any]) -> dict[str, Any]:
        logs = {}
        for _ in range(self._model.steps_per_execution):
            logs = self._take(next(iterator))
        return logs

    def _on_torch(self, batches: Iterable[Any]) -> dict[str, Any]:
        logs = {}
        for batch in batches:
            logs = self._take(batch)
        return logs

    def _on_jax(self, state: Any, iterator: Iterator[Any]) -> tuple[dict[str, Any], Any]:
        model = self._model
        # fit keeps the state of an epoch beside the variables: it is put back for the pass, which
        # changes nothing of it except the metrics, and is handed to Keras again afterwards.
        model._jax_state = dict(zip(_JAX_STATE, state, strict=True))
        model._jax_state_synced = False
        model.jax_state_sync()
        logs = self._take_execution(iterator)
        return logs, model._get_jax_state(**dict.fromkeys(_JAX_STATE, True))

    def _take(self, batch: Any) -> dict[str, Any]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        with self._pass:
            outputs = self._pass.add(x)
        if type(self._model).train_step is not keras.Model.train_step:
            return {}  # what a custom training step would log is unknown
        return _logs(self._model, x, y, sample_weight, outputs)


class SWA(AveragingCallback, keras.callbacks.Callback):
    """Stochastic weight averaging within `fit`, with the arguments of keras-swa.

    The epochs to be averaged are saved to a directory, their mean is computed as `ckptavg merge`
    does it, exactly and in fixed memory, and `fit` leaves the mean in the model. Where the model
    has trainable BatchNorm layers, the last epoch trains nothing: its batches go through the
    averaged network in training mode, and their pooled statistics become those of the layers, as
    `ckptavg.update_batch_norm` sets them. No other variable changes.

    A training that stops early (`EarlyStopping`) leaves the mean of what was saved, and warns that
    the BatchNorm statistics are not those of the mean, unless `bn_data` is given. After an
    exception the model keeps the weights that it had, and the checkpoints stay. Put callbacks that
    set weights at the end of training, such as `EarlyStopping(restore_best_weights=True)`, before
    this one.

    Args:
        start_epoch: first epoch of averaging, 1-based, 2 or more.
        lr_schedule: `manual`, `constant` or `cyclic`, see `CheckpointSaver`.
        swa_lr: learning rate of averaging, or the lowest of a cycle; `auto` is a tenth of the
            optimizer's initial rate.
        swa_lr2: highest rate of a cycle; `auto` is a quarter of the way from `swa_lr` to the
            initial rate.
        swa_freq: epochs from one checkpoint to the next; the length of a cycle.
        batch_size: accepted for compatibility with keras-swa; the batches are those of `fit`.
        verbose: 1 prints what happens.
        directory: folder of the run, which stays; by default a temporary one, removed at the end.
        bn_data: data to estimate BatchNorm statistics from after the last epoch, which then trains
            and is averaged like the others; anything that `update_batch_norm` accepts.
        existing: what to do with checkpoints in `directory`, see `CheckpointSaver`.

    Raises:
        SaverError: an argument cannot work (raised here or when training begins), or a checkpoint
            cannot be saved.
        DataError: a batch of the last epoch brought NaN or infinity to a BatchNorm layer.

    Example:
        >>> swa = ckptavg.SWA(start_epoch=75, lr_schedule="constant", swa_lr=0.01, verbose=1)
        >>> model.fit(x, y, epochs=100, callbacks=[swa])
    """

    framework = Keras3()
    epoch_pass = _KerasPass


def _logs(model: keras.Model, x: Any, y: Any, sample_weight: Any, outputs: Any) -> dict[str, Any]:
    """Loss and metrics of a batch, as a training step logs them."""
    strategy = getattr(model, "distribute_strategy", None)

    def update(x: Any, y: Any, sample_weight: Any, outputs: Any) -> None:
        model._clear_losses()  # those that tracing the pass left behind
        loss = model.compute_loss(
            x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
        )
        samples = keras.ops.shape(keras.tree.flatten(x)[0])[0]
        model._loss_tracker.update_state(loss, sample_weight=samples)
        model.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    if strategy is not None and strategy.num_replicas_in_sync > 1:
        strategy.run(update, args=(x, y, sample_weight, outputs))
    else:
        update(x, y, sample_weight, outputs)
    return dict(model.get_metrics_result())
