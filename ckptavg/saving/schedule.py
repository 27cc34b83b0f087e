"""The epochs or steps at which SWA saves, and the learning rates that lead there.

The formulas are those of keras-swa 0.1.7, which users of SWA on Keras know, with one difference:
a cyclic schedule saves at the *end* of each cycle, where the rate is lowest, as Algorithm 1 of the
SWA paper does (Izmailov et al., arXiv 1803.05407), not at the end of the cycle's first epoch.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real

import numpy as np

from ckptavg.errors import SaverError, check_count

SCHEDULES = ("manual", "constant", "cyclic")

RateFunction = Callable[[int, float], float]
"""Returns the learning rate of a 0-based epoch, given the epoch and the initial rate."""


class Schedule:
    """When to save, and at which learning rate to train.

    Epochs are 1-based in `start_epoch` and 0-based in the methods, as Keras counts them in
    callbacks.

    Attributes:
        kind: `manual` (learning rates are left alone), `constant`, `cyclic`, or a function of the
            0-based epoch and the initial rate.
        start_epoch: first epoch of averaging, 1-based.
        swa_freq: epochs from one checkpoint to the next; the length of a cycle.
        swa_lr: rate of averaging, or the lowest of a cycle; None is a tenth of the initial rate.
        swa_lr2: highest rate of a cycle; None is a quarter of the way from swa_lr to the initial
            rate.
        save_freq: optimizer steps from one checkpoint to the next; None saves by epochs.
        start_step: the first step to save at; 0 is the first that `save_freq` divides.
    """

    def __init__(
        self,
        kind: str | RateFunction,
        start_epoch: int | None,
        swa_freq: int = 1,
        swa_lr: float | str = "auto",
        swa_lr2: float | str = "auto",
        save_freq: int | None = None,
        start_step: int = 0,
    ) -> None:
        """Checks the arguments of `CheckpointSaver`; `kind` is its `lr_schedule`.

        Raises:
            SaverError: an argument cannot work.
        """
        if not (callable(kind) or kind in SCHEDULES):
            raise SaverError(
                f"lr_schedule is {kind!r}, but must be one of {', '.join(SCHEDULES)}, or a "
                "function of the epoch and the initial rate"
            )
        if start_epoch is None and save_freq is None:
            raise SaverError(
                "pass start_epoch, the first epoch of averaging, or save_freq, the optimizer steps "
                "from one checkpoint to the next"
            )
        if save_freq is None and start_step:
            raise SaverError("start_step needs save_freq: pass it too, or start_epoch instead")
        check_count("start_epoch", start_epoch, SaverError)
        check_count("swa_freq", swa_freq, SaverError, optional=False)
        check_count("save_freq", save_freq, SaverError)
        check_count("start_step", start_step, SaverError, 0, optional=False)
        self.kind = kind
        self.start_epoch = 1 if start_epoch is None else start_epoch
        self.swa_freq = swa_freq
        self.swa_lr = _given_rate("swa_lr", swa_lr)
        self.swa_lr2 = _given_rate("swa_lr2", swa_lr2)
        self.save_freq = save_freq
        self.start_step = start_step
        if kind in ("constant", "cyclic") and self.start_epoch < 2:
            raise SaverError(
                f"start_epoch is {start_epoch}, but the '{kind}' schedule lowers the rate over the "
                "epochs before it: start_epoch must be 2 or more"
            )
        if self.swa_lr2 is not None and self.swa_lr is None:
            raise SaverError(f"swa_lr2 is {self.swa_lr2} but swa_lr is 'auto': set both or neither")
        if kind == "cyclic":
            self._check_cycle()

    def _check_cycle(self) -> None:
        if self.swa_freq < 2:
            raise SaverError(
                f"swa_freq is {self.swa_freq}, but a cycle needs 2 epochs or more: "
                "set swa_freq, or use the 'constant' schedule"
            )
        low, high = self.swa_lr, self.swa_lr2
        if low is not None and high is not None and low > high:
            raise SaverError(
                f"swa_lr is {self.swa_lr} but swa_lr2 is {self.swa_lr2}: "
                "a cycle falls from swa_lr2 to swa_lr, so swa_lr must not be the larger"
            )

    def saves(self, epoch: int) -> bool:
        """Whether a checkpoint is due at the end of a 0-based epoch."""
        since = epoch - (self.start_epoch - 1)
        if self.save_freq is not None or since < 0:
            return False
        return since % self.swa_freq == self._delay

    def saves_step(self, step: int, former: int, epoch: int) -> bool:
        """Whether a checkpoint is due after optimizer step `step` of a 0-based epoch.

        Args:
            step: optimizer steps taken.
            former: those taken when this was last asked; several may have been taken since.
            epoch: the epoch in progress.
        """
        freq = self.save_freq
        if freq is None or epoch < self.start_epoch - 1:
            return False
        due, before = (max(0, (n - self.start_step) // freq + 1) for n in (step, former))
        return due > before

    @property
    def first_save(self) -> int:
        """The 1-based epoch of the first checkpoint, as far as epochs decide."""
        return self.start_epoch + (self._delay if self.save_freq is None else 0)

    @property
    def _delay(self) -> int:
        """Epochs from `start_epoch` to the first checkpoint: a cycle is saved at its end."""
        # See docs/decisions/0014-schedules-that-differ-from-keras-swa.md.
        return self.swa_freq - 1 if self.kind == "cyclic" else 0

    def rates(self, initial: float) -> "ScheduledRates":
        """The rates of a training, given its initial learning rate.

        Raises:
            SaverError: swa_lr is above the initial rate.
        """
        low = 0.1 * initial if self.swa_lr is None else self.swa_lr
        high = low + 0.25 * (initial - low) if self.swa_lr2 is None else self.swa_lr2
        # Keras holds rates in float32: 0.01 there is a little below 0.01 here.
        if self.kind in ("constant", "cyclic") and np.float32(low) > np.float32(initial):
            raise SaverError(
                f"swa_lr is {low} but the optimizer begins at {initial}: "
                "swa_lr must not be above the initial learning rate"
            )
        return ScheduledRates(self, initial, low, high)


@dataclass(frozen=True, slots=True)
class ScheduledRates:
    """The learning rates of one training.

    Attributes:
        schedule: where they come from.
        initial: the rate that the training started from.
        low: the rate of averaging, or the lowest of a cycle.
        high: the highest rate of a cycle.
    """

    schedule: Schedule
    initial: float
    low: float
    high: float

    def of_epoch(self, epoch: int) -> float:
        """The learning rate of a 0-based epoch: the initial one, then a line down to `low`.

        In a `cyclic` schedule, `of_batch` takes over once averaging starts. A custom function
        decides for itself.

        Raises:
            SaverError: the function did not return a rate.
        """
        if callable(self.schedule.kind):
            rate = self.schedule.kind(epoch, self.initial)
            with suppress(TypeError, ValueError):
                if 0 <= float(rate) < float("inf"):
                    return float(rate)
            raise SaverError(
                f"lr_schedule returned {rate!r:.80} for epoch {epoch + 1}, but must return a "
                "number >= 0"
            )
        ratio = self.low / self.initial if self.initial else 1.0
        progress = epoch / (self.schedule.start_epoch - 1)
        if progress <= 0.5:
            return self.initial
        if progress <= 0.9:
            return self.initial * (1.0 - (1.0 - ratio) * (progress - 0.5) / 0.4)
        return self.low

    def cycles(self, epoch: int) -> bool:
        """Whether batches of a 0-based epoch have rates of their own."""
        return self.schedule.kind == "cyclic" and epoch >= self.schedule.start_epoch - 1

    def of_batch(self, epoch: int, batch: int, steps: int) -> float:
        """The learning rate of a 0-based batch within a cycle: `high` falling to `low`.

        Args:
            epoch: 0-based, at or after the start of averaging.
            batch: 0-based index in the epoch.
            steps: batches of an epoch.
        """
        length = self.schedule.swa_freq
        done = ((epoch - (self.schedule.start_epoch - 1)) % length) * steps + batch + 1
        progress = done / (length * steps)
        return (1.0 - progress) * self.high + progress * self.low


def _given_rate(name: str, value: float | str) -> float | None:
    """A learning rate that was passed; None for `auto`."""
    if value == "auto":
        return None
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= float(value) < float("inf"):
        raise SaverError(f"{name} is {value!r}, but must be 'auto' or a number >= 0")
    return float(value)
