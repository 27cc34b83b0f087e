"""Counts the optimizer steps of a training."""

from ckptavg.saving.framework import Training


class StepCounter:
    """The optimizer steps of a training that began with some epoch.

    Steps are counted by batches, because asking the optimizer waits for the device. At the
    beginning of each epoch it is asked all the same, so that steps that it skipped (for the
    infinite gradients of mixed precision) and those of earlier trainings count as it says. Where it
    counts nothing, because a custom training step has other optimizers, or because its state was
    not loaded, earlier epochs count as many batches as this one has.

    Attributes:
        seen: batches of the epoch so far.
        length: batches in an epoch; None until the data or the end of an epoch say it.
    """

    def __init__(self, training: Training, epoch: int) -> None:
        """Starts to count at the beginning of a 0-based epoch, the first of the training."""
        self._framework = training.framework
        self._optimizer = training.optimizer
        # Those of a GAN, which take the steps: the compiled one is not used.
        self._others = [o for o in training.optimizers if o is not self._optimizer]
        self._lacks_state = epoch > 0 and self._counted_by_others() is None
        self._per_epoch = self.length = training.batches
        self._accumulation = 1
        if self._optimizer is not None:
            self._accumulation = self._framework.accumulation(self._optimizer)
        self._known = self._asked()
        self._earlier = 0 if self._known else epoch * (self._per_epoch or 0)
        self._batches = self._earlier + self._known
        self.seen = 0

    @property
    def taken(self) -> int:
        """Optimizer steps so far."""
        return self._batches // self._accumulation

    def exact(self) -> int | None:
        """Optimizer steps so far as the optimizer counts them, for which this waits."""
        if self._optimizer is None:
            return self.taken or None
        counted = self._framework.iterations(self._optimizer)
        if not counted and not self._lacks_state:
            return self._counted_by_others()
        return self._earlier // self._accumulation + counted if counted else None

    def begin_epoch(self) -> None:
        """Begins an epoch."""
        self.seen = 0
        self.ask()

    def ask(self) -> None:
        """Asks the optimizer, which waits for it."""
        asked = self._asked()
        if asked != self._known:
            self._known, self._batches = asked, self._earlier + asked

    def end_batch(self, batch: int) -> None:
        """Ends a 0-based batch of the epoch."""
        # One call may cover several batches, and more than the epoch has.
        seen = min(batch + 1, self._per_epoch or batch + 1)
        self._batches += seen - self.seen
        self.seen = seen

    def end_epoch(self) -> None:
        """Learns the number of batches in an epoch where the data did not say."""
        self.length = self.length or self.seen or None

    def _asked(self) -> int:
        return 0 if self._optimizer is None else self._framework.batches(self._optimizer)

    def _counted_by_others(self) -> int | None:
        """The steps on which the optimizers beside the compiled one agree; None if they do not."""
        counts = {*map(self._framework.iterations, self._others)} - {0}
        return counts.pop() if len(counts) == 1 else None
