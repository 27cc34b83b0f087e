"""SWAD: where in a training to average, from the losses of its checkpoints (pure)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ckptavg.errors import RunError


@dataclass(frozen=True, slots=True)
class Swad:
    """The rule by which a window begins and ends (Cha et al., arXiv 2102.08604, algorithm 1).

    Attributes:
        n_converge: the window begins with a loss that the next n_converge - 1 do not improve on.
        n_tolerance: it ends before n_tolerance losses in a row that are all too high.
        tolerance_ratio: how much above the mean of the first n_converge losses is too high: 0.3 is
            the paper's r = 1.3.

    Raises:
        RunError: a number cannot be.

    Example:
        >>> Swad(n_converge=2, n_tolerance=2).window([3.0, 1.0, 1.1, 1.2, 2.0, 2.0])
        (1, 4)
    """

    n_converge: int = 3
    n_tolerance: int = 6
    tolerance_ratio: float = 0.3

    def __post_init__(self) -> None:
        for name in ("n_converge", "n_tolerance"):
            if getattr(self, name) < 1:
                raise RunError(f"{name} is {getattr(self, name)!r}, but must be at least 1")
        if not self.tolerance_ratio >= 0:
            raise RunError(f"tolerance_ratio is {self.tolerance_ratio!r}, but must be at least 0")

    def window(self, losses: Sequence[float]) -> tuple[int, int]:
        """The number of the first checkpoint of the window, and that after its last one.

        Args:
            losses: validation loss of each checkpoint, in order. NaN counts as infinite.

        Raises:
            RunError: the loss has not converged.
        """
        values = [math.inf if math.isnan(loss) else loss for loss in losses]
        start = limit = None
        for end in range(1, len(values) + 1):
            if start is None:
                recent = values[max(0, end - self.n_converge) : end]
                converged = math.isfinite(recent[0]) and recent[0] == min(recent)
                if len(recent) == self.n_converge and converged:
                    start = end - self.n_converge
                    limit = (1 + self.tolerance_ratio) * math.fsum(recent) / self.n_converge
                continue
            last = end - self.n_tolerance
            if last > start and min(values[last:end]) > limit:
                return start, last
        if start is None:
            raise RunError(
                f"the loss has not converged: no checkpoint of {len(values)} was followed by "
                f"{self.n_converge - 1} that are not better. Choose by --last, or lower "
                "--n-converge"
            )
        return start, len(values)
