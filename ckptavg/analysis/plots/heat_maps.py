"""Tables of numbers as heat maps: pairs of checkpoints, layers, windows of a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import ScalarFormatter

from ckptavg.analysis.plots import style
from ckptavg.analysis.tables import LayerTable, PairTable
from ckptavg.runs.selection import metric_sign

if TYPE_CHECKING:
    from ckptavg.search.sweep import Entry

_WRITTEN = 8
"""The most rows and columns whose numbers are written into the cells."""
_PAIR = 12
"""The most characters of the name of a checkpoint or average, which takes room on two sides."""
_FAR_OFF = 6.0
"""Values farther from the best than this many times the median do not stretch the colours."""


def cosine_map(table: "PairTable", *, ax: Axes) -> Axes:
    """Draws the cosines between checkpoints as a matrix.

    Args:
        table: a result of `Geometry.cosines`.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    known = table.values[np.isfinite(table.values)]
    lowest = known.min(initial=1.0)
    return _pairs(table, ax, (lowest if lowest < 1.0 else 0.0, 1.0))


def distance_map(table: "PairTable", *, ax: Axes) -> Axes:
    """Draws the distances between checkpoints as a matrix.

    Args:
        table: a result of `Geometry.distances`.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    return _pairs(table, ax, _from_zero(table.values))


def layer_drift(table: "LayerTable", *, ax: Axes) -> Axes:
    """Draws how far each layer has moved at each checkpoint, with the first layer at the top.

    Args:
        table: a result of `Geometry.drift`.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    label, limits = style.with_unit(table.quantity, table.unit), _from_zero(table.values)
    _heat_map(table.values, style.layer_names(table.layers), table.labels, ax, label, limits)
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
    """Draws the scores of a sweep's windows over their starts and lengths, and marks the best one.

    Args:
        entries: the entries of a `SweepReport`.
        ax: axes to draw into.
        metric: name of the metric to draw.
        recipe: recipe of the windows to draw.
        mode: `min` or `max` is best, or `auto`, which goes by the name of the metric.

    Returns:
        The axes. Better scores are lighter.
    """
    windows = [entry for entry in entries if entry.recipe == recipe]
    firsts = {entry.checkpoints[0].path: entry.checkpoints[0] for entry in windows}
    starts = sorted(firsts.values(), key=lambda c: (c.epoch or 0, c.step or 0, c.path.name))
    columns = {start.path: number for number, start in enumerate(starts)}
    lengths = sorted({len(entry.checkpoints) for entry in windows}, reverse=True)
    # Windows that were not tried stay NaN.
    values = np.full((len(lengths), len(starts)), np.nan)
    for entry in windows:
        place = lengths.index(len(entry.checkpoints)), columns[entry.checkpoints[0].path]
        values[place] = entry.metrics.get(metric, np.nan)
    sign = metric_sign(metric, mode)
    # Epochs name the columns only if they tell all of them apart.
    epochs = [start.epoch for start in starts]
    known = None not in epochs and len(set(epochs)) == len(epochs)
    written = _heat_map(
        values,
        [str(length) for length in lengths],
        [str(start.epoch) if known else start.path.stem for start in starts],
        ax,
        style.plain(metric),
        _near_the_best(values, sign),
        style.lighter_if_better(sign),
    )
    if np.isfinite(values).any():
        # Smaller is better after multiplying with the sign.
        row, column = np.unravel_index(np.nanargmin(sign * values), values.shape)
        if written:
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=2.5))
        else:
            ax.plot(column, row, "*", color="white", markeredgecolor="black", markersize=11)
    ax.set_xlabel("epoch of the first checkpoint" if known else "first checkpoint")
    ax.set_ylabel("window length (checkpoints)")
    return ax


def _pairs(table: "PairTable", ax: Axes, limits: tuple[float, float]) -> Axes:
    label = style.with_unit(table.quantity, table.unit)
    if table.layer is not None:
        label = f"{label} of {style.plain(table.layer)}"
    labels = [style.plain(name, _PAIR) for name in table.labels]
    _heat_map(table.values, labels, labels, ax, label, limits)
    ax.set_aspect("equal")
    ax.set(**dict.fromkeys(("xlabel", "ylabel"), _checkpoints(table.labels)))
    return ax


def _heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    ax: Axes,
    label: str,
    limits: tuple[float, float],
    color_map: str | Colormap = style.COLOR_MAP,
) -> bool:
    """Draws a table with a colour bar; unknown values are hatched.

    Values beyond the limits have the colours of the limits, and the bar is pointed at that end.

    Returns:
        Whether the numbers were written into the cells.
    """
    values = np.asarray(values, float)
    low, high = limits
    image = ax.imshow(
        np.ma.masked_invalid(values),
        cmap=color_map,
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
    )
    # Masked cells are not drawn, so the background shows.
    ax.patch.set(**style.UNKNOWN)
    known = values[np.isfinite(values)]
    pointed = (known < low).any() + 2 * (known > high).any()
    ax.figure.colorbar(
        image,
        ax=ax,
        label=label,
        extend=("neither", "min", "max", "both")[int(pointed)],
        format=ScalarFormatter(useOffset=False),
    )
    style.label_columns(ax, columns, taken=style.label_rows(ax, rows))
    written = bool(max(values.shape) <= _WRITTEN)
    if written:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = image.to_rgba(value)
                # Perceived lightness (ITU-R BT.601): white text on dark cells, black on light ones.
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                ax.text(
                    column,
                    row,
                    style.three_digits(value),
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
    """Limits of the colours: those of all values, or of those near the best if some are far off."""
    known = sign * values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    best, median, worst = known.min(), np.median(known), known.max()
    if worst - best > _FAR_OFF * (median - best) > 0:
        worst = best + _FAR_OFF / 2 * (median - best)
    ends = sign * best, sign * (worst if worst > best else best + 1.0)
    return min(ends), max(ends)


def _checkpoints(labels: Sequence[str]) -> str:
    """What the labels of checkpoints are; those of averages may follow them."""
    return "epoch" if labels[0].isdecimal() else "checkpoint"
