"""The plane that fits checkpoints best: principal components from inner products alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ckptavg.analysis.tables import LENGTH, RATIO, Column, frame, text_table

if TYPE_CHECKING:
    import pandas as pd

_AXES = 2
_SHOWN = 8
"""Points that the `repr` of a trajectory shows."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trajectory:
    """Checkpoints and averages in the plane of their first two principal components.

    The origin is the plain mean of the checkpoints, both axes have the same unit, and on each the
    last checkpoint has a positive coordinate (or, where that is 0, the last one that has any).

    Attributes:
        labels: of the checkpoints.
        positions: of the checkpoints in training.
        coordinates: (checkpoints, 2) float64.
        explained: fraction of the variance that each component explains, the largest first; at
            least two, with sum 1 unless all checkpoints are one point.
        averages: coordinates by name.
        off_plane: (checkpoints,) float64: distances from the plane.
        averages_off_plane: distances from the plane by name.
        unit: of coordinates and distances.
        position_unit: `step`, `epoch`, or `checkpoint` if only their order is known.
    """

    labels: tuple[str, ...]
    positions: tuple[float, ...]
    coordinates: np.ndarray
    explained: np.ndarray
    averages: Mapping[str, tuple[float, float]]
    off_plane: np.ndarray
    averages_off_plane: Mapping[str, float]
    unit: str = LENGTH
    position_unit: str = "checkpoint"

    def __repr__(self) -> str:
        first, second = self.explained[:2]
        points = [*zip(self.labels, self.coordinates.tolist(), strict=True), *self.averages.items()]
        shown = points if len(points) <= _SHOWN else [*points[: _SHOWN - 1], points[-1]]
        rows = [["", "pc1", "pc2"], *([name, f"{x:.4g}", f"{y:.4g}"] for name, (x, y) in shown)]
        if len(points) > _SHOWN:
            rows.insert(-1, ["..."] * 3)
        head = f"Trajectory of {len(self.labels)} checkpoints ({self.unit})"
        return f"{head}, {first:.0%} and {second:.0%} of the variance\n{text_table(rows)}"

    def to_frame(self) -> "pd.DataFrame":
        """A row for each checkpoint and average; `attrs["units"]` has units by column.

        Columns: `kind` (`checkpoint` or `average`), `position` (NaN for averages), `pc1`, `pc2`,
        `off_plane`. `attrs["explained"]` has the fractions of the variance.
        """
        count = len(self.averages)
        points = [*map(tuple, self.coordinates), *self.averages.values()]
        columns: dict[str, Column] = {
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


def project(gram: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projects points onto the plane that fits some of them, the checkpoints, best.

    With the eigenvectors v and eigenvalues l of the inner products G of deviations d from the mean,
    the principal axis j is sum_k v_kj d_k / sqrt(l_j), and on it a point with coefficients c, whose
    sum is 1, has the coordinate sqrt(l_j) c^T v_j (classical scaling: Gower, Biometrika 53, 1966).

    Args:
        gram: (K, K) inner products of the deviations of checkpoints from their mean.
        points: (points, K) coefficients, each with sum 1; the first K are the checkpoints.

    Returns:
        (points, 2) coordinates, (points,) distances from the plane, and the fractions of the
        variance by component, at least two.
    """
    count = len(gram)
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[::-1], vectors[:, ::-1]  # the largest first
    # Deviations from a mean have rank K - 1; what is left beyond their rank is rounding.
    negligible = count * np.finfo(np.float64).eps * squares[0]
    squares = np.where((squares > negligible) & (np.arange(count) < count - 1), squares, 0.0)
    axes = vectors * (_signs(vectors) * np.sqrt(squares))
    coordinates = points @ np.pad(axes, ((0, 0), (0, max(0, _AXES - count))))
    off_plane = np.sqrt(np.square(coordinates[:, _AXES:]).sum(axis=1))
    total = squares.sum()
    shares = squares / total if total > 0 else squares
    kept = max(_AXES, count - 1)
    explained = np.pad(shares, (0, max(0, kept - count)))[:kept]
    return coordinates[:, :_AXES], off_plane, explained


def _signs(vectors: np.ndarray) -> np.ndarray:
    """The signs that make the last nonzero entry of each column positive."""
    nonzero = np.abs(vectors) > 1e-9
    last = len(vectors) - 1 - np.argmax(nonzero[::-1], axis=0)
    return np.where(vectors[last, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
