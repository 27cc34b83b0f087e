"""Tables of numbers as heat maps: pairs of checkpoints, layers, windows of a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ckptavg.analysis.plots.style import (
    COLOR_MAP,
    label_columns,
    label_rows,
    layer_names,
    plain,
    three_digits,
    with_unit,
)
from ckptavg.runs.checkpoint import Checkpoint, metric_sign

if TYPE_CHECKING:
    from ckptavg.analysis.tables import LayerTable, PairTable
    from ckptavg.search.sweep import Entry

_WRITTEN = 8
"""Rows and columns up to which numbers are written into the cells."""
_PAIR = 12
"""Characters of the name of a checkpoint or average at most: it takes room on two sides."""
_FAR_OFF = 6.0
"""The worst value, in distances of the median from the best, from which on colours leave it out."""


def cosine_map(table: "PairTable", *, ax: Axes) -> Axes:
    """Draws the cosine between each two checkpoints.

    Args:
        table: as `Geometry.cosines` gives it.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    known = table.values[np.isfinite(table.values)]
    lowest = known.min(initial=1.0)
    return _pairs(table, ax, (lowest if lowest < 1.0 else 0.0, 1.0))


def distance_map(table: "PairTable", *, ax: Axes) -> Axes:
    """Draws the distance between each two checkpoints.

    Args:
        table: as `Geometry.distances` gives it.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    return _pairs(table, ax, _from_zero(table.values))


def layer_drift(table: "LayerTable", *, ax: Axes) -> Axes:
    """Draws how far each layer has moved at each checkpoint, the first layer on top.

    Args:
        table: as `Geometry.drift` gives it.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    label = with_unit(table.quantity, table.unit)
    _heat_map(
        table.values, layer_names(table.layers), table.labels, ax, label, _from_zero(table.values)
    )
    ax.set_xlabel(_checkpoints(table.labels))
    ax.set_ylabel("layer")
    return ax


def leaderboard_map(
    entries: "Sequence[Entry]",
    *,
    ax: Axes,
    metric: str,
    recipe: str = "uniform",
    mode: str = "auto",
) -> Axes:
    """Draws the scores of a sweep's windows over their starts and lengths, the best one marked.

    Args:
        entries: those of a `SweepReport`.
        ax: axes to draw into.
        metric: whose values are drawn.
        recipe: the way of weighing whose windows are drawn.
        mode: whether the best is `min`, `max`, or `auto`: by the name of the metric.

    Returns:
        The axes. Better scores are lighter.
    """
    windows = [entry for entry in entries if entry.recipe == recipe]
    firsts = {entry.checkpoints[0].path: entry.checkpoints[0] for entry in windows}
    starts = sorted(firsts.values(), key=_in_training)
    columns = {start.path: number for number, start in enumerate(starts)}
    lengths = sorted({len(entry.checkpoints) for entry in windows}, reverse=True)
    values = np.full((len(lengths), len(starts)), np.nan)
    for entry in windows:
        place = lengths.index(len(entry.checkpoints)), columns[entry.checkpoints[0].path]
        values[place] = entry.metrics.get(metric, np.nan)
    sign = metric_sign(metric, mode)
    epochs = [start.epoch for start in starts]
    known = None not in epochs and len(set(epochs)) == len(epochs)
    written = _heat_map(
        values,
        [str(length) for length in lengths],
        [str(start.epoch) if known else start.path.stem for start in starts],
        ax,
        plain(metric),
        _near_the_best(values, sign),
        color_map=COLOR_MAP + ("_r" if sign > 0 else ""),
    )
    if np.isfinite(values).any():
        row, column = np.unravel_index(np.nanargmin(sign * values), values.shape)
        if written:
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=2.5))
        else:
            ax.plot(column, row, "*", color="white", markeredgecolor="black", markersize=11)
    ax.set_xlabel("epoch of the first checkpoint" if known else "first checkpoint")
    ax.set_ylabel("length (checkpoints)")
    return ax


def _in_training(checkpoint: Checkpoint) -> tuple[int, int, str]:
    step = checkpoint.record.step if checkpoint.record is not None else None
    return checkpoint.epoch or 0, step or 0, checkpoint.path.name


def _pairs(table: "PairTable", ax: Axes, limits: tuple[float, float]) -> Axes:
    label = with_unit(table.quantity, table.unit)
    if table.layer is not None:
        label = f"{label} of {plain(table.layer)}"
    labels = [plain(name, _PAIR) for name in table.labels]
    _heat_map(table.values, labels, labels, ax, label, limits)
    ax.set_aspect("equal")
    ax.set_xlabel(_checkpoints(table.labels))
    ax.set_ylabel(_checkpoints(table.labels))
    return ax


def _heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    ax: Axes,
    label: str,
    limits: tuple[float, float],
    color_map: str = COLOR_MAP,
) -> bool:
    """Draws a table with a colour bar, hatched where nothing is known.

    Values beyond the limits have the colours of the limits, and the bar has a point at that end.

    Returns:
        Whether the table was small enough to have its numbers written into it.
    """
    values = np.asarray(values, float)
    low, high = limits
    image = ax.imshow(
        np.ma.masked_invalid(values),
        cmap=colormaps[color_map],
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
    )
    ax.patch.set(facecolor="white", edgecolor="#bbbbbb", hatch="////", linewidth=0)
    known = values[np.isfinite(values)]
    below, above = (known < low).any(), (known > high).any()
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}
    bar = ax.figure.colorbar(
        image, ax=ax, label=label, extend=extend.get((below, above), "neither")
    )
    bar.formatter.set_useOffset(False)
    label_columns(ax, columns, taken=label_rows(ax, rows))
    written = max(values.shape) <= _WRITTEN
    if written:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = image.to_rgba(value)
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                ax.text(
                    column,
                    row,
                    three_digits(value),
                    ha="center",
                    va="center",
                    fontsize="x-small",
                    color="white" if dark else "black",
                )
    return written


def _from_zero(values: np.ndarray) -> tuple[float, float]:
    known = np.asarray(values)[np.isfinite(values)]
    return 0.0, known.max(initial=0.0) or 1.0


def _near_the_best(values: np.ndarray, sign: int) -> tuple[float, float]:
    """Limits of colours: all values, or, where some are far off, those near the best."""
    known = sign * values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    best, median, worst = known.min(), np.median(known), known.max()
    if worst - best > _FAR_OFF * (median - best) > 0:
        worst = best + _FAR_OFF / 2 * (median - best)
    ends = sign * best, sign * (worst if worst > best else best + 1.0)
    return min(ends), max(ends)


def _checkpoints(labels: Sequence[str]) -> str:
    """What the labels of checkpoints are, behind which those of averages may stand."""
    return "epoch" if labels[0].isdecimal() else "checkpoint"
