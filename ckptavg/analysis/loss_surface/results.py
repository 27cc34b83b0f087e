"""The loss over lines and planes in the space of weights: what was measured where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ckptavg.analysis.tables import LENGTH, RATIO, frame

if TYPE_CHECKING:
    import pandas as pd

Metrics = Mapping[str, Mapping[str, np.ndarray]]
"""By the name of the data and that of the metric, as `model.evaluate` names it."""


@dataclass(frozen=True, slots=True, eq=False)
class LossLine:
    """Metrics along the straight line through two points in the space of weights.

    A value is NaN or infinite where the network's is, and NaN where such values came up in the
    BatchNorm pass.

    Attributes:
        positions: (n,) float64, share of the way: 0 is the start, 1 the end.
        distances: (n,) float64, distance from the start, negative before it.
        metrics: (n,) float64 each, by the name of the data and that of the metric.
        labels: names of the start and the end.
        unit: of the distances.
    """

    positions: np.ndarray = field(repr=False)
    distances: np.ndarray = field(repr=False)
    metrics: Metrics = field(repr=False)
    labels: tuple[str, str]
    unit: str = LENGTH

    def to_frame(self) -> "pd.DataFrame":
        """A row for each point; `attrs["units"]` has units by column.

        Columns: `position`, `distance`, and metrics such as `test loss`.
        """
        places = {"position": self.positions, "distance": self.distances}
        units = {"position": RATIO, "distance": self.unit}
        return frame(places | _columns(self.metrics), {"units": units})


@dataclass(frozen=True, slots=True, eq=False)
class LossPlane:
    """Metrics over a rectangle of the plane through three points in the space of weights.

    Both axes have the same unit, so that distances in the plane are those of the weights. A value
    is NaN or infinite where the network's is, and NaN where such values came up in the BatchNorm
    pass.

    Attributes:
        x: (n,) float64, coordinates of the columns, rising.
        y: (m,) float64, coordinates of the rows, rising.
        metrics: (m, n) float64 each, by the name of the data and that of the metric.
        points: coordinates of the three points by name: the origin is (0, 0), the first (d, 0) for
            the distance d between them, the second lies above the axis.
        unit: of coordinates.
    """

    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    metrics: Metrics = field(repr=False)
    points: Mapping[str, tuple[float, float]]
    unit: str = LENGTH

    def to_frame(self) -> "pd.DataFrame":
        """A row for each point of the grid, row by row; `attrs["units"]` has units by column.

        Columns: `x`, `y`, and metrics such as `test loss`.
        """
        x, y = np.meshgrid(self.x, self.y)
        units = {"x": self.unit, "y": self.unit}
        places = {"x": x.ravel(), "y": y.ravel()}
        return frame(places | _columns(self.metrics), {"units": units})


def _columns(metrics: Metrics) -> dict[str, np.ndarray]:
    return {
        f"{data} {metric}": values.ravel()
        for data, found in metrics.items()
        for metric, values in found.items()
    }
