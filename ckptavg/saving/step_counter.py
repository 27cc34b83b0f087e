"""Counts the optimizer steps of a training by its batches: to ask the optimizer would wait."""

from collections.abc import Mapping
from typing import Any

from ckptavg.saving.framework import Framework


class Steps:
    """The optimizer steps of a training that began with some epoch.

    At the beginning of each epoch the optimizer is asked, so that steps that it left out (for the
    infinite gradients of mixed precision) and those of former trainings count as it says. Where it
    counts nothing, because a training step of the user's own has other optimizers, or because its
    state was not loaded, earlier epochs count as many batches as this one has.
    """

    def __init__(
        self, framework: Framework, model: Any, params: Mapping[str, Any], epoch: int
    ) -> None:
        self._framework = framework
        self._optimizer = getattr(model, "optimizer", None)
        self._per_epoch: int | None = (params or {}).get("steps")
        self._each = 1 if self._optimizer is None else framework.accumulation(self._optimizer)
        self._known = self._asked()
        self._earlier = 0 if self._known else epoch * (self._per_epoch or 0)
        self._batches = self._earlier + self._known
        self._seen = 0

    @property
    def taken(self) -> int:
        """Optimizer steps so far."""
        return self._batches // self._each

    @property
    def earlier(self) -> int:
        """Steps of earlier epochs that the optimizer does not know of."""
        return self._earlier // self._each

    def begin_epoch(self) -> None:
        """Notes that an epoch begins."""
        self._seen = 0
        self.ask()

    def ask(self) -> None:
        """Asks the optimizer, which waits for it."""
        asked = self._asked()
        if asked != self._known:
            self._known, self._batches = asked, self._earlier + asked

    def end_batch(self, batch: int) -> int:
        """Notes that a 0-based batch of the epoch is over; returns the steps taken before."""
        former = self.taken
        # One call may stand for several batches, and for more than the epoch has.
        seen = min(batch + 1, self._per_epoch or batch + 1)
        self._batches += seen - self._seen
        self._seen = seen
        return former

    def _asked(self) -> int:
        return 0 if self._optimizer is None else self._framework.batches(self._optimizer)
