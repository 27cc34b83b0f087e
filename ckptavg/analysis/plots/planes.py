"""The space of weights in one or two dimensions: trajectories and loss surfaces."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm

from ckptavg.analysis.geometry.trajectory import Trajectory
from ckptavg.analysis.loss_surface.results import LossLine, LossPlane
from ckptavg.analysis.plots import style
from ckptavg.runs.selection import metric_sign

_LEVELS = 8
_INNERMOST = 0.05
"""Approximate fraction of the plane inside the innermost contour."""


def trajectory_plane(trajectory: "Trajectory", *, ax: Axes) -> Axes:
    """Draws checkpoints and averages in the plane of the first two principal components.

    Both axes have the same scale, and their labels say which fraction of the variance they explain.
    The colours of points show the order of checkpoints.

    Args:
        trajectory: a result of `Geometry.trajectory`.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    x, y = np.asarray(trajectory.coordinates, float).T
    ax.plot(x, y, "-", color=style.GREY, linewidth=0.8, zorder=2)
    when, unit = style.places(trajectory)
    points = ax.scatter(
        x,
        y,
        c=when,
        cmap=style.COLOR_MAP,
        s=(2 + style.marker_size(len(x))) ** 2,
        edgecolors="black",
        linewidths=0.5,
        zorder=3,
    )
    if len(x) > 1:
        bar = ax.figure.colorbar(points, ax=ax, label=unit)
        style.whole_numbers(bar.ax.yaxis)
    for number, place in enumerate(trajectory.averages.values()):
        _mark(ax, place, number)
    # The axes keep their size, so the colour bar keeps its height.
    ax.set_aspect("equal", adjustable="datalim")
    # Room for the names of the outermost points.
    ax.margins(0.15)
    for number, axis in enumerate((ax.xaxis, ax.yaxis)):
        text = f"component {number + 1}, {trajectory.explained[number]:.0%} of variance"
        axis.set_label_text(style.with_unit(text, trajectory.unit))
    style.frame(ax)
    ends = [0, len(x) - 1] if len(x) > 1 else [0]
    labels = [trajectory.labels[end] for end in ends]
    names = [f"{unit} {label}" if label.isdecimal() else label for label in labels]
    named = [(x[end], y[end]) for end in ends] + list(trajectory.averages.values())
    # Names also avoid the middles of the lines between points.
    path = np.column_stack([x, y])
    others = np.concatenate([path, (path[1:] + path[:-1]) / 2])
    style.name_points(ax, [*names, *trajectory.averages], named, others)
    return ax


def loss_line_plot(line: "LossLine", *, ax: Axes, metric: str = "loss") -> Axes:
    """Draws a metric along a line through two points in the space of weights.

    Args:
        line: a result of `loss_line`.
        ax: axes to draw into.
        metric: name of the metric to draw.

    Returns:
        The axes.
    """
    for number, (data, metrics) in enumerate(line.metrics.items()):
        values = np.asarray(metrics[metric], float)
        size = style.marker_size(len(values) * 2)
        look = style.line_style(number) | {"markersize": size, "label": style.plain(data)}
        ax.plot(line.positions, values, **look)
    for place, name in zip((0.0, 1.0), line.labels, strict=True):
        ax.axvline(place, color=style.GREY, linewidth=0.8)
        ax.annotate(
            style.plain(name),
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize="small",
        )
    length = float(np.interp(1.0, line.positions, line.distances))
    ax.set_xlabel(f"fraction of the line (length {length:.3g})")
    ax.set_ylabel(style.plain(metric))
    style.frame(ax)
    if len(line.metrics) > 1:
        style.legend(ax)
    return ax


def loss_contours(
    plane: "LossPlane",
    *,
    ax: Axes,
    metric: str = "loss",
    data: str | None = None,
    mode: str = "auto",
    levels: int = _LEVELS,
) -> Axes:
    """Draws a metric over a plane in the space of weights, and the points that span it.

    The distances of the levels from the best value grow by a constant factor, as in the figures of
    Garipov et al. (arXiv 1802.10026) and Izmailov et al. (arXiv 1803.05407), to show both a basin
    and its surroundings. Better values are lighter; both axes have the same scale.

    Args:
        plane: a result of `loss_plane`.
        ax: axes to draw into.
        metric: name of the metric to draw.
        data: name of the evaluation data; by default the first.
        mode: `min` or `max` is best, or `auto`, which goes by the name of the metric.
        levels: number of contours.

    Returns:
        The axes.
    """
    data = next(iter(plane.metrics)) if data is None else data
    sign = metric_sign(metric, mode)
    values = np.ma.masked_invalid(np.asarray(plane.metrics[data][metric], float))
    ax.patch.set(**style.UNKNOWN)
    label = style.plain(metric)
    if len(plane.metrics) > 1:
        label += f", {style.plain(data)} data"
    steps = _levels(sign * values.compressed(), levels)
    if steps is not None:
        edges = np.sort(sign * steps)
        map_ = style.lighter_if_better(sign)
        # Each level gets an equal share of the colours, however small its range.
        norm = BoundaryNorm(edges, map_.N)
        filled = ax.contourf(plane.x, plane.y, values, levels=edges, cmap=map_, norm=norm)
        ax.contour(plane.x, plane.y, values, levels=edges, colors="black", linewidths=0.4)
        bar = ax.figure.colorbar(filled, cax=style.bar_beside(ax), label=label, spacing="uniform")
        bar.set_ticks(edges.tolist(), labels=[style.three_digits(edge) for edge in edges])
        bar.minorticks_off()
    for number, place in enumerate(plane.points.values()):
        _mark(ax, place, number)
    ax.set_aspect("equal")
    ax.set(**dict.fromkeys(("xlabel", "ylabel"), style.with_unit("distance", plane.unit)))
    style.name_points(ax, list(plane.points), list(plane.points.values()))
    return ax


def _levels(values: np.ndarray, count: int) -> np.ndarray | None:
    """Levels whose heights above the best value grow by a constant factor.

    Args:
        values: smaller ones are better.
        count: number of contours.

    Returns:
        `count` + 1 increasing values from the best to the worst; None if all values are equal.
    """
    if not values.size or values.min() == values.max():
        return None
    heights = values - values.min()
    first = np.quantile(heights, _INNERMOST)
    highest = heights.max()
    # Too many equal or too few low values: heights double from level to level instead.
    if not 0 < first < highest / 2:
        first = highest / 2**count
    rising = np.geomspace(first, highest, count)
    return np.asarray(values.min() + np.concatenate([[0.0], rising]))


def _mark(ax: Axes, place: Sequence[float], number: int) -> None:
    """A mark that stands out on dark and on light backgrounds."""
    look: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markeredgewidth": 1.2}
    ax.plot(*place, style.marker(number + 6), markersize=9, zorder=5, **look)
