"""What CheckpointSaver does as a callback, for any framework: Keras' hooks, and nothing else."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ckptavg.errors import SaverError
from ckptavg.models.user_code import refuse_training
from ckptavg.saving.framework import Framework, Training
from ckptavg.saving.options import KeepBest, KeepBestArgument, Options, sigmas_of
from ckptavg.saving.prepared_training import PreparedTraining
from ckptavg.saving.schedule import RateFunction, Schedule
from ckptavg.saving.session import TrainingSession


class SavingCallback:
    """Saves checkpoints while a model trains; mixed with the Callback class of a framework.

    The training thread copies the weights to the host. Another one writes the file, makes it
    durable, writes the record and removes what is not to be kept. An error there is raised when
    the next epoch begins or ends, and when training ends, which waits for the last write.

    Attributes:
        directory: directory of the run.
        schedule: when to save, at which rates to train.
        options: what to write and to keep.
        verbose: whether to print a line for every checkpoint.
        blocked: seconds that each save of this training kept it waiting.
    """

    framework: ClassVar[Framework]

    model: Any
    params: Mapping[str, Any]

    def __init__(
        self,
        directory: str | Path,
        *,
        start_epoch: int | None = None,
        swa_freq: int = 1,
        lr_schedule: str | RateFunction = "manual",
        swa_lr: float | str = "auto",
        swa_lr2: float | str = "auto",
        save_freq: int | None = None,
        start_step: int = 0,
        existing: str = "error",
        max_to_keep: int | None = None,
        keep_best: KeepBestArgument | None = None,
        include_optimizer: bool = False,
        save_dtype: str | None = None,
        max_shard_size: float | None = None,
        on_error: str = "raise",
        in_flight: int = 1,
        tracked_sigmas: Sequence[float] | None = None,
        track_freq: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self.directory = Path(directory)
        self.schedule = Schedule(
            lr_schedule, start_epoch, swa_freq, swa_lr, swa_lr2, save_freq, start_step
        )
        self.options = Options(
            existing=existing,
            max_to_keep=max_to_keep,
            keep_best=None if keep_best is None else KeepBest.of(keep_best),
            include_optimizer=include_optimizer,
            save_dtype=save_dtype,
            max_shard_size=max_shard_size,
            on_error=on_error,
            in_flight=in_flight,
            tracked_sigmas=() if tracked_sigmas is None else sigmas_of(tracked_sigmas),
            track_freq=track_freq,
        )
        self.framework.check(self.options)
        self.verbose = verbose
        self.blocked: list[float] = []
        self._prepared: PreparedTraining | None = None
        self._session: TrainingSession | None = None
        # These hooks are set only where they are needed: for a callback that has them, Keras waits
        # for its device after each batch.
        if self.schedule.kind == "cyclic":
            self.on_train_batch_begin = self._begin_batch
        if self.schedule.kind == "cyclic" or save_freq is not None or self.options.tracked_sigmas:
            self.on_train_batch_end = self._end_batch

    def set_model(self, model: Any) -> None:
        keras_callback: Any = super()  # the class that this one is mixed with
        keras_callback.set_model(model)
        # What an unbuilt model saves is known after its first batch: when the next one begins, for
        # which Keras need not wait for its device.
        if not self.framework.is_built(model, self.options.include_optimizer):
            self.on_train_batch_begin = self._begin_batch

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        refuse_training()  # before anything of an earlier training is touched
        # No hook says that an exception has ended a training: a former one may still hold its run.
        if self._prepared is not None:
            self._prepared.abandon()
        self._prepared, self._session, self.blocked = None, None, []
        training = Training.of(self.framework, self.model, self.params)
        self._check_epochs(training.epochs)
        self._prepared = PreparedTraining(training, self.directory, self.schedule, self.options)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        with self._abandoned_on_error():
            if self._session is None:
                assert self._prepared is not None, "training begins before its first epoch"
                self._session = TrainingSession(self._prepared, epoch, self._say)
                self.blocked = self._session.blocked
            self._session.collect()
            rate = self._session.begin_epoch(epoch)
        if logs is not None and rate is not None:
            logs["learning_rate"] = rate
        if epoch + 1 == self.schedule.start_epoch:
            self._say(epoch, f"saving checkpoints to {self.directory} from now on")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._present.end_epoch({} if logs is None else logs, self._is_due(epoch))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._session is not None:
            self._session.end()
        elif self._prepared is not None:  # without any epoch
            self._prepared.close()

    @property
    def _present(self) -> TrainingSession:
        """The session of the training in progress."""
        assert self._session is not None, "an epoch begins before its batches, and before it ends"
        return self._session

    def _begin_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        with self._abandoned_on_error():
            self._present.begin_batch(batch)

    def _end_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        with self._abandoned_on_error():
            self._present.end_batch(batch, logs or {})

    def _is_due(self, epoch: int) -> bool:
        """Whether a checkpoint is to be saved at the end of a 0-based epoch."""
        return self.schedule.saves(epoch)

    def _check_epochs(self, epochs: int | None) -> None:
        """Makes sure that a training of so many epochs saves a checkpoint."""
        if epochs is not None and epochs < self.schedule.first_save:
            raise SaverError(
                f"training ends with epoch {epochs}, before the first checkpoint is due at the end "
                f"of epoch {self.schedule.first_save}: train longer or lower start_epoch"
            )

    @contextlib.contextmanager
    def _abandoned_on_error(self) -> Iterator[None]:
        """Finishes saves under way and gives up the run if an error ends the training here."""
        try:
            yield
        except BaseException:
            if self._prepared is not None:
                self._prepared.abandon()
            raise

    def _say(self, epoch: int | None, message: str) -> None:
        if self.verbose:
            print(f"\n{message}" if epoch is None else f"\nEpoch {epoch + 1}: {message}")  # noqa: T201
