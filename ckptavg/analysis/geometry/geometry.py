"""Where checkpoints lie to each other: algebra on inner products of their deviations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ckptavg.analysis.geometry.trajectory import Trajectory, project
from ckptavg.analysis.tables import LENGTH, RATIO, LayerTable, PairTable, Series
from ckptavg.errors import SpecError
from ckptavg.recipes import check_coefficients
from ckptavg.runs.checkpoint import Checkpoint

FIRST, MEAN = "first", "mean"

_ROUNDING = 1e-15
"""A squared length is 0 if it is less than this share of the squares that it is a difference of."""

Averages = Mapping[str, Sequence[float]]
"""Coefficients of averages by name, one for each checkpoint, with sum 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Inner products of checkpoints, layer by layer, from which lengths and angles follow.

    They are of deviations from the plain mean of all checkpoints, so that the distance of
    neighbours is no difference of the squares of weights. It is one of squared distances to the
    mean: what is below some 5e-8 of these comes out as 0. Lengths and distances are Euclidean over
    the numbers that the weights are ("parameter units"). Statistics of BatchNorm are no weights.

    An average is a point like any checkpoint: where a method takes `averages`, coefficients by
    name, it has their points after the checkpoints; by default those of the geometry itself.

    Attributes:
        checkpoints: in their order.
        labels: of the checkpoints: epochs where they are known, else names of files.
        positions: of the checkpoints in training: steps, else epochs, else their order from 1.
        position_unit: `step`, `epoch` or `checkpoint`.
        layers: names; a layer's tensors are those of one folder.
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

    checkpoints: tuple[Checkpoint, ...] = field(repr=False)
    labels: tuple[str, ...]
    positions: tuple[float, ...] = field(repr=False)
    position_unit: str
    layers: tuple[str, ...] = field(repr=False)
    parameters: tuple[int, ...] = field(repr=False)
    gram: np.ndarray = field(repr=False)
    along: np.ndarray = field(repr=False)
    mean_squares: np.ndarray = field(repr=False)
    averages: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = field(default=(), repr=False)

    def distances(self, layer: str | None = None, averages: Averages | None = None) -> PairTable:
        """Of each pair of points, in parameter units.

        Args:
            layer: of the weights to look at; None for all.
            averages: see the class.

        Raises:
            SpecError: there is no such layer, or an average is called like a checkpoint.
            RecipeError: coefficients are not those of an average of the checkpoints.
        """
        labels, points = self._points(averages)
        inner = _symmetric(points @ self._gram(layer) @ points.T)
        squares = np.diagonal(inner)
        both = squares[:, None] + squares
        return PairTable(labels, _root(both - 2 * inner, both), "distance", LENGTH, layer)

    def cosines(self, layer: str | None = None, averages: Averages | None = None) -> PairTable:
        """Of the angle between each pair of points, seen from where all weights are 0.

        NaN where all weights of a point are 0, which has no direction. Arguments and errors are
        those of `distances`.
        """
        labels, points = self._points(averages)
        products, sizes = self._products(points, layer)
        norms = _root(np.diagonal(products), sizes)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.clip(products / np.outer(norms, norms), -1.0, 1.0)
        values[norms == 0, :] = values[:, norms == 0] = np.nan
        np.fill_diagonal(values, np.where(norms > 0, 1.0, np.nan))
        return PairTable(labels, values, "cosine", RATIO, layer)

    def to_mean(self, layer: str | None = None) -> Series:
        """Distance of each checkpoint to the plain mean of all, in parameter units.

        Args:
            layer: of the weights to look at; None for all.

        Raises:
            SpecError: there is no such layer.
        """
        squares = np.diagonal(self._gram(layer))
        return self._series(_root(squares, squares), "distance to the mean", layer)

    def norms(self, layer: str | None = None) -> Series:
        """Of the weights of each checkpoint; see `to_mean`."""
        products, sizes = self._products(np.eye(len(self.labels)), layer)
        return self._series(_root(np.diagonal(products), sizes), "norm", layer)

    def step_sizes(self, layer: str | None = None) -> Series:
        """Distance of each checkpoint to the one before, NaN for the first; see `to_mean`."""
        distances = self.distances(layer, averages={}).values
        steps = np.concatenate(([np.nan], np.diagonal(distances, 1)))
        return self._series(steps, "distance to the one before", layer)

    def drift(self, origin: str = FIRST) -> LayerTable:
        """How far each layer is from where it was, as a share of its norm there.

        NaN where all of a layer's weights are 0 there.

        Args:
            origin: `first`: the first checkpoint; `mean`: the plain mean of all.

        Raises:
            SpecError: the origin is something else.
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
        """All checkpoints, and averages, in the plane that the checkpoints lie best in.

        The plane of the first two principal components, from the eigenvectors of the inner
        products (classical scaling: Gower, Biometrika 53, 1966).

        Args:
            averages: see the class.

        Raises:
            SpecError: an average is called like a checkpoint.
            RecipeError: coefficients are not those of an average of the checkpoints.
        """
        labels, points = self._points(averages)
        count = len(self.labels)
        found = project(self._gram(None), points)
        named = labels[count:]
        plane = map(tuple, found.coordinates[count:].tolist())
        off_plane = found.off_plane[count:].tolist()
        return Trajectory(
            labels=self.labels,
            positions=self.positions,
            coordinates=found.coordinates[:count],
            explained=found.explained,
            averages=dict(zip(named, plane, strict=True)),
            off_plane=found.off_plane[:count],
            averages_off_plane=dict(zip(named, off_plane, strict=True)),
            unit=LENGTH,
            position_unit=self.position_unit,
        )

    def _points(self, averages: Averages | None) -> tuple[tuple[str, ...], np.ndarray]:
        """Labels and coefficients of all checkpoints, then of the averages."""
        averages, count = self.averages if averages is None else averages, len(self.labels)
        taken = next((name for name in averages if name in self.labels), None)
        if taken is not None:
            raise SpecError(f"an average is called {taken!r}, as a checkpoint is: rename it")
        vectors = [check_coefficients(found, count) for found in averages.values()]
        points = np.concatenate((np.eye(count), np.reshape(vectors, (len(vectors), count))))
        return (*self.labels, *averages), points

    def _gram(self, layer: str | None) -> np.ndarray:
        return self.gram.sum(axis=0) if layer is None else self.gram[self._number(layer)]

    def _products(self, points: np.ndarray, layer: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Inner products of points, and the squares that their own are made of."""
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
            raise SpecError(f"there is no layer {layer!r:.80}, there are {some}")
        return self.layers.index(layer)

    def _series(self, values: np.ndarray, quantity: str, layer: str | None) -> Series:
        return Series(
            self.labels, self.positions, values, quantity, LENGTH, self.position_unit, layer
        )


def _symmetric(values: np.ndarray) -> np.ndarray:
    return (values + values.T) / 2


def _root(squares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Lengths of squares that are differences of others, as large as `sizes`."""
    return np.sqrt(np.where(squares > _ROUNDING * sizes, squares, 0.0))
