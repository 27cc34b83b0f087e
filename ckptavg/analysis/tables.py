"""Tables of results with their units, which turn into pandas data frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LENGTH = "parameter units"
"""Unit of norms and distances: Euclidean over the numbers that the weights are."""
RATIO = "1"
"""Unit of what has none: cosines, shares, quotients of lengths."""


@dataclass(frozen=True, slots=True, eq=False)
class PairTable:
    """A quantity of each pair of checkpoints.

    Attributes:
        labels: of the checkpoints, then of averages.
        values: (labels, labels) float64, symmetric.
        quantity: what it is: `distance` or `cosine`.
        unit: of the values.
        layer: that they are of; None for all weights.
    """

    labels: tuple[str, ...]
    values: np.ndarray = field(repr=False)
    quantity: str
    unit: str
    layer: str | None = None

    def to_frame(self) -> "pd.DataFrame":
        """Labels by labels; `attrs` holds quantity, unit and layer."""
        attrs = {"quantity": self.quantity, "unit": self.unit, "layer": self.layer}
        return frame(self.values, attrs, index=self.labels, columns=self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A quantity of each checkpoint, over training.

    Attributes:
        labels: of the checkpoints.
        positions: of the checkpoints in training.
        values: (labels,) float64; NaN where there is none.
        quantity: what it is, such as `norm`.
        unit: of the values.
        position_unit: `step`, `epoch`, or `checkpoint` where only their order is known.
        layer: that they are of; None for all weights.
    """

    labels: tuple[str, ...]
    positions: tuple[float, ...]
    values: np.ndarray = field(repr=False)
    quantity: str
    unit: str
    position_unit: str
    layer: str | None = None

    def to_frame(self) -> "pd.DataFrame":
        """A row for each label, columns `position` and the quantity; `attrs["units"]` has units."""
        units = {"position": self.position_unit, self.quantity: self.unit}
        columns = {"position": self.positions, self.quantity: self.values}
        return frame(columns, {"units": units, "layer": self.layer}, index=self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """A quantity of each layer in each checkpoint.

    Attributes:
        layers: their names.
        labels: of the checkpoints.
        values: (layers, labels) float64; NaN where there is none.
        quantity: what it is, such as `drift from the first`.
        unit: of the values.
    """

    layers: tuple[str, ...]
    labels: tuple[str, ...]
    values: np.ndarray = field(repr=False)
    quantity: str
    unit: str

    def to_frame(self) -> "pd.DataFrame":
        """Layers by labels; `attrs` holds quantity and unit."""
        attrs = {"quantity": self.quantity, "unit": self.unit}
        return frame(self.values, attrs, index=self.layers, columns=self.labels)


def frame(
    data: np.ndarray | Mapping[str, Sequence[Any] | np.ndarray],
    attrs: Mapping[str, Any],
    *,
    index: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> "pd.DataFrame":
    """A data frame of its own memory.

    Args:
        data: (rows, columns) numbers, or columns by name.
        attrs: what is to be known of the numbers, such as their units.
        index: names of rows; numbered if left out.
        columns: names of columns, where `data` has none.
    """
    import pandas as pd

    found = pd.DataFrame(
        data,
        index=None if index is None else list(index),
        columns=None if columns is None else list(columns),
        copy=True,
    )
    found.attrs.update(attrs)
    return found
