"""The epochs or steps at which SWA saves, and the learning rates that lead there.

The formulas are those of keras-swa 0.1.7, which users of SWA on Keras know, with one difference:
a cyclic schedule saves at the *end* of each cycle, where the rate is lowest, as Algorithm 1 of the
SWA paper does (Izmailov et al., arXiv 1803.05407), not at the end of the cycle's first epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from ckptavg.errors import SaverError

SCHEDULES = ("manual", "constant", "cyclic")

RateFunction = Callable[[int, float], float]
"""Gives the learning rate of a 0-based epoch, from it and the initial rate."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to save, and at which learning rate to train.

    Epochs are 1-based in `start_epoch` and 0-based in the methods, as Keras counts them in
    callbacks.

    Attributes:
        kind: `manual` (rates are left alone), `constant`, `cyclic`, or a function of the 0-based
            epoch and the initial rate.
        start_epoch: first epoch of averaging, 1-based; None only with `save_freq`.
        swa_freq: epochs from one checkpoint to the next; the length of a cycle.
        swa_lr: rate of averaging, or the lowest of a cycle; `auto` is a tenth of the initial rate.
        swa_lr2: highest rate of a cycle; `auto` is a quarter of the way from swa_lr to the initial
            rate.
        save_freq: optimizer steps from one checkpoint to the next, instead of epochs.
        start_step: the first step to save at; by default the first that `save_freq` divides.
    """

    kind: str | RateFunction
    start_epoch: int | None
    swa_freq: int = 1
    swa_lr: float | str = "auto"
    swa_lr2: float | str = "auto"
    save_freq: int | None = None
    start_step: int = 0

    def __post_init__(self) -> None:
        if not (callable(self.kind) or self.kind in SCHEDULES):
            raise SaverError(
                f"lr_schedule is {self.kind!r}, but must be one of {', '.join(SCHEDULES)}, or a "
                "function of the epoch and the initial rate"
            )
        self._check_counts()
        if self.kind in ("constant", "cyclic") and (self.start_epoch or 0) < 2:
            raise SaverError(
                f"start_epoch is {self.start_epoch}, but the '{self.kind}' schedule lowers the "
                "rate over the epochs before it: start_epoch must be 2 or more"
            )
        if self.kind == "cyclic" and self.swa_freq < 2:
            raise SaverError(
                f"swa_freq is {self.swa_freq}, but a cycle needs 2 epochs or more: "
                "set swa_freq, or use the 'constant' schedule"
            )
        self._check_rates()

    def _check_counts(self) -> None:
        if self.start_epoch is None and self.save_freq is None:
            raise SaverError(
                "when to save? Pass start_epoch, the first epoch of averaging, or save_freq, the "
                "optimizer steps from one checkpoint to the next"
            )
        if self.save_freq is None and self.start_step:
            raise SaverError("start_step counts with save_freq only: pass it too, or start_epoch")
        least = {"start_epoch": 1, "swa_freq": 1, "save_freq": 1, "start_step": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is None and name in ("start_epoch", "save_freq"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < bound:
                raise SaverError(f"{name} is {value!r}, but must be a whole number from {bound} on")

    def _check_rates(self) -> None:
        for name in ("swa_lr", "swa_lr2"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value != "auto" and not (number and 0 <= value < float("inf")):
                raise SaverError(f"{name} is {value!r}, but must be 'auto' or a rate from 0 on")
        if self.kind != "cyclic" or self.swa_lr2 == "auto":
            return
        if self.swa_lr == "auto":
            raise SaverError(f"swa_lr2 is {self.swa_lr2} but swa_lr is 'auto': set both or neither")
        if self.swa_lr > self.swa_lr2:
            raise SaverError(
                f"swa_lr is {self.swa_lr} but swa_lr2 is {self.swa_lr2}: "
                "a cycle falls from swa_lr2 to swa_lr, so swa_lr must not be the larger"
            )

    @property
    def sets_rate(self) -> bool:
        return self.kind != "manual"

    def saves(self, epoch: int) -> bool:
        """Whether a checkpoint is due at the end of a 0-based epoch."""
        if self.save_freq is not None:
            return False
        since = epoch - (self.start_epoch - 1)
        if since < 0:
            return False
        due = self.swa_freq - 1 if self.kind == "cyclic" else 0
        return since % self.swa_freq == due

    def saves_step(self, step: int, former: int, epoch: int) -> bool:
        """Whether a checkpoint is due after optimizer step `step` of a 0-based epoch.

        Args:
            step: optimizer steps taken.
            former: those taken when this was last asked; several may have been taken since.
            epoch: in progress.
        """
        if self.save_freq is None:
            return False
        if self.start_epoch is not None and epoch < self.start_epoch - 1:
            return False
        return self._due_until(step) > self._due_until(former)

    def _due_until(self, step: int) -> int:
        """How many checkpoints are due up to a step."""
        since = step - self.start_step
        return since // self.save_freq + 1 if since >= 0 else 0

    @property
    def first_save(self) -> int:
        """The 1-based epoch of the first checkpoint, as far as epochs decide."""
        if self.save_freq is not None:
            return self.start_epoch or 1
        return self.start_epoch + (self.swa_freq - 1 if self.kind == "cyclic" else 0)

    def rates(self, initial: float) -> tuple[float, float]:
        """swa_lr and swa_lr2 as numbers, given the initial learning rate.

        Raises:
            SaverError: swa_lr is above the initial rate.
        """
        low = 0.1 * initial if self.swa_lr == "auto" else float(self.swa_lr)
        high = low + 0.25 * (initial - low) if self.swa_lr2 == "auto" else float(self.swa_lr2)
        # Keras holds rates in float32: 0.01 there is a little below 0.01 here.
        if self.kind in ("constant", "cyclic") and np.float32(low) > np.float32(initial):
            raise SaverError(
                f"swa_lr is {low} but the optimizer begins at {initial}: "
                "swa_lr must not be above the initial learning rate"
            )
        return low, high

    def epoch_rate(self, epoch: int, initial: float) -> float:
        """The learning rate of a 0-based epoch: initial, then a line down to swa_lr.

        In a `cyclic` schedule this holds before averaging starts; `batch_rate` takes over then. A
        function of the user's decides for itself.

        Raises:
            SaverError: it gave no rate.
        """
        if callable(self.kind):
            return _checked_rate(self.kind(epoch, initial), epoch)
        low, _ = self.rates(initial)
        ratio = low / initial if initial else 1.0
        progress = epoch / (self.start_epoch - 1)
        if progress <= 0.5:
            return initial
        if progress <= 0.9:
            return initial * (1.0 - (1.0 - ratio) * (progress - 0.5) / 0.4)
        return low

    def batch_rate(self, epoch: int, batch: int, steps: int, initial: float) -> float:
        """The learning rate of a 0-based batch within a cycle: swa_lr2 falling to swa_lr.

        Args:
            epoch: 0-based, at or after the start of averaging.
            batch: 0-based index in the epoch.
            steps: batches of an epoch.
            initial: the optimizer's initial learning rate.
        """
        low, high = self.rates(initial)
        done = ((epoch - (self.start_epoch - 1)) % self.swa_freq) * steps + batch + 1
        progress = done / (self.swa_freq * steps)
        return (1.0 - progress) * high + progress * low


def _checked_rate(rate: float, epoch: int) -> float:
    try:
        found = float(rate)
    except (TypeError, ValueError):
        found = float("nan")
    if not 0 <= found < float("inf"):
        raise SaverError(
            f"lr_schedule gave {rate!r:.80} for epoch {epoch + 1}, but must give a rate from 0 on"
        )
    return found
