"""Metrics along lines and over planes in the space of weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ckptavg.analysis.tables import LENGTH, RATIO, frame

if TYPE_CHECKING:
    import pandas as pd

Metrics = Mapping[str, Mapping[str, np.ndarray]]
"""By the name of the data, then by that of the metric, as `model.evaluate` names it."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LossLine:
    """Metrics along the straight line through two points in the space of weights.

    A value is NaN or infinite where the network's is, and NaN where the BatchNorm pass met such
    values.

    Attributes:
        positions: (n,) float64, fraction of the line: 0 is the start, 1 the end.
        distances: (n,) float64, distance from the start, negative before it.
        metrics: (n,) float64 each, by the name of the data and that of the metric.
        labels: names of the start and the end.
        unit: of the distances.
    """

    positions: np.ndarray
    distances: np.ndarray
    metrics: Metrics
    labels: tuple[str, str]
    unit: str = LENGTH

    def __repr__(self) -> str:
        start, end = self.labels
        length = float(np.interp(1.0, self.positions, self.distances))
        head = f"LossLine from {start} to {end} (length {length:.3g}), {len(self.positions)} points"
        return "\n".join([head, *_ranges(self.metrics)])

    def to_frame(self) -> "pd.DataFrame":
        """A row for each point; `attrs["units"]` has units by column.

        Columns: `position`, `distance`, and metrics such as `test loss`.
        """
        places = {"position": self.positions, "distance": self.distances}
        units = {"position": RATIO, "distance": self.unit}
        return frame(places | _columns(self.metrics), {"units": units})


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LossPlane:
    """Metrics over a rectangle of the plane through three points in the space of weights.

    Both axes have the same unit, so distances in the plane are those of the weights. A value is NaN
    or infinite where the network's is, and NaN where the BatchNorm pass met such values.

    Attributes:
        x: (n,) float64, coordinates of the columns, rising.
        y: (m,) float64, coordinates of the rows, rising.
        metrics: (m, n) float64 each, by the name of the data and that of the metric.
        points: coordinates of the three points by name: the origin is (0, 0), the first (d, 0) for
            their distance d, and the second lies above the axis.
        unit: of coordinates.
    """

    x: np.ndarray
    y: np.ndarray
    metrics: Metrics
    points: Mapping[str, tuple[float, float]]
    unit: str = LENGTH

    def __repr__(self) -> str:
        size = f"{len(self.y)} x {len(self.x)} points"
        head = f"LossPlane through {', '.join(self.points)}, {size}"
        return "\n".join([head, *_ranges(self.metrics)])

    def to_frame(self) -> "pd.DataFrame":
        """A row for each point of the grid, row by row; `attrs["units"]` has units by column.

        Columns: `x`, `y`, and metrics such as `test loss`.
        """
        x, y = np.meshgrid(self.x, self.y)
        units = {"x": self.unit, "y": self.unit}
        places = {"x": x.ravel(), "y": y.ravel()}
        return frame(places | _columns(self.metrics), {"units": units})


def _ranges(metrics: Metrics) -> Iterator[str]:
    """A line for each metric: its smallest and largest value, and how many are not finite."""
    for name, values in _columns(metrics).items():
        # Points that overflowed are NaN, and would hide the range of all others.
        known = values[np.isfinite(values)]
        found = f"{known.min():.4g} to {known.max():.4g}" if known.size else "nowhere finite"
        missing = len(values) - len(known) if known.size else 0
        yield f"  {name}: {found}" + (f", not finite at {missing} points" if missing else "")


def _columns(metrics: Metrics) -> dict[str, np.ndarray]:
    return {
        f"{data} {metric}": values.ravel()
        for data, found in metrics.items()
        for metric, values in found.items()
    }
