"""The learning rate of a training: read from its optimizer, set as a schedule asks."""

from ckptavg.errors import SaverError
from ckptavg.saving.framework import Training
from ckptavg.saving.schedule import Schedule


def initial_rate(training: Training, schedule: Schedule) -> float | None:
    """The rate that the optimizer begins with; None where the schedule leaves rates alone.

    Raises:
        SaverError: the schedule sets rates, but the model has no optimizer, or one with a schedule
            of its own.
    """
    if schedule.kind == "manual":
        return None
    name = getattr(schedule.kind, "__name__", schedule.kind)
    if training.optimizer is None:
        raise SaverError(f"lr_schedule is '{name}', but the model has no optimizer: compile it")
    rate = training.framework.learning_rate(training.optimizer)
    try:
        # Whether rates can be set shows only in an attempt, on every version of Keras.
        training.framework.set_learning_rate(training.optimizer, rate)
    except TypeError as error:
        raise SaverError(
            f"lr_schedule is '{name}', but the optimizer has a schedule of its own: compile it "
            "with a plain learning rate, or use lr_schedule='manual'"
        ) from error
    return rate


class LearningRates:
    """Sets the learning rate of a training epoch by epoch or batch by batch."""

    def __init__(self, training: Training, schedule: Schedule, initial: float | None) -> None:
        """Takes the rate that the schedule starts from; None leaves rates alone.

        Raises:
            SaverError: the schedule cannot start from this rate.
        """
        self._training = training
        self._rates = None if initial is None else schedule.rates(initial)
        self.initial = initial

    def begin_epoch(self, epoch: int) -> float | None:
        """Sets the rate of a 0-based epoch; returns the present one, or None without optimizer."""
        if self._rates is not None:
            # In a cycle each batch sets its rate; logs of the epoch begin with the highest.
            in_cycle = self._rates.cycles(epoch)
            self._set(self._rates.high if in_cycle else self._rates.of_epoch(epoch))
        return self.current()

    def begin_batch(self, epoch: int, batch: int, length: int | None) -> None:
        """Sets the rate of a 0-based batch within a cycle.

        Args:
            epoch: 0-based.
            batch: 0-based index in the epoch.
            length: batches in an epoch, where it is known.

        Raises:
            SaverError: nobody knows how many batches an epoch has.
        """
        if self._rates is None or not self._rates.cycles(epoch):
            return
        if length is None:
            raise SaverError(
                "the 'cyclic' schedule needs the number of batches in an epoch, but the data do "
                "not say it and no epoch has been seen yet: pass steps_per_epoch to fit"
            )
        # Keras announces one batch too many when it finds the end of the data by reaching it.
        # One call may cover several batches: the rate is that of the last of them.
        framework, model = self._training.framework, self._training.model
        last = min(batch + framework.steps_per_execution(model), length) - 1
        self._set(self._rates.of_batch(epoch, last, length))

    def current(self) -> float | None:
        """The present learning rate; None without an optimizer."""
        optimizer = self._training.optimizer
        return None if optimizer is None else self._training.framework.learning_rate(optimizer)

    def _set(self, rate: float) -> None:
        framework = self._training.framework
        # On JAX, fit keeps the optimizer's state apart: a rate set without this would be lost.
        framework.synchronize(self._training.model)
        framework.set_learning_rate(self._training.optimizer, rate)
