"""Whether the metric that `keep_best` goes by is there, or may come yet."""

import warnings
from collections.abc import Collection

from ckptavg.errors import SaverError
from ckptavg.saving.options import KeepBest


class BestMetric:
    """Watches one training for the metric, which epochs without validation lack."""

    def __init__(self, best: KeepBest | None) -> None:
        self._best = best
        self._seen = best is None
        self._told = False

    def see(self, metrics: Collection[str]) -> None:
        """Takes note of the metrics of an epoch, whether or not a checkpoint is saved then."""
        self._seen = self._seen or self._best.monitor in metrics

    def check(self, metrics: Collection[str], *, of_epoch: bool) -> None:
        """Makes sure that a checkpoint has the metric, or that later ones may have it.

        Args:
            metrics: of the checkpoint.
            of_epoch: whether they are those of an epoch that ended; others never have validation.

        Raises:
            SaverError: the metric has never been there, and nothing speaks for its coming.
        """
        self.see(metrics)
        if self._seen:
            return
        monitor = self._best.monitor
        validated = any(name.startswith("val_") for name in metrics)
        if validated or not of_epoch or not monitor.startswith("val_"):
            raise SaverError(
                f"keep_best goes by '{monitor}', but Keras logged only: "
                f"{', '.join(sorted(metrics)) or 'nothing'}"
            )
        if not self._told:
            self._told = True
            warnings.warn(
                f"keep_best goes by '{monitor}', and no epoch has had it yet: until one has, only "
                "max_to_keep removes checkpoints",
                stacklevel=2,
            )
