"""How far the moving statistics of BatchNorm layers are from each other in two checkpoints."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ckptavg.analysis.tables import RATIO, frame

if TYPE_CHECKING:
    import pandas as pd

_MEAN_UNIT = "standard deviations"
_VARIANCE_UNIT = "log ratio"


@dataclass(frozen=True, slots=True, eq=False)
class BatchNormShift:
    """How far the statistics of each channel moved, from one checkpoint to another.

    Attributes:
        layers: names of the BatchNorm layers.
        means: for each layer (channels,) float64: (mean after - mean before) / deviation, where the
            deviation is sqrt(variance after + epsilon), which the layer divides by.
        variances: for each layer (channels,) float64: the natural logarithm of (variance after +
            epsilon) / (variance before + epsilon).
        before: label of the first checkpoint.
        after: label of the second.
        epsilon: that was added to variances.
    """

    layers: tuple[str, ...]
    means: tuple[np.ndarray, ...] = field(repr=False)
    variances: tuple[np.ndarray, ...] = field(repr=False)
    before: str
    after: str
    epsilon: float

    def to_frame(self) -> "pd.DataFrame":
        """A row for each channel of each layer; `attrs["units"]` has units by column.

        Columns: `layer`, `channel` (from 0), `mean_shift`, `variance_log_ratio`.
        """
        sizes = [len(means) for means in self.means]
        columns = {
            "layer": [n for n, size in zip(self.layers, sizes, strict=True) for _ in range(size)],
            "channel": [channel for size in sizes for channel in range(size)],
            "mean_shift": np.concatenate(self.means),
            "variance_log_ratio": np.concatenate(self.variances),
        }
        units = {"mean_shift": _MEAN_UNIT, "variance_log_ratio": _VARIANCE_UNIT}
        attrs = {"units": units, "before": self.before, "after": self.after}
        return frame(columns, attrs)
