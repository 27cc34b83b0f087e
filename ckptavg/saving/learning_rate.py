"""The learning rates of a training: those that a schedule wants, set on its optimizer."""

from collections.abc import Mapping
from typing import Any

from ckptavg.errors import SaverError
from ckptavg.saving.framework import Framework
from ckptavg.saving.schedule import Schedule


class Rates:
    """Sets the learning rate as a schedule says, and tells what it is.

    Attributes:
        initial: the rate that the schedule starts from; 0.0 where it sets none.
    """

    def __init__(self, framework: Framework, schedule: Schedule) -> None:
        self._framework = framework
        self._schedule = schedule
        self.initial = 0.0

    def begin(self, model: Any, params: Mapping[str, Any]) -> None:
        """Begins a training.

        Raises:
            SaverError: rates are to be set, but the model has no optimizer or one with a schedule
                of its own.
        """
        self._model = model
        self._steps: int | None = (params or {}).get("steps")
        self._seen = 0
        self.initial = self._present() if self._schedule.sets_rate else 0.0

    def start_from(self, initial: float) -> None:
        """Takes another initial rate than the optimizer's, that of a run which goes on.

        Raises:
            SaverError: the schedule does not begin at such a rate.
        """
        self.initial = initial
        self._schedule.rates(initial)

    def begin_epoch(self, epoch: int) -> float | None:
        """Sets the rate of a 0-based epoch; returns the present one, or None without optimizer."""
        self._seen = 0
        if self._schedule.sets_rate:
            if self._cycles(epoch):
                rate = self._schedule.rates(self.initial)[1]
            else:
                rate = self._schedule.epoch_rate(epoch, self.initial)
            self._set(rate)
        return self.current()

    def begin_batch(self, epoch: int, batch: int) -> None:
        """Sets the rate of a batch, where it is the schedule's to set."""
        if not self._cycles(epoch):
            return
        if not self._steps:
            raise SaverError(
                "the 'cyclic' schedule must know the number of batches in an epoch, but the data "
                "do not tell it and no epoch was seen yet: pass steps_per_epoch to fit"
            )
        # Keras announces one batch too many when it finds the end of the data by reaching it.
        # One call may stand for several batches: the rate is that of the last of them.
        last = min(batch + self._framework.steps_per_execution(self._model), self._steps) - 1
        self._set(self._schedule.batch_rate(epoch, last, self._steps, self.initial))

    def end_batch(self, batch: int) -> None:
        """Notes that a batch is over."""
        self._seen = batch + 1

    def end_epoch(self) -> None:
        """Notes the number of batches, if the data did not tell it."""
        self._steps = self._steps or self._seen or None

    def current(self) -> float | None:
        """The present learning rate; None without an optimizer."""
        optimizer = getattr(self._model, "optimizer", None)
        return None if optimizer is None else self._framework.learning_rate(optimizer)

    def _cycles(self, epoch: int) -> bool:
        return self._schedule.kind == "cyclic" and epoch >= self._schedule.start_epoch - 1

    def _set(self, rate: float) -> None:
        self._framework.synchronize(self._model)
        self._framework.set_learning_rate(self._model.optimizer, rate)

    def _present(self) -> float:
        optimizer = getattr(self._model, "optimizer", None)
        name = getattr(self._schedule.kind, "__name__", self._schedule.kind)
        if optimizer is None:
            raise SaverError(f"lr_schedule is '{name}', but the model has no optimizer: compile it")
        rate = self._framework.learning_rate(optimizer)
        try:
            self._framework.set_learning_rate(optimizer, rate)
        except TypeError as error:
            raise SaverError(
                f"lr_schedule is '{name}', but the optimizer has a schedule of its own: compile it "
                "with a plain learning rate, or use lr_schedule='manual'"
            ) from error
        return rate
