"""Which checkpoints of a run are kept, and whether the metric that decides it may still come."""

import math
from collections.abc import Collection, Sequence

from ckptavg.errors import SaverError, warn
from ckptavg.runs.checkpoint import RecordedCheckpoint
from ckptavg.saving.options import KeepBest


def superfluous(
    checkpoints: Sequence[RecordedCheckpoint], newest: int | None, best: KeepBest | None
) -> list[RecordedCheckpoint]:
    """Checkpoints that are neither among the newest nor among the best.

    `RunWriter` removes them, and `checkpoint_files.remove_checkpoint` file by file.

    Args:
        checkpoints: in the order of training.
        newest: how many of the last to keep; None sets no such limit.
        best: how many to keep because of a metric; None sets no such limit.
    """
    measured: list[RecordedCheckpoint] = []
    if best is not None:
        measured = [c for c in checkpoints if best.monitor in c.record.metrics]
        measured.sort(key=lambda c: _rank(c, best))
    if newest is None and not measured:
        # Without a limit all are kept. So they are before the metric has come: a training whose
        # validation was forgotten would otherwise keep its last checkpoint alone.
        # See docs/decisions/0053-keep-best-waits-for-validation.md.
        return []
    kept = [*checkpoints[-(newest or 1) :]]
    if best is not None:
        kept += measured[: best.count]
    return [checkpoint for checkpoint in checkpoints if checkpoint not in kept]


def _rank(checkpoint: RecordedCheckpoint, best: KeepBest) -> tuple[bool, float]:
    value = best.sign * checkpoint.record.metrics[best.monitor]
    return bool(checkpoint.record.non_finite) or math.isnan(value), value


class AwaitedMetric:
    """Watches one training for the metric of `keep_best`, which epochs without validation lack."""

    def __init__(self, best: KeepBest | None) -> None:
        self._monitor = None if best is None else best.monitor
        self._has_warned = False

    def see(self, metrics: Collection[str]) -> None:
        """Takes in the metrics of an epoch, whether or not it is saved."""
        if self._monitor in metrics:
            self._monitor = None

    def check(self, metrics: Collection[str], *, of_epoch: bool) -> None:
        """Makes sure that a checkpoint has the metric, or that later ones may have it.

        Args:
            metrics: those of the checkpoint.
            of_epoch: whether an epoch has ended; in the middle of one there is no validation.

        Raises:
            SaverError: the metric has never been there, and nothing suggests that it will be.
        """
        self.see(metrics)
        monitor = self._monitor
        if monitor is None:
            return
        # Keras does not say whether validation will come, so a metric of validation is awaited
        # until an epoch was validated without it.
        validated = any(name.startswith("val_") for name in metrics)
        if validated or not of_epoch or not monitor.startswith("val_"):
            raise SaverError(
                f"keep_best uses '{monitor}', but Keras logged only: "
                f"{', '.join(sorted(metrics)) or 'nothing'}"
            )
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"keep_best uses '{monitor}', which no epoch has had yet: until one has it, only "
                "max_to_keep removes checkpoints"
            )
