"""When a saver notes the averages that it tracks (pure)."""

import math
from dataclasses import dataclass

LEAST_NOTES = 64
"""In a training: with fewer, averages of other lengths cannot be combined well enough."""


@dataclass(frozen=True, slots=True)
class NoteSchedule:
    """Notes every `freq` steps, or else at least 64 in a training, the ends of epochs among them.

    Trainings of fewer than 64 epochs have notes at equal distances in every epoch, and those of 128
    and more have one every second, third ... epoch. How long an epoch is may be known only when the
    first one has ended: until then it has no notes but at its end.

    Attributes:
        freq: optimizer steps from one note to the next; None for the rule above.
        epochs: of the whole training, where that is known.
    """

    freq: int | None
    epochs: int | None

    def within(
        self,
        steps: tuple[int, int],
        batches: tuple[int, int],
        length: int | None,
    ) -> bool:
        """Whether a note is due after some batches.

        Args:
            steps: that averages had seen before these batches, and have seen now.
            batches: of the epoch that had been trained before, and have been now.
            length: batches in an epoch, where that is known.
        """
        if self.freq is not None:
            return steps[0] // self.freq < steps[1] // self.freq
        if length is None or self.epochs is None or self.epochs >= LEAST_NOTES:
            return False
        each = math.ceil(LEAST_NOTES / self.epochs)
        return batches[0] * each // length < batches[1] * each // length

    def at_end(self, epoch: int) -> bool:
        """Whether a note is due at the end of a 0-based epoch, whatever `within` says."""
        if self.freq is not None:
            return False
        return (epoch + 1) % max(1, (self.epochs or 0) // LEAST_NOTES) == 0
