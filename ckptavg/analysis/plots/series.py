"""Numbers of checkpoints, coefficients and layers, as lines and points."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from ckptavg.analysis.plots import style
from ckptavg.analysis.statistics_shift import MEAN_UNIT, VARIANCE_UNIT, BatchNormShift
from ckptavg.analysis.tables import Series


def series_plot(series: "Series", *, ax: Axes) -> Axes:
    """Draws a series over training, such as norms or distances to the mean.

    Args:
        series: the numbers.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    x, unit = style.places(series)
    size = style.marker_size(len(x))
    ax.plot(x, series.values, "o-", color=style.COLORS[0], linewidth=1.2, markersize=size)
    ax.set_xlabel(unit)
    ax.set_ylabel(style.with_unit(series.quantity, series.unit))
    # Readers overlook an offset such as +1e3 at the end of the axis.
    ax.ticklabel_format(axis="y", useOffset=False)
    style.whole_numbers(ax.xaxis)
    style.frame(ax)
    return ax


def recipe_curves(
    positions: Sequence[float], recipes: Mapping[str, Sequence[float]], *, ax: Axes, unit: str = ""
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
        size = style.marker_size(len(x) * len(recipes) // 4)
        look = style.line_style(number) | {"linewidth": 1.2, "markersize": size}
        ax.plot(x[known], values[known], **look, label=style.plain(name))
    ax.set_xlabel(style.with_unit("position in training", unit))
    ax.set_ylabel("coefficient")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    style.frame(ax)
    if len(recipes) > 1:
        style.legend(ax)
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
    size = style.marker_size(5 * len(rows))
    # Means stand above the middle of their row, variances below it.
    for number, offset, values, label in (
        (0, -0.16, shift.means, f"mean ({MEAN_UNIT})"),
        (1, 0.16, shift.variances, f"variance ({VARIANCE_UNIT})"),
    ):
        look, color = style.line_style(number), style.COLORS[number]
        shares = [np.nanquantile(v, (0.05, 0.25, 0.5, 0.75, 0.95)) for v in values]
        low, first, median, third, high = np.reshape(shares, (-1, 5)).T
        ax.hlines(rows + offset, low, high, color=color, linewidth=0.8)
        ax.hlines(rows + offset, first, third, color=color, linewidth=2.5)
        look |= {"linestyle": "", "markeredgecolor": "white", "markersize": size + 2}
        ax.plot(median, rows + offset, **look, label=label)
    ax.axvline(0.0, color=style.GREY, linewidth=0.8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    style.label_rows(ax, style.layer_names(shift.layers))
    ax.set_xlabel(f"shift from {style.plain(shift.before)}\nto {style.plain(shift.after)}")
    ax.set_ylabel("layer")
    style.frame(ax)
    style.legend(ax, below=True)
    return ax
