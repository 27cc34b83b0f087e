"""CheckpointSaver, the Keras callback that writes the checkpoints to average later."""

import contextlib
from pathlib import Path
from typing import Any

import keras

from ckptavg.checkpoints import describe_epochs
from ckptavg.errors import ModelError, RunError, SaverError
from ckptavg.files import TEMPORARY_PREFIX, commit, temporary_sibling, write_text
from ckptavg.keras_models import batch_norm_layers, model_config, save_weights
from ckptavg.proof import tensor_records
from ckptavg.record import BatchNormRecord, Record, now, versions
from ckptavg.run import (
    CHECKPOINT_FOLDER,
    MODEL_FILE,
    RECORD_PATTERN,
    WEIGHTS_SUFFIX,
    open_run,
)
from ckptavg.schedule import Schedule


class CheckpointSaver(keras.callbacks.Callback):
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

    def __init__(
        self,
        directory: str | Path,
        *,
        start_epoch: int,
        swa_freq: int = 1,
        lr_schedule: str = "manual",
        swa_lr: float | str = "auto",
        swa_lr2: float | str = "auto",
        max_to_keep: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self.directory = Path(directory)
        self.schedule = Schedule(lr_schedule, start_epoch, swa_freq, swa_lr, swa_lr2)
        if max_to_keep is not None and (not isinstance(max_to_keep, int) or max_to_keep < 1):
            raise SaverError(f"max_to_keep is {max_to_keep!r}, but must be 1 or more, or None")
        self.max_to_keep = max_to_keep
        self.verbose = verbose
        self._initial_rate = 0.0
        self._first_epoch: int | None = None
        self._epoch = 0
        self._batches_seen = 0
        self._steps: int | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._first_epoch = None
        self._wrote_config = False
        self._steps = self.params.get("steps")
        self._check_epochs()
        if self.schedule.sets_rate:
            self._initial_rate = self._read_initial_rate()
            if not any((self.directory / CHECKPOINT_FOLDER).glob(RECORD_PATTERN)):
                self.schedule.rates(self._initial_rate)
        self._make_folder()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._first_epoch is None:
            self._first_epoch = epoch
            self._open_run(epoch)
        self._epoch = epoch
        self._batches_seen = 0
        if self.schedule.sets_rate and not self._cycles(epoch):
            self._set_rate(self.schedule.epoch_rate(epoch, self._initial_rate))
        if self.verbose and epoch == self.schedule.start_epoch - 1:
            print(f"\nEpoch {epoch + 1}: saving checkpoints to {self.directory} from now on")  # noqa: T201

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._cycles(self._epoch):
            steps = self._steps_per_epoch()
            # Keras announces one batch too many when it finds the end of the data by reaching it.
            # One call may stand for several batches: the rate is that of the last of them.
            last = min(batch + self.model.steps_per_execution - 1, steps - 1)
            self._set_rate(self.schedule.batch_rate(self._epoch, last, steps, self._initial_rate))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches_seen = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._steps is None:
            self._steps = self._batches_seen
        logs = {} if logs is None else logs
        rate = self._current_rate()
        if self.schedule.sets_rate:
            logs["learning_rate"] = rate
        if self.schedule.saves(epoch):
            self._save(epoch, rate, logs)

    def _cycles(self, epoch: int) -> bool:
        return self.schedule.kind == "cyclic" and epoch >= self.schedule.start_epoch - 1

    def _steps_per_epoch(self) -> int:
        if not self._steps:
            raise SaverError(
                "the 'cyclic' schedule must know the number of batches in an epoch, but the data "
                "do not tell it and no epoch was seen yet: pass steps_per_epoch to fit"
            )
        return self._steps

    def _check_epochs(self) -> None:
        epochs = self.params.get("epochs")
        if epochs is not None and epochs < self.schedule.first_save:
            raise SaverError(
                f"training ends with epoch {epochs}, before the first checkpoint is due at the end "
                f"of epoch {self.schedule.first_save}: train longer or lower start_epoch"
            )

    def _open_run(self, first_epoch: int) -> None:
        """Goes on with a run, or refuses one whose checkpoints this training would write again."""
        try:
            run = open_run(self.directory)
        except RunError:
            self._clean()
            return
        if run.records[-1].epoch > first_epoch:
            raise SaverError(
                f"{self.directory} holds {describe_epochs(run.checkpoints)}, but training begins "
                f"with epoch {first_epoch + 1}: choose an empty directory, or go on with "
                "initial_epoch"
            )
        if self.schedule.sets_rate:
            # The optimizer of a training that goes on may hold a rate that was lowered before.
            initial = run.records[-1].initial_learning_rate
            self._initial_rate = self._initial_rate if initial is None else initial
            self.schedule.rates(self._initial_rate)
        self._clean()

    def _clean(self) -> None:
        """Removes what a killed training left unfinished."""
        for leftover in (self.directory / CHECKPOINT_FOLDER).glob(f"{TEMPORARY_PREFIX}*"):
            leftover.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        folder = self.directory / CHECKPOINT_FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaverError(f"cannot use the directory {self.directory}: {error}") from error

    def _read_initial_rate(self) -> float:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            raise SaverError(
                f"lr_schedule is '{self.schedule.kind}', but the model has no optimizer: compile it"
            )
        current = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        try:
            optimizer.learning_rate = current
        except TypeError as error:
            raise SaverError(
                f"lr_schedule is '{self.schedule.kind}', but the optimizer has a schedule of its "
                "own: compile it with a plain learning rate, or use lr_schedule='manual'"
            ) from error
        return current

    def _current_rate(self) -> float | None:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            return None
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def _set_rate(self, rate: float) -> None:
        self.model.optimizer.learning_rate = rate

    def _save(self, epoch: int, rate: float | None, logs: dict[str, Any]) -> None:
        folder = self.directory / CHECKPOINT_FOLDER
        path = folder / f"epoch-{epoch + 1:04d}{WEIGHTS_SUFFIX}"
        record_file = folder / f"epoch-{epoch + 1:04d}.json"
        if record_file.exists():
            raise SaverError(f"{path} was written meanwhile: does another training use this run?")
        self._write_model_config()
        temporary = temporary_sibling(path)
        try:
            save_weights(self.model, temporary)
            tensors = tensor_records(temporary)
            size = temporary.stat().st_size
            commit(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        optimizer = getattr(self.model, "optimizer", None)
        layers = len(batch_norm_layers(self.model))
        record = Record(
            file=path.name,
            size=size,
            time=now(),
            versions=versions(("numpy", "h5py", "keras", keras.backend.backend())),
            epoch=epoch + 1,
            step=int(keras.ops.convert_to_numpy(optimizer.iterations)) if optimizer else None,
            learning_rate=rate,
            initial_learning_rate=self._initial_rate if self.schedule.sets_rate else None,
            metrics=_metrics(logs),
            batch_norm=BatchNormRecord(layers, "running") if layers else None,
            model=f"../{MODEL_FILE}" if (self.directory / MODEL_FILE).is_file() else None,
        )
        record.write(record_file, tensors)
        if self.verbose:
            print(f"\nEpoch {epoch + 1}: saved {path}")  # noqa: T201
        self._prune()

    def _write_model_config(self) -> None:
        """Writes the configuration once in each training: it may be another model's than before."""
        if self._wrote_config:
            return
        self._wrote_config = True
        path = self.directory / MODEL_FILE
        try:
            write_text(path, model_config(self.model).to_json())
        except ModelError as error:
            path.unlink(missing_ok=True)
            if self.verbose:
                print(f"\nno {path}: {error}")  # noqa: T201

    def _prune(self) -> None:
        """Removes the oldest checkpoints beyond max_to_keep, each record before its file."""
        if self.max_to_keep is None:
            return
        for checkpoint in open_run(self.directory).checkpoints[: -self.max_to_keep]:
            record_file = checkpoint.path.with_name(f"epoch-{checkpoint.record.epoch:04d}.json")
            record_file.unlink(missing_ok=True)
            checkpoint.path.unlink(missing_ok=True)


def _metrics(logs: dict[str, Any]) -> dict[str, float]:
    """What Keras logged of an epoch, as far as it is numbers."""
    metrics = {}
    for name, value in logs.items():
        if name != "learning_rate":
            with contextlib.suppress(TypeError, ValueError):
                metrics[name] = float(value)
    return metrics
