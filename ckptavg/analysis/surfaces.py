"""The loss over lines and planes in the space of weights: what was measured where."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

DISTANCE_UNIT = "parameter units"
"""Of Euclidean distances between weights, BatchNorm statistics and integers not counted."""

Metrics = Mapping[str, Mapping[str, np.ndarray]]
"""By the name of the data and that of the metric, as `model.evaluate` names it."""


@dataclass(frozen=True, slots=True)
class LossLine:
    """Metrics along the straight line through two points in the space of weights.

    A value is NaN or infinite where the network's is, or where a BatchNorm pass met such values.

    Attributes:
        positions: (n,) float64, share of the way: 0 is the start, 1 the end.
        distances: (n,) float64, distance from the start in parameter units, negative before it.
        metrics: (n,) float64 each.
        labels: names of the start and the end.
    """

    positions: np.ndarray
    distances: np.ndarray
    metrics: Metrics
    labels: tuple[str, str]

    def to_frame(self) -> "pd.DataFrame":
        """A row for each point; metrics are in columns such as `test loss`.

        `attrs["units"]` says the units of the columns that have one.
        """
        return _frame({"position": self.positions, "distance": self.distances}, self.metrics)


@dataclass(frozen=True, slots=True)
class LossPlane:
    """Metrics over a rectangle of the plane through three points in the space of weights.

    Both axes are in the same unit, so that distances in the plane are those of weights.
    A value is NaN or infinite where the network's is, or where a BatchNorm pass met such values.

    Attributes:
        x: (n,) float64, coordinates of the columns in parameter units, rising.
        y: (m,) float64, coordinates of the rows in parameter units, rising.
        metrics: (m, n) float64 each.
        points: coordinates of the three points by their names: (0, 0) of the origin, (distance, 0)
            of the first one, and of the second one with y > 0.
    """

    x: np.ndarray
    y: np.ndarray
    metrics: Metrics
    points: Mapping[str, tuple[float, float]]

    def to_frame(self) -> "pd.DataFrame":
        """A row for each point of the grid; metrics are in columns such as `test loss`.

        `attrs["units"]` says the units of the columns that have one.
        """
        x, y = np.meshgrid(self.x, self.y)
        return _frame({"x": x.ravel(), "y": y.ravel()}, self.metrics)


def _frame(places: Mapping[str, np.ndarray], metrics: Metrics) -> "pd.DataFrame":
    import pandas as pd

    columns = {
        f"{data} {metric}": values.ravel()
        for data, found in metrics.items()
        for metric, values in found.items()
    }
    frame = pd.DataFrame({**places, **columns})
    frame.attrs["units"] = {name: DISTANCE_UNIT for name in places if name != "position"}
    return frame
