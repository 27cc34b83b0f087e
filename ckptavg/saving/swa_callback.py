"""What SWA does as a callback, for any framework: save, average on disk, load, re-estimate."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ckptavg.errors import SaverError, check_count, warn
from ckptavg.merging.merge import run_plan
from ckptavg.merging.plan import MergeOptions, plan_merge
from ckptavg.models.model import check_has_call
from ckptavg.models.specs import as_inputs
from ckptavg.models.user_code import refuse_training
from ckptavg.runs.run import open_run
from ckptavg.saving.callback import SavingCallback
from ckptavg.saving.epoch_pass import EpochPass


class AveragingCallback(SavingCallback):
    """Saves epochs as `CheckpointSaver` does, and leaves their mean in the model.

    Where a model has BatchNorm statistics to re-estimate, the last epoch is a forward pass over its
    batches with the mean in the model, unless `bn_data` is to be used after it.

    Attributes:
        batch_size: accepted for compatibility with keras-swa, and not used.
        bn_data: data for BatchNorm statistics, used after the last epoch.
        epoch_pass: the forward pass of the framework.
    """

    epoch_pass: ClassVar[type[EpochPass]]

    def __init__(
        self,
        start_epoch: int,
        lr_schedule: str = "manual",
        swa_lr: float | str = "auto",
        swa_lr2: float | str = "auto",
        swa_freq: int = 1,
        batch_size: int | None = None,
        verbose: int = 0,
        directory: str | Path | None = None,
        bn_data: Any = None,
        *,
        existing: str = "error",
    ) -> None:
        check_count("start_epoch", start_epoch, SaverError, 2, optional=False)
        super().__init__(
            directory or "",
            start_epoch=start_epoch,
            swa_freq=swa_freq,
            lr_schedule=lr_schedule,
            swa_lr=swa_lr,
            swa_lr2=swa_lr2,
            existing=existing,
        )
        self.batch_size = batch_size
        self.bn_data = bn_data
        self._verbose_swa = verbose
        self._is_temporary = directory is None
        self._pass: EpochPass | None = None  # in the last epoch only
        self._takes_pass = False
        self._final: list[np.ndarray] | None = None
        self._last_epoch = 0
        self.on_train_batch_begin = self._begin_batch

    def _has_statistics(self) -> bool:
        """Whether the model has BatchNorm statistics that a pass would set."""
        return any(layer.trainable for layer in self.framework.batch_norm_layers(self.model))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        refuse_training()
        self._pass, self._final, self._last_epoch = None, None, 0
        if self._has_statistics():
            check_has_call(self.model, self.framework.model_type)
        self._takes_pass = self._has_statistics() and self.bn_data is None
        if not self.framework.is_chief(self.model):
            raise SaverError(
                "SWA averages in one process, but several train together: use CheckpointSaver, "
                "then ckptavg merge"
            )
        if self._is_temporary:
            self.directory = Path(tempfile.mkdtemp(prefix="ckptavg-swa-"))
        try:
            super().on_train_begin(logs)
        except BaseException:
            self._remove()
            raise

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._last_epoch = epoch
        if epoch + 1 == self.schedule.start_epoch:
            self._tell("starting stochastic weight averaging")
        if self._is_pass(epoch):
            epoch_pass = self.epoch_pass(self.model)
            with epoch_pass.undone_by_errors():
                self._set_average()
            self._tell("reinitializing batch normalization layers")
            self._tell("running forward pass to adjust batch normalization")
            self._pass = epoch_pass
            if logs is not None:
                logs["learning_rate"] = 0.0

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._pass is not None:  # validation at the end of this epoch needs the statistics
            self._pass.finish()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._pass is not None:
            self._pass.finish()
            self._pass = None
            self._final = self.model.get_weights()
            logs = {} if logs is None else logs
            logs["learning_rate"] = 0.0
        super().on_epoch_end(epoch, logs)
        if logs is not None and "learning_rate" in logs:
            logs.setdefault("lr", logs["learning_rate"])  # its name in the history of keras-swa
        if epoch + 1 == self.params.get("epochs") and self._final is None:
            self._finish()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        run = None if self._prepared is None else self._prepared.run
        if self._final is not None:
            # Optimizers that average by themselves (use_ema) have overwritten the weights.
            self.model.set_weights(self._final)
        elif run is not None and run.checkpoints:
            self._finish()
        else:
            warn(
                f"training stopped before the end of epoch {self.schedule.first_save}, the first "
                "to be averaged: the model keeps its weights"
            )
        self._remove()

    def _begin_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._pass is not None:
            self._pass.take_batch()
        else:
            super()._begin_batch(batch, logs)

    def _is_due(self, epoch: int) -> bool:
        return super()._is_due(epoch) and not self._is_pass(epoch)

    def _is_pass(self, epoch: int) -> bool:
        """Whether a 0-based epoch is the forward pass."""
        return self._takes_pass and epoch + 1 == self.params.get("epochs")

    def _check_epochs(self, epochs: int | None) -> None:
        if epochs is None:
            return
        if self.schedule.start_epoch >= epochs:
            raise SaverError(
                f"start_epoch is {self.schedule.start_epoch} but training has {epochs} epochs: "
                "averaging must begin before the last one"
            )
        if self.schedule.first_save > epochs - self._takes_pass:
            last = "the forward pass for BatchNorm" if self._takes_pass else "the last one"
            raise SaverError(
                f"the first checkpoint is due at the end of epoch {self.schedule.first_save}, but "
                f"epoch {epochs} is {last}: train longer or lower start_epoch or swa_freq"
            )

    def _finish(self) -> None:
        """Sets the average after the last epoch, and its statistics from `bn_data`."""
        former = self.model.get_weights()
        self._set_average()
        if self._has_statistics() and self.bn_data is not None:
            try:
                data = as_inputs(self.bn_data, model=self.model)
                self.epoch_pass.batch_norm_pass(self.model).run(data)
            except BaseException:
                self.model.set_weights(former)
                raise
        elif self._has_statistics():
            warn(
                "training stopped before its last epoch, the forward pass for BatchNorm: the "
                "statistics are averages, not those of the averaged network. Pass bn_data, or call "
                "ckptavg.update_batch_norm(model, data)"
            )
        self._final = self.model.get_weights()

    def _set_average(self) -> None:
        """Averages the checkpoints on disk, as `ckptavg merge` does, and loads the mean."""
        if self._session is not None:
            self._session.wait()
        output = self.directory / f"average{self.framework.suffix}"
        run_plan(plan_merge(open_run(self.directory), output, MergeOptions(overwrite=True)))
        self.framework.load(self.model, output)
        self._tell("final model weights set to stochastic weight average")

    def _remove(self) -> None:
        if self._is_temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _tell(self, message: str) -> None:
        if self._verbose_swa:
            # These are the lines of keras-swa, whose epochs have five digits.
            print(f"\nEpoch {self._last_epoch + 1:05d}: {message}")  # noqa: T201
