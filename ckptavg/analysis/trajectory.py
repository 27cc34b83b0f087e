"""The plane in which checkpoints lie best: principal components from inner products alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ckptavg.analysis.tables import LENGTH, RATIO, frame

if TYPE_CHECKING:
    import pandas as pd

_AXES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Checkpoints and averages in the plane of their first two principal components.

    The origin is the plain mean of the checkpoints, both axes have the same unit, and on each the
    last checkpoint has a positive coordinate (or, where that is 0, the last one that has any).

    Attributes:
        labels: of the checkpoints.
        positions: of the checkpoints in training.
        coordinates: (checkpoints, 2) float64.
        explained: share of the variance that each component explains, the largest first; at least
            two, with sum 1 unless all checkpoints are one point.
        averages: coordinates by name.
        off_plane: (checkpoints,) float64: distances from the plane.
        averages_off_plane: distances from the plane by name.
        unit: of coordinates and distances.
        position_unit: `step`, `epoch`, or `checkpoint` where only their order is known.
    """

    labels: tuple[str, ...]
    positions: tuple[float, ...]
    coordinates: np.ndarray = field(repr=False)
    explained: np.ndarray
    averages: Mapping[str, tuple[float, float]]
    off_plane: np.ndarray = field(repr=False)
    averages_off_plane: Mapping[str, float] = field(repr=False)
    unit: str = LENGTH
    position_unit: str = "checkpoint"

    def to_frame(self) -> "pd.DataFrame":
        """A row for each checkpoint and average; `attrs["units"]` has units by column.

        Columns: `kind` (`checkpoint` or `average`), `position` (NaN for averages), `pc1`, `pc2`,
        `off_plane`. `attrs["explained"]` has the shares of the variance.
        """
        count = len(self.averages)
        points = [*map(tuple, self.coordinates), *self.averages.values()]
        columns = {
            "kind": ["checkpoint"] * len(self.labels) + ["average"] * count,
            "position": [*self.positions, *[float("nan")] * count],
            "pc1": [point[0] for point in points],
            "pc2": [point[1] for point in points],
            "off_plane": [*self.off_plane, *self.averages_off_plane.values()],
        }
        units = {
            "position": self.position_unit,
            **dict.fromkeys(("pc1", "pc2", "off_plane"), self.unit),
            "explained": RATIO,
        }
        attrs = {"units": units, "explained": tuple(map(float, self.explained))}
        return frame(columns, attrs, index=(*self.labels, *self.averages))
