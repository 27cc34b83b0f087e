"""SWAD: where in a training to average, from the losses of its checkpoints (pure)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ckptavg.errors import RunError, check_count


@dataclass(frozen=True, slots=True)
class Swad:
    """The rule by which a window begins and ends (Cha et al., arXiv 2102.08604, algorithm 1).

    Attributes:
        n_converge: the window begins with a loss that the next n_converge - 1 do not improve on.
        n_tolerance: it ends before the first n_tolerance consecutive losses above the tolerance.
        tolerance_ratio: the tolerance is this fraction above the mean of the first n_converge
            losses: 0.3 is the paper's r = 1.3.

    Raises:
        RunError: a number is out of range.

    Example:
        >>> Swad(n_converge=2, n_tolerance=2).window([3.0, 1.0, 1.1, 1.2, 2.0, 2.0])
        (1, 4)
    """

    n_converge: int = 3
    n_tolerance: int = 6
    tolerance_ratio: float = 0.3

    def __post_init__(self) -> None:
        check_count("n_converge", self.n_converge, RunError)
        check_count("n_tolerance", self.n_tolerance, RunError)
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
        start = self._start(values)
        converged = values[start : start + self.n_converge]
        limit = (1 + self.tolerance_ratio) * math.fsum(converged) / self.n_converge
        # The window is at least one checkpoint long, and cannot end before it has converged.
        first = max(start + 1, start + self.n_converge + 1 - self.n_tolerance)
        for last in range(first, len(values) - self.n_tolerance + 1):
            if min(values[last : last + self.n_tolerance]) > limit:
                return start, last
        return start, len(values)

    def _start(self, losses: Sequence[float]) -> int:
        """The first loss that is finite and that the next n_converge - 1 do not improve on."""
        for start in range(len(losses) - self.n_converge + 1):
            recent = losses[start : start + self.n_converge]
            # A first loss of NaN, made infinite, would be the minimum of infinite ones.
            if math.isfinite(recent[0]) and recent[0] == min(recent):
                return start
        raise RunError(
            f"the loss has not converged: none of {len(losses)} checkpoints was followed by "
            f"{self.n_converge - 1} that are not better. Choose by --last, or lower --n-converge"
        )
