"""Numbers of checkpoints, coefficients and layers, as lines and points."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from ckptavg.analysis.plots.style import (
    COLORS,
    GREY,
    frame,
    label_rows,
    layer_names,
    legend,
    line_style,
    marker_size,
    places,
    plain,
    whole_numbers,
    with_unit,
)

if TYPE_CHECKING:
    from ckptavg.analysis.statistics_shift import BatchNormShift
    from ckptavg.analysis.tables import Series

_SHIFT_UNITS = {"mean": "standard deviations", "variance": "log ratio"}


def series_plot(series: "Series", *, ax: Axes) -> Axes:
    """Draws a series over training, such as norms or distances to the mean.

    Args:
        series: the numbers.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    x, unit = places(series)
    ax.plot(x, series.values, "o-", color=COLORS[0], linewidth=1.2, markersize=marker_size(len(x)))
    ax.set_xlabel(unit)
    ax.set_ylabel(with_unit(series.quantity, series.unit))
    # Readers overlook an offset such as +1e3 at the end of the axis.
    ax.ticklabel_format(axis="y", useOffset=False)
    whole_numbers(ax.xaxis)
    frame(ax)
    return ax


def recipe_curves(
    positions: Sequence[float],
    recipes: Mapping[str, Sequence[float]],
    *,
    ax: Axes,
    unit: str = "",
) -> Axes:
    """Draws the coefficients of recipes over training.

    Args:
        positions: of the checkpoints, such as their steps.
        recipes: coefficients, one for each checkpoint, by the name of the recipe; NaN where a
            recipe has none.
        ax: axes to draw into.
        unit: of the positions, such as `step`.

    Returns:
        The axes.
    """
    order = np.argsort(positions, kind="stable")
    x = np.asarray(positions, float)[order]
    for number, (name, coefficients) in enumerate(recipes.items()):
        values = np.asarray(coefficients, float)[order]
        known = np.isfinite(values)
        size = marker_size(len(x) * len(recipes) // 4)
        style = line_style(number) | {"linewidth": 1.2, "markersize": size}
        ax.plot(x[known], values[known], **style, label=plain(name))
    ax.set_xlabel(with_unit("position in training", unit))
    ax.set_ylabel("coefficient")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    frame(ax)
    if len(recipes) > 1:
        legend(ax)
    return ax


def batch_norm_shift(shift: "BatchNormShift", *, ax: Axes) -> Axes:
    """Draws how far the BatchNorm statistics of each layer moved, with the first layer at the top.

    A mark is the median over the channels, the thick line spans half of them, the thin line 90 %.

    Args:
        shift: a result of `ckptavg.analysis.batch_norm_shift`.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    rows = np.arange(len(shift.layers), dtype=float)
    size = marker_size(5 * len(rows))
    for number, (name, values) in enumerate((("mean", shift.means), ("variance", shift.variances))):
        # Means stand above the middle of their row, variances below it.
        style, offset = line_style(number), 0.16 * (2 * number - 1)
        low, first, median, third, high = (
            np.array(
                [
                    np.nanquantile(v, (0.05, 0.25, 0.5, 0.75, 0.95)) if len(v) else [np.nan] * 5
                    for v in values
                ]
            )
            .reshape(-1, 5)
            .T
        )
        ax.hlines(rows + offset, low, high, color=style["color"], linewidth=0.8)
        ax.hlines(rows + offset, first, third, color=style["color"], linewidth=2.5)
        ax.plot(
            median,
            rows + offset,
            style["marker"],
            color=style["color"],
            markeredgecolor="white",
            markersize=size + 2,
            label=f"{name} ({_SHIFT_UNITS[name]})",
        )
    ax.axvline(0.0, color=GREY, linewidth=0.8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    label_rows(ax, layer_names(shift.layers))
    ax.set_xlabel(f"shift from {plain(shift.before)}\nto {plain(shift.after)}")
    ax.set_ylabel("layer")
    frame(ax)
    legend(ax, below=True)
    return ax
