"""CheckpointSaver, the Keras callback that writes the checkpoints to average later."""

import keras

from ckptavg.keras_saving import Keras3
from ckptavg.saving.callback import SavingCallback


class CheckpointSaver(SavingCallback, keras.callbacks.Callback):
    """Writes the weights at SWA-frequency epochs, each with a record, for `ckptavg merge`.

    Checkpoints go to `<directory>/checkpoints/epoch-0016.weights.h5`, without optimizer state, and
    their records to `epoch-0016.json` beside them. A checkpoint counts as saved once its record
    stands: both are written under a temporary name, made durable and renamed, so that a crash
    leaves no half of either. `<directory>/model.json` holds the configuration of the model, where
    Keras can serialize it.

    Args:
        directory: folder of the run; made if it does not exist. It must not hold checkpoints of the
            epochs to come.
        start_epoch: first epoch of averaging, 1-based. Below 2 only with `manual`.
        swa_freq: epochs from one checkpoint to the next; in a `cyclic` schedule the length of a
            cycle, 2 or more, with a checkpoint at the end of each.
        lr_schedule: `manual` leaves the learning rate alone. `constant` keeps the initial rate for
            the first half of the epochs before `start_epoch`, lowers it in a line to `swa_lr` until
            nine tenths of them, and stays there. `cyclic` does the same until `start_epoch`, then
            lets the rate fall from `swa_lr2` to `swa_lr` in each cycle, batch by batch.
        swa_lr: learning rate of averaging, or the lowest of a cycle; `auto` is a tenth of the
            optimizer's initial rate.
        swa_lr2: highest rate of a cycle; `auto` is a quarter of the way from `swa_lr` to the
            initial rate.
        max_to_keep: number of checkpoints to keep, the newest; all by default.
        verbose: 1 prints a line for every checkpoint.

    Raises:
        SaverError: arguments that cannot work, here or when training begins; or a checkpoint of
            an epoch exists already.

    Example:
        >>> saver = ckptavg.CheckpointSaver(
        ...     "run", start_epoch=16, swa_freq=1, lr_schedule="constant", swa_lr=0.01
        ... )
        >>> model.fit(x, y, epochs=30, callbacks=[saver])
    """

    framework = Keras3()
