"""Tables of results with their units, which can be converted to pandas data frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LENGTH = "parameter units"
"""Unit of norms and distances, which are Euclidean over the weights."""
RATIO = "1"
"""Unit of what has none: cosines, fractions, ratios of lengths."""

_SHOWN = 6
"""Rows and columns that the `repr` of a table shows."""

Column = Sequence[Any] | np.ndarray
"""The entries of a column, one for each row."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PairTable:
    """A quantity of each pair of checkpoints.

    Attributes:
        labels: of the checkpoints, followed by those of averages.
        values: (labels, labels) float64, symmetric.
        quantity: `distance` or `cosine`.
        unit: of the values.
        layer: the layer whose weights were compared; None for all weights.
    """

    labels: tuple[str, ...]
    values: np.ndarray
    quantity: str
    unit: str
    layer: str | None = None

    def __repr__(self) -> str:
        return _shown(self, self.values, self.labels, self.labels)

    def to_frame(self) -> "pd.DataFrame":
        """Labels by labels; `attrs` holds quantity, unit and layer."""
        attrs = {"quantity": self.quantity, "unit": self.unit, "layer": self.layer}
        return frame(self.values, attrs, index=self.labels, columns=self.labels)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Series:
    """A quantity of each checkpoint, over training.

    Attributes:
        labels: of the checkpoints.
        positions: of the checkpoints in training.
        values: (labels,) float64; NaN where there is none.
        quantity: what was measured, such as `norm`.
        unit: of the values.
        position_unit: `step`, `epoch`, or `checkpoint` if only their order is known.
        layer: the layer that was measured; None for all weights.
    """

    labels: tuple[str, ...]
    positions: tuple[float, ...]
    values: np.ndarray
    quantity: str
    unit: str
    position_unit: str
    layer: str | None = None

    def __repr__(self) -> str:
        return _shown(self, self.values[None], [], self.labels)

    def to_frame(self) -> "pd.DataFrame":
        """A row for each label, columns `position` and the quantity; `attrs["units"]` has units."""
        units = {"position": self.position_unit, self.quantity: self.unit}
        columns: dict[str, Column] = {"position": self.positions, self.quantity: self.values}
        return frame(columns, {"units": units, "layer": self.layer}, index=self.labels)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LayerTable:
    """A quantity of each layer in each checkpoint.

    Attributes:
        layers: names of the layers.
        labels: of the checkpoints.
        values: (layers, labels) float64; NaN where there is none.
        quantity: what was measured, such as `drift from the first`.
        unit: of the values.
    """

    layers: tuple[str, ...]
    labels: tuple[str, ...]
    values: np.ndarray
    quantity: str
    unit: str

    def __repr__(self) -> str:
        return _shown(self, self.values, self.layers, self.labels)

    def to_frame(self) -> "pd.DataFrame":
        """Layers by labels; `attrs` holds quantity and unit."""
        attrs = {"quantity": self.quantity, "unit": self.unit}
        return frame(self.values, attrs, index=self.layers, columns=self.labels)


def frame(
    data: np.ndarray | Mapping[str, Column] | Sequence[Mapping[str, Any]],
    attrs: Mapping[str, Any],
    *,
    index: list[str] | tuple[str, ...] | None = None,
    columns: tuple[str, ...] | None = None,
) -> "pd.DataFrame":
    """A data frame that does not share memory with the data.

    Args:
        data: (rows, columns) numbers, columns by name, or rows by name, NaN where one lacks a name.
        attrs: what belongs to the numbers, such as their units.
        index: names of rows; numbers by default.
        columns: names of columns, if `data` has none.
    """
    import pandas as pd

    # A copy, because results are frozen, and a frame is not.
    found = pd.DataFrame(data, index=index, columns=columns, copy=True)
    found.attrs.update(attrs)
    return found


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts in aligned columns, words on the left and numbers on the right of theirs."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _shown(
    table: PairTable | Series | LayerTable,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
) -> str:
    """The first rows and columns of a table, under a line that says what it holds."""
    unit = "" if table.unit == RATIO else f" ({table.unit})"
    size = f"{len(rows)} x {len(columns)}" if rows else f"{len(columns)} checkpoints"
    more = len(columns) > _SHOWN
    lines = [["", *columns[:_SHOWN], *["..."] * more]]
    # A series has one row, without a name of its own.
    for name, row in zip(rows or [table.quantity], values[:_SHOWN], strict=False):
        lines.append([name, *(f"{value:.4g}" for value in row[:_SHOWN]), *["..."] * more])
    if len(rows) > _SHOWN:
        lines.append(["..."] * len(lines[0]))
    layer = None if isinstance(table, LayerTable) else table.layer
    place = "" if layer is None else f" of {layer}"
    return f"{type(table).__name__}: {table.quantity}{unit}{place}, {size}\n{text_table(lines)}"
