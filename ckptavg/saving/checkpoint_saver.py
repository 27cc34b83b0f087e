"""CheckpointSaver, the Keras callback that writes the checkpoints to average later."""

import keras

from ckptavg.saving.callback import SavingCallback
from ckptavg.saving.keras3 import Keras3


class CheckpointSaver(SavingCallback, keras.callbacks.Callback):
    """Writes the weights at SWA-frequency epochs, each with a record, for `ckptavg merge`.

    Checkpoints go to `<directory>/checkpoints/epoch-0016.weights.h5`, without optimizer state, and
    their records to `epoch-0016.json` beside them. A checkpoint counts as saved once its record
    exists: both are written under temporary names, made durable and renamed, so that a crash leaves
    no half of either. `<directory>/model.json` holds the configuration of the model, if Keras can
    serialize it, and `<directory>/history.jsonl` what Keras logged of every epoch, saved or not:
    `ckptavg.open_run(directory).history`.

    Training waits only for a copy of the weights in host memory: another thread writes the file,
    and `fit` ends when the last one is written. A directory belongs to one training at a time,
    which holds its lock. Weights with NaN or infinity are saved, and marked in their record, so
    that averages leave them out. In a training of several processes, the chief writes.

    Args:
        directory: folder of the run; created if it does not exist.
        start_epoch: first epoch of averaging, 1-based; 2 or more with the schedules `constant` and
            `cyclic`. Optional with `save_freq`.
        swa_freq: epochs from one checkpoint to the next; in a `cyclic` schedule the length of a
            cycle, 2 or more, with a checkpoint at the end of each.
        lr_schedule: `manual` leaves the learning rate alone. `constant` keeps the initial rate for
            the first half of the epochs before `start_epoch`, lowers it linearly to `swa_lr` until
            nine tenths of them, and stays there. `cyclic` does the same until `start_epoch`, then
            lets the rate fall from `swa_lr2` to `swa_lr` in each cycle, batch by batch. A function
            returns the rate of each epoch, given its 0-based number and the initial rate. Of
            several optimizers, as in a GAN, each follows the schedule from its own initial rate.
        swa_lr: learning rate of averaging, or the lowest of a cycle; `auto` is a tenth of the
            optimizer's initial rate.
        swa_lr2: highest rate of a cycle; `auto` is a quarter of the way from `swa_lr` to the
            initial rate.
        save_freq: save every so many optimizer steps instead of at the end of epochs, for trainings
            with long epochs; files are then called `step-00001000.weights.h5`.
        start_step: with `save_freq`, the first step to save at.
        existing: what to do if the directory holds checkpoints: `error` refuses; `resume` resumes
            that training, whose weights, optimizer and `initial_epoch` come from `ckptavg.resume`
            (learning rates continue as they would have, and checkpoints of later
            epochs are replaced one by one as these epochs end); `overwrite` removes them when
            training begins.
        max_to_keep: number of checkpoints to keep, the newest; all by default.
        keep_best: `(monitor, count)` or `(monitor, count, mode)`: keep the best by a metric that
            Keras logs, in addition to the newest `max_to_keep`, or to the last one. `mode` is `min`
            or `max`, for metrics whose names do not say which is better. Checkpoints of epochs
            without the metric, as between validations (`validation_freq`), are never among the
            best; until an epoch has had it, only `max_to_keep` removes checkpoints.
        include_optimizer: whether files also hold the optimizer's state, so that a training can be
            resumed from one; averages drop it.
        save_dtype: `bfloat16`, `float16` or `float32`: store floating-point weights in this type,
            rounded to nearest; by default in the types of the model.
        max_shard_size: split checkpoints into files of at most this many GB (2^30 bytes), as Keras
            does; an index `epoch-0016.weights.json` names them.
        on_error: `raise` stops training when a checkpoint cannot be saved, when the next epoch
            begins or ends; `warn` warns and trains on. Checkpoints that were saved stay intact.
        in_flight: how many checkpoints may wait to be written, each in a host copy of its own; a
            save beyond that makes training wait, with a warning.
        tracked_sigmas: widths of power-function averages of the weights to keep during training, as
            fractions of it: `sigma_rel` of Karras et al., arXiv 2312.02696, between 0 and 0.289.
            From two, such as `(0.05, 0.10)`, `ckptavg merge run --recipe posthoc-ema --sigma-rel S`
            makes an average of any other width afterwards. They are updated on the device after
            every optimizer step, in float32, and saved as checkpoints of the run,
            `ema-0.050-step-00004096.weights.h5`, which other recipes ignore and `max_to_keep` does
            not count. Each costs a float32 copy of the model on the device, one in host memory for
            each of `in_flight`, and one on disk each time it is saved; and Keras waits for its
            device after every batch, as for any callback with hooks for batches. With
            `steps_per_execution` callbacks see the weights after an execution only: these count for
            all of its steps. Works on one device, or under `MirroredStrategy`.
        track_freq: optimizer steps from one save of the tracked averages to the next; by default 64
            to 127 saves in a training, including the ends of epochs (with 128 epochs and more, of
            every second, third ... epoch). Where Keras does not know the length of an epoch, they
            are saved only at the end of the first one. A training that resumes from the end of an
            epoch at which they or a checkpoint were saved has the averages of one that never
            stopped; from elsewhere, the steps since the last save count with the weights that
            follow, and a warning says so.
        verbose: 1 prints a line for every checkpoint.

    Attributes:
        blocked: seconds that each save of this training kept it waiting.

    Raises:
        SaverError: an argument cannot work (raised here or when training begins), the directory
            holds checkpoints or belongs to another training, or a checkpoint cannot be saved.

    Example:
        >>> saver = ckptavg.CheckpointSaver(
        ...     "run", start_epoch=16, swa_freq=1, lr_schedule="constant", swa_lr=0.01
        ... )
        >>> model.fit(x, y, epochs=30, callbacks=[saver])

        A training of weeks that must survive the machine, saved every 1000 steps, in half the
        bytes, keeping the 20 newest and the 5 best:

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

        Exponential averages whose width is chosen after the training:

        >>> saver = ckptavg.CheckpointSaver("run", start_epoch=30, tracked_sigmas=(0.05, 0.10))
        >>> model.fit(x, y, epochs=30, callbacks=[saver])
        >>> ckptavg.merge("run", "ema.weights.h5", recipe="posthoc-ema:0.13")
    """

    framework = Keras3()
