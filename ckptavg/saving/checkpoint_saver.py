"""CheckpointSaver, the Keras callback that writes the checkpoints to average later."""

import keras

from ckptavg.saving.callback import SavingCallback
from ckptavg.saving.keras3 import Keras3


class CheckpointSaver(SavingCallback, keras.callbacks.Callback):
    """Writes the weights at SWA-frequency epochs, each with a record, for `ckptavg merge`.

    Checkpoints go to `<directory>/checkpoints/epoch-0016.weights.h5`, without optimizer state, and
    their records to `epoch-0016.json` beside them. A checkpoint counts as saved once its record
    stands: both are written under a temporary name, made durable and renamed, so that a crash
    leaves no half of either. `<directory>/model.json` holds the configuration of the model, where
    Keras can serialize it, and `<directory>/history.jsonl` what Keras logged of every epoch, saved
    or not: `ckptavg.open_run(directory).history`.

    Training waits for a copy of the weights in host memory, and nothing else: another thread
    writes the file, and `fit` ends when the last one is written. A directory belongs to one
    training at a time, which holds its lock. Weights with NaN or infinity are saved, and marked in
    their record, so that averages leave them out. In a training of several processes the chief
    writes.

    Args:
        directory: folder of the run; made if it does not exist.
        start_epoch: first epoch of averaging, 1-based; with the schedules `constant` and `cyclic`
            2 or more. May be left out with `save_freq`.
        swa_freq: epochs from one checkpoint to the next; in a `cyclic` schedule the length of a
            cycle, 2 or more, with a checkpoint at the end of each.
        lr_schedule: `manual` leaves the learning rate alone. `constant` keeps the initial rate for
            the first half of the epochs before `start_epoch`, lowers it in a line to `swa_lr` until
            nine tenths of them, and stays there. `cyclic` does the same until `start_epoch`, then
            lets the rate fall from `swa_lr2` to `swa_lr` in each cycle, batch by batch. A function
            gives the rate of each epoch from its 0-based number and the initial rate.
        swa_lr: learning rate of averaging, or the lowest of a cycle; `auto` is a tenth of the
            optimizer's initial rate.
        swa_lr2: highest rate of a cycle; `auto` is a quarter of the way from `swa_lr` to the
            initial rate.
        save_freq: save every so many optimizer steps instead of at the end of epochs, for trainings
            whose epochs are long; files are then called `step-00001000.weights.h5`.
        start_step: with `save_freq`, the first step to save at.
        existing: what to do where the directory holds checkpoints: `error` refuses; `resume` goes
            on with that training, whose weights and optimizer you load and whose epoch you give as
            `initial_epoch` (rates go on as they would have, and later checkpoints than that epoch
            are replaced one by one as their epochs end); `overwrite` removes them when training
            begins.
        max_to_keep: number of checkpoints to keep, the newest; all by default.
        keep_best: `(monitor, count)` or `(monitor, count, mode)`: keep the best by a metric that
            Keras logs, beside the newest `max_to_keep`, or beside the last one alone. `mode` is
            `min` or `max`, for metrics whose names do not tell. Checkpoints of epochs without the
            metric, as between validations (`validation_freq`), are never among the best; before
            the first one with it, nothing but `max_to_keep` removes any.
        include_optimizer: whether files also hold the optimizer's state, so that a training can go
            on from one; averages drop it.
        save_dtype: `bfloat16`, `float16` or `float32`: store floating weights in this type, rounded
            to nearest; by default as the model has them.
        max_shard_size: split checkpoints into files of at most this many GB (2^30 bytes), as Keras
            does; an index `epoch-0016.weights.json` names them.
        on_error: `raise` stops training when a checkpoint cannot be saved, at the next begin or end
            of an epoch; `warn` says so and trains on. Checkpoints that were saved stay intact.
        in_flight: how many checkpoints may be waiting to be written, each in a host copy of its
            own; a save beyond that waits, and says so.
        tracked_sigmas: lengths of power-function averages of the weights to keep during training,
            as shares of it: `sigma_rel` of Karras et al., arXiv 2312.02696, between 0 and 0.289.
            From two, such as `(0.05, 0.10)`, `ckptavg merge run --recipe posthoc-ema --sigma-rel S`
            makes an average of any other length afterwards. They are updated on the device after
            every optimizer step, in float32, and noted as checkpoints of the run,
            `ema-0.050-step-00004096.weights.h5`, which other recipes leave out and `max_to_keep`
            does not count. Each costs a float32 copy of the model on the device, one in host memory
            for each of `in_flight`, and one on disk for each note; and Keras waits for its device
            after every batch, as for any callback that hears of batches. With
            `steps_per_execution` callbacks see the weights after an execution only: these count for
            all of its steps. On one device, or under `MirroredStrategy`.
        track_freq: optimizer steps from one note to the next; by default at least 64 notes in a
            training, fewer than 128, the ends of epochs among them (with 128 epochs and more, of
            every second, third ... epoch). Where Keras does not know the length of an epoch, the
            first one is noted at its end only. A training that goes on from the end of an epoch
            that was noted or saved has the averages of one that never stopped; from elsewhere, the
            steps since the last note count with the weights that follow, and a warning says so.
        verbose: 1 prints a line for every checkpoint.

    Attributes:
        blocked: seconds that each save of this training kept it waiting.

    Raises:
        SaverError: arguments that cannot work, here or when training begins; a directory that holds
            checkpoints or belongs to another training; or a checkpoint that cannot be saved.

    Example:
        >>> saver = ckptavg.CheckpointSaver(
        ...     "run", start_epoch=16, swa_freq=1, lr_schedule="constant", swa_lr=0.01
        ... )
        >>> model.fit(x, y, epochs=30, callbacks=[saver])

        A training of weeks that is to survive the machine, saved every 1000 steps, in half the
        bytes, the 20 newest and the 5 best:

        >>> saver = ckptavg.CheckpointSaver(
        ...     "run",
        ...     save_freq=1000,
        ...     start_step=100_000,
        ...     save_dtype="bfloat16",
        ...     max_to_keep=20,
        ...     keep_best=("loss", 5),
        ...     existing="resume",
        ...     on_error="warn",
        ... )

        Exponential averages whose length is chosen after the training:

        >>> saver = ckptavg.CheckpointSaver("run", start_epoch=30, tracked_sigmas=(0.05, 0.10))
        >>> model.fit(x, y, epochs=30, callbacks=[saver])
        >>> ckptavg.merge("run", "ema.weights.h5", recipe="posthoc-ema:0.13")
    """

    framework = Keras3()
