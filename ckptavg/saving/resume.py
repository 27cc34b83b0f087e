"""`resume`: puts a model where the last checkpoint of its run left it."""

import sys
from pathlib import Path
from typing import Any

import keras

from ckptavg.errors import ModelError, RunError, warn
from ckptavg.models.optimizer_state import load_with_optimizers
from ckptavg.runs.checkpoint import RecordedCheckpoint
from ckptavg.runs.describe import list_epochs
from ckptavg.runs.history import HISTORY_FILE, read_history
from ckptavg.runs.reading import reading
from ckptavg.runs.run import CHECKPOINT_FOLDER, finding, recorded
from ckptavg.storage.background import wait_for_writes


def resume(run: str | Path, model: Any) -> int:
    """Loads the last checkpoint of a run into a model, so that `fit` resumes the training.

    Weights are loaded and, where the run was saved with `include_optimizer=True`, the state of the
    optimizers; that of `compile()` is built first, which Keras does not do. Every byte is proven by
    the digests of the record. The same script begins a training and resumes it: of a run that holds
    no checkpoint yet nothing is loaded.

    Args:
        run: directory of the run, what `CheckpointSaver` is given. It need not exist.
        model: the model that is to train: compiled and built, as it was at the beginning. One of
            tf_keras, whose checkpoints hold no optimizer, gets its weights.

    Returns:
        The `initial_epoch` to pass to `fit`: the number of epochs that are complete, 0 if the run
        holds no checkpoint. An epoch in the middle of which `save_freq` saved the last checkpoint
        begins again.

    Warns:
        CkptavgWarning: the last checkpoints hold NaN or infinity, and an earlier one was loaded.

    Raises:
        RunError: all checkpoints hold NaN or infinity, or are being removed, or cannot be read.
        RecordError: a record or the history is damaged.
        FormatError: the checkpoint is damaged.
        IntegrityError: the checkpoint differs from its record.
        ModelError: the checkpoint, or the state of an optimizer in it, does not fit the model, or
            the model is not built.

    Example:
        >>> saver = ckptavg.CheckpointSaver(
        ...     "run", start_epoch=16, include_optimizer=True, existing="resume"
        ... )
        >>> initial_epoch = ckptavg.resume("run", model)  # 0 the first time
        >>> model.fit(x, y, epochs=30, initial_epoch=initial_epoch, callbacks=[saver])
    """
    directory = Path(run)
    wait_for_writes()
    folder = directory / CHECKPOINT_FOLDER
    with finding():
        checkpoints = recorded(folder)[0] if folder.is_dir() else []
    if not checkpoints:
        return 0
    last = _last_finite(directory, checkpoints)
    is_keras_2 = not isinstance(model, keras.Model)
    if is_keras_2 and not _is_of_tf_keras(model):
        raise ModelError(
            f"the model is a {type(model).__module__}.{type(model).__qualname__}, but must be a "
            "keras.Model of Keras 3 or of tf_keras"
        )
    if not model.built:
        raise ModelError(
            f"the model '{model.name}' has no weights yet, into which a checkpoint could be "
            "loaded: call it on a batch first"
        )
    with reading([last.path]):
        if is_keras_2:
            from ckptavg.saving.keras2 import Keras2

            Keras2().load(model, last.path)
        else:
            load_with_optimizers(model, last.path)
    return _complete_epochs(directory, last)


def _last_finite(directory: Path, checkpoints: list[RecordedCheckpoint]) -> RecordedCheckpoint:
    finite = [c for c in checkpoints if not c.record.non_finite]
    if not finite:
        raise RunError(f"all checkpoints of {directory} hold NaN or infinity: begin a new run")
    left_out = checkpoints[checkpoints.index(finite[-1]) + 1 :]
    if left_out:
        warn(
            f"checkpoints of epochs {list_epochs(c.epoch for c in left_out)} hold NaN or infinity: "
            f"training resumes from epoch {finite[-1].epoch}",
            3,
        )
    return finite[-1]


def _is_of_tf_keras(model: Any) -> bool:
    return "tf_keras" in sys.modules and isinstance(model, sys.modules["tf_keras"].Model)


def _complete_epochs(directory: Path, last: RecordedCheckpoint) -> int:
    """The epochs that were over when a checkpoint was saved."""
    if last.record.file.startswith("epoch-"):
        return last.epoch
    logs = read_history(directory / HISTORY_FILE)
    steps = [log.step for log in logs if log.epoch == last.epoch]
    # Saved by steps, in the middle of an epoch or at its end.
    return last.epoch if steps and steps[-1] == last.step else last.epoch - 1
