"""The learning rates of a training: read from its optimizers, set as a schedule asks."""

from collections.abc import Sequence
from typing import Any

from ckptavg.errors import SaverError
from ckptavg.saving.framework import Training
from ckptavg.saving.schedule import Schedule, ScheduledRates


def initial_rates(training: Training, schedule: Schedule) -> list[float] | None:
    """The rates that the optimizers begin with; None where the schedule leaves rates alone.

    Raises:
        SaverError: the schedule sets rates, but the model has no optimizer, one has a schedule of
            its own, or the schedule cannot start from the rate of any.
    """
    if schedule.kind == "manual":
        return None
    name = getattr(schedule.kind, "__name__", str(schedule.kind))
    if not training.optimizers:
        raise SaverError(f"lr_schedule is '{name}', but the model has no optimizer: compile it")
    return [_settable_rate(training, optimizer, name) for optimizer in training.optimizers]


def scheduled(
    schedule: Schedule, initial: Sequence[float]
) -> tuple[dict[int, ScheduledRates], dict[int, SaverError]]:
    """The rates of each optimizer by its number, and why the schedule cannot start from others.

    Raises:
        SaverError: it can start from none of the rates.
    """
    rates: dict[int, ScheduledRates] = {}
    refused: dict[int, SaverError] = {}
    for number, rate in enumerate(initial):
        try:
            rates[number] = schedule.rates(rate)
        except SaverError as error:
            refused[number] = error
    if not rates:
        raise refused[0]
    return rates, refused


def _settable_rate(training: Training, optimizer: Any, name: str) -> float:
    rate = training.framework.learning_rate(optimizer)
    try:
        # Whether rates can be set shows only in an attempt, on every version of Keras.
        training.framework.set_learning_rate(optimizer, rate)
    except TypeError as error:
        raise SaverError(
            f"lr_schedule is '{name}', but the optimizer has a schedule of its own: compile it "
            "with a plain learning rate, or use lr_schedule='manual'"
        ) from error
    return rate


class LearningRates:
    """Sets the learning rates of a training epoch by epoch or batch by batch.

    A model may have several optimizers, as a GAN has. Each follows the schedule from its own
    initial rate. Which of them train is seen by their steps only: the one that `compile()` makes by
    default may be there for nothing.

    See docs/decisions/0080-every-optimizer-is-scheduled.md.
    """

    def __init__(
        self, training: Training, schedule: Schedule, initial: Sequence[float] | None
    ) -> None:
        """Takes the rates that the schedule starts from; None leaves rates alone.

        Raises:
            SaverError: the schedule can start from none of these rates.
        """
        self._training = training
        self._optimizers = training.optimizers
        self._initial = initial
        self._rates, self._refused = ({}, {}) if initial is None else scheduled(schedule, initial)
        self._started = self._steps()

    @property
    def initial(self) -> float | None:
        """The rate that the schedule started from; None without one, or if they differ."""
        return None if self._initial is None else self._common(self._initial)

    def begin_epoch(self, epoch: int) -> float | None:
        """Sets the rates of a 0-based epoch; returns what `current` does.

        Raises:
            SaverError: an optimizer trains from whose rate the schedule cannot start.
        """
        trains = self._training_ones()
        for number, error in self._refused.items():
            if number in trains:
                raise error
        for number, rates in self._rates.items():
            # In a cycle each batch sets its rate; logs of the epoch begin with the highest.
            self._set(number, rates.high if rates.cycles(epoch) else rates.of_epoch(epoch))
        return self.current()

    def begin_batch(self, epoch: int, batch: int, length: int | None) -> None:
        """Sets the rates of a 0-based batch within a cycle.

        Args:
            epoch: 0-based.
            batch: 0-based index in the epoch.
            length: batches in an epoch, where it is known.

        Raises:
            SaverError: nobody knows how many batches an epoch has.
        """
        for number, rates in self._rates.items():
            if not rates.cycles(epoch):
                return
            if length is None:
                raise SaverError(
                    "the 'cyclic' schedule needs the number of batches in an epoch, but the data "
                    "do not say it and no epoch has been seen yet: pass steps_per_epoch to fit"
                )
            # Keras announces one batch too many when it finds the end of the data by reaching it.
            # One call may cover several batches: the rate is that of the last of them.
            framework, model = self._training.framework, self._training.model
            last = min(batch + framework.steps_per_execution(model), length) - 1
            self._set(number, rates.of_batch(epoch, last, length))

    def current(self) -> float | None:
        """The present learning rate; None without an optimizer, or if those that train differ."""
        return self._common([*map(self._training.framework.learning_rate, self._optimizers)])

    def _common(self, rates: Sequence[float]) -> float | None:
        """The rate of the optimizers that train, if it is one."""
        if len(rates) == 1:
            return rates[0]  # without asking for steps, which waits for the device
        trains = self._training_ones()
        found = {rate for number, rate in enumerate(rates) if not trains or number in trains}
        return found.pop() if len(found) == 1 else None

    def _training_ones(self) -> set[int]:
        """Numbers of the optimizers that have taken steps; none before the first."""
        steps = zip(self._steps(), self._started, strict=True)
        return {number for number, (now, before) in enumerate(steps) if now != before}

    def _steps(self) -> list[int]:
        if len(self._optimizers) < 2:
            return []  # a single one trains
        return [*map(self._training.framework.iterations, self._optimizers)]

    def _set(self, number: int, rate: float) -> None:
        framework = self._training.framework
        # On JAX, fit keeps the optimizer's state apart: a rate set without this would be lost.
        framework.synchronize(self._training.model)
        framework.set_learning_rate(self._optimizers[number], rate)
