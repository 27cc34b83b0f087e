"""The epochs at which SWA saves, and the learning rates that lead there.

The formulas are those of keras-swa 0.1.7, which users of SWA on Keras know, with one difference:
a cyclic schedule saves at the *end* of each cycle, where the rate is lowest, as Algorithm 1 of the
SWA paper does (Izmailov et al., arXiv 1803.05407), not at the end of the cycle's first epoch.
"""

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from ckptavg.errors import SaverError

SCHEDULES = ("manual", "constant", "cyclic")


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to save, and at which learning rate to train.

    Epochs are 1-based in `start_epoch` and 0-based in the methods, as Keras counts them in
    callbacks.

    Attributes:
        kind: `manual` (rates are left alone), `constant` or `cyclic`.
        start_epoch: first epoch of averaging, 1-based.
        swa_freq: epochs from one checkpoint to the next; the length of a cycle.
        swa_lr: rate of averaging, or the lowest of a cycle; `auto` is a tenth of the initial rate.
        swa_lr2: highest rate of a cycle; `auto` is a quarter of the way from swa_lr to the initial
            rate.
    """

    kind: str
    start_epoch: int
    swa_freq: int = 1
    swa_lr: float | str = "auto"
    swa_lr2: float | str = "auto"

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise SaverError(
                f"lr_schedule is {self.kind!r}, but must be one of {', '.join(SCHEDULES)}"
            )
        for name, least in (("start_epoch", 1), ("swa_freq", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise SaverError(f"{name} is {value!r}, but must be a whole number from {least} on")
        if self.kind != "manual" and self.start_epoch < 2:
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
        since = epoch - (self.start_epoch - 1)
        if since < 0:
            return False
        due = self.swa_freq - 1 if self.kind == "cyclic" else 0
        return since % self.swa_freq == due

    @property
    def first_save(self) -> int:
        """The 1-based epoch of the first checkpoint."""
        return self.start_epoch + (self.swa_freq - 1 if self.kind == "cyclic" else 0)

    def rates(self, initial: float) -> tuple[float, float]:
        """swa_lr and swa_lr2 as numbers, given the initial learning rate.

        Raises:
            SaverError: swa_lr is above the initial rate.
        """
        low = 0.1 * initial if self.swa_lr == "auto" else float(self.swa_lr)
        high = low + 0.25 * (initial - low) if self.swa_lr2 == "auto" else float(self.swa_lr2)
        # Keras holds rates in float32: 0.01 there is a little below 0.01 here.
        if self.sets_rate and np.float32(low) > np.float32(initial):
            raise SaverError(
                f"swa_lr is {low} but the optimizer begins at {initial}: "
                "swa_lr must not be above the initial learning rate"
            )
        return low, high

    def epoch_rate(self, epoch: int, initial: float) -> float:
        """The learning rate of a 0-based epoch: initial, then a line down to swa_lr.

        In a `cyclic` schedule this holds before averaging starts; `batch_rate` takes over then.
        """
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
