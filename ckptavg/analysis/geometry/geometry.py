"""How checkpoints lie to each other: algebra on inner products of their deviations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ckptavg.analysis.geometry import path
from ckptavg.analysis.geometry.trajectory import Trajectory, project
from ckptavg.analysis.tables import LENGTH, RATIO, LayerTable, PairTable, Series
from ckptavg.errors import SpecError
from ckptavg.recipes import check_coefficients
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.describe import describe_epochs

FIRST, MEAN = "first", "mean"

_ROUNDING = 1e-15
"""A squared length counts as 0 below this fraction of the squares whose difference it is."""

Averages = Mapping[str, Sequence[float]]
"""Coefficients of averages by name, one for each checkpoint, with sum 1."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Geometry:
    """Inner products of checkpoints, layer by layer, from which lengths and angles follow.

    The inner products are those of deviations from the plain mean of all checkpoints, which keeps
    the distances of neighbours exact: only what is below 5e-8 of the distance to the mean comes out
    as 0. Lengths and distances are Euclidean over the weights ("parameter units"). The moving
    statistics of BatchNorm layers are not weights.

    An average is a point like any checkpoint. Methods that take `averages`, coefficients by name,
    list these points after the checkpoints; the default is the averages of the geometry itself.

    Attributes:
        checkpoints: in the order in which they were named.
        labels: of the checkpoints: epochs if they are known, otherwise names of files.
        positions: of the checkpoints in training: steps, epochs, or their order from 1.
        position_unit: `step`, `epoch` or `checkpoint`.
        layers: names of the layers; the tensors of a layer are those of one folder.
        parameters: number of weights of each layer.
        gram: (layers, K, K) float64: inner products of the deviations.
        along: (layers, K) float64: inner products of the deviations with the mean.
        mean_squares: (layers,) float64: squared norm of the mean.
        averages: coefficients of averages by name, each with sum 1.
        left_out: names of tensors that were not counted.

    Example:
        >>> geometry = ckptavg.analysis.measure_geometry("run", averages={"SWA": "swa.weights.h5"})
        >>> geometry.step_sizes().to_frame()
        >>> geometry.cosines("layers/dense").to_frame()
        >>> geometry.trajectory().to_frame()
    """

    checkpoints: tuple[Checkpoint, ...]
    labels: tuple[str, ...]
    positions: tuple[float, ...]
    position_unit: str
    layers: tuple[str, ...]
    parameters: tuple[int, ...]
    gram: np.ndarray
    along: np.ndarray
    mean_squares: np.ndarray
    averages: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        weights = f"{sum(self.parameters):,} weights in {len(self.layers)} layers"
        lines = [f"Geometry of {describe_epochs(self.checkpoints)}, {weights}"]
        spread = self.to_mean().values
        lines.append(f"  {spread.min():.4g} to {spread.max():.4g} {LENGTH} from their mean")
        if self.averages:
            lines.append(f"  averages: {', '.join(self.averages)}")
        return "\n".join(lines)

    def distances(self, layer: str | None = None, averages: Averages | None = None) -> PairTable:
        """Distance between each two points, in parameter units.

        Args:
            layer: the layer to measure; None for all weights.
            averages: see the class.

        Raises:
            SpecError: there is no such layer, or an average has the name of a checkpoint.
            RecipeError: there are not as many coefficients as checkpoints, or their sum is not 1.
        """
        labels, points = self._points(averages)
        inner = _symmetric(points @ self._gram(layer) @ points.T)
        # Squared distances as differences of inner products of deviations.
        squares = np.diagonal(inner)
        both = squares[:, None] + squares
        return PairTable(labels, _root(both - 2 * inner, both), "distance", LENGTH, layer)

    def cosines(self, layer: str | None = None, averages: Averages | None = None) -> PairTable:
        """Cosine of the angle between each two points, seen from where all weights are 0.

        NaN where all weights of a point are 0, which has no direction. Arguments and errors are
        those of `distances`.
        """
        labels, points = self._points(averages)
        products, sizes = self._products(points, layer)
        norms = _root(np.diagonal(products), sizes)
        with np.errstate(invalid="ignore", divide="ignore"):
            # Rounding may carry a cosine beyond 1.
            values = np.clip(products / np.outer(norms, norms), -1.0, 1.0)
        values[norms == 0, :] = values[:, norms == 0] = np.nan
        np.fill_diagonal(values, np.where(norms > 0, 1.0, np.nan))
        return PairTable(labels, values, "cosine", RATIO, layer)

    def to_mean(self, layer: str | None = None) -> Series:
        """Distance of each checkpoint to the plain mean of all, in parameter units.

        Args:
            layer: the layer to measure; None for all weights.

        Raises:
            SpecError: there is no such layer.
        """
        squares = np.diagonal(self._gram(layer))
        return self._series(_root(squares, squares), "distance to the mean", layer)

    def norms(self, layer: str | None = None) -> Series:
        """Norm of the weights of each checkpoint; see `to_mean`."""
        products, sizes = self._products(np.eye(len(self.labels)), layer)
        return self._series(_root(np.diagonal(products), sizes), "norm", layer)

    def step_sizes(self, layer: str | None = None) -> Series:
        """Distance of each checkpoint to the previous one, NaN for the first; see `to_mean`."""
        distances = self.distances(layer, averages={}).values
        steps = np.concatenate(([np.nan], np.diagonal(distances, 1)))
        return self._series(steps, "distance to the one before", layer)

    def straightness(self, layer: str | None = None) -> float:
        """How straight the path through the checkpoints is, in their order, from 0 to 1.

        The distance from the first to the last checkpoint as a fraction of the length of the path
        from each to the next. It is 1 if they lie on one line, as in a training that is still on
        its way. Of K checkpoints, that of a random walk is about 1 / sqrt(K - 1), and that of
        weights that move about a point about 1 / (K - 1). NaN for one checkpoint, or equal ones.

        Args:
            layer: the layer to measure; None for all weights.

        Raises:
            SpecError: there is no such layer.
        """
        return path.straightness(self.distances(layer, averages={}).values)

    @property
    def on_its_way(self) -> bool:
        """Whether the path is nearly one line, so that its mean lies behind its end.

        Straight means at least 0.6, and half more than a random walk of as many steps would be.
        See docs/decisions/0076-when-an-average-is-worse.md
        """
        return path.is_one_line(self.straightness(), len(self.labels))

    def drift(self, origin: str = FIRST) -> LayerTable:
        """How far each layer moved from an origin, as a fraction of its norm there.

        NaN where all weights of a layer are 0 at the origin.

        Args:
            origin: `first`: the first checkpoint; `mean`: the plain mean of all.

        Raises:
            SpecError: `origin` is neither of them.
        """
        if origin not in (FIRST, MEAN):
            raise SpecError(f"origin is {origin!r:.40}, but must be 'first' or 'mean'")
        rows = []
        for layer, square in zip(self.layers, self.mean_squares, strict=True):
            if origin == FIRST:
                moved, norm = self.distances(layer, {}).values[0], self.norms(layer).values[0]
            else:
                moved, norm = self.to_mean(layer).values, np.sqrt(square)
            rows.append(moved / norm if norm > 0 else np.full(len(moved), np.nan))
        quantity = f"drift from the {origin}"
        return LayerTable(self.layers, self.labels, np.array(rows), quantity, RATIO)

    def trajectory(self, averages: Averages | None = None) -> Trajectory:
        """All checkpoints and averages in the plane that fits the checkpoints best.

        It is the plane of the first two principal components.

        Args:
            averages: see the class.

        Raises:
            SpecError: an average has the name of a checkpoint.
            RecipeError: there are not as many coefficients as checkpoints, or their sum is not 1.
        """
        labels, points = self._points(averages)
        plane, off_plane, explained = project(self._gram(None), points)
        count = len(self.labels)
        named = labels[count:]
        return Trajectory(
            labels=self.labels,
            positions=self.positions,
            coordinates=plane[:count],
            explained=explained,
            averages=dict(zip(named, map(tuple, plane[count:].tolist()), strict=True)),
            off_plane=off_plane[:count],
            averages_off_plane=dict(zip(named, off_plane[count:].tolist(), strict=True)),
            position_unit=self.position_unit,
        )

    def _points(self, averages: Averages | None) -> tuple[tuple[str, ...], np.ndarray]:
        """Labels and coefficients of all checkpoints, then of the averages."""
        averages, count = self.averages if averages is None else averages, len(self.labels)
        taken = next((name for name in averages if name in self.labels), None)
        if taken is not None:
            raise SpecError(
                f"{taken!r} is the name of an average and of a checkpoint: rename the average"
            )
        vectors = [check_coefficients(found, count) for found in averages.values()]
        points = np.concatenate((np.eye(count), np.reshape(vectors, (len(vectors), count))))
        return (*self.labels, *averages), points

    def _gram(self, layer: str | None) -> np.ndarray:
        return np.asarray(
            self.gram.sum(axis=0) if layer is None else self.gram[self._number(layer)]
        )

    def _products(self, points: np.ndarray, layer: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Inner products of points, and the size of the squares that they are differences of."""
        inner = _symmetric(points @ self._gram(layer) @ points.T)
        if layer is None:
            along, square = self.along.sum(axis=0), self.mean_squares.sum()
        else:
            number = self._number(layer)
            along, square = self.along[number], self.mean_squares[number]
        along = points @ along
        return inner + along[:, None] + along + square, np.diagonal(inner) + square

    def _number(self, layer: str) -> int:
        if layer not in self.layers:
            some = ", ".join(self.layers[:5]) + (", ..." if len(self.layers) > 5 else "")
            raise SpecError(f"there is no layer {layer!r:.80}, the layers are {some}")
        return self.layers.index(layer)

    def _series(self, values: np.ndarray, quantity: str, layer: str | None) -> Series:
        return Series(
            self.labels, self.positions, values, quantity, LENGTH, self.position_unit, layer
        )


def _symmetric(values: np.ndarray) -> np.ndarray:
    """The symmetric part, because a product of matrices is symmetric but for rounding."""
    return np.asarray((values + values.T) / 2)


def _root(squares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Lengths from squares that are differences of squares as large as `sizes`."""
    return np.sqrt(np.where(squares > _ROUNDING * sizes, squares, 0.0))
