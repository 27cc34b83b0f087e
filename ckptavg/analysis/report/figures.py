"""The figures of a report, with captions."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from matplotlib.axes import Axes

from ckptavg.analysis import plots
from ckptavg.analysis.average import Average
from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.plots.training import metric_groups
from ckptavg.analysis.report.html import Content, figure, tag
from ckptavg.runs.checkpoint import Checkpoint, TrackedCheckpoint
from ckptavg.runs.history import EpochLog
from ckptavg.runs.record import Record
from ckptavg.runs.selection import positions_in

_MOST_METRICS = 6
"""The most metrics that are drawn, each with its validation twin; the table has all."""
_PLANE = "The checkpoints in the plane of their first two principal components."
_COSINES = "Cosines between checkpoints; 1 means the same direction."
_DRIFT = "How far each layer moved from the first checkpoint, as a fraction of its norm there."


def training_figures(logs: Sequence[EpochLog | Record], saved: Collection[int]) -> Content:
    """Metrics and the learning rate over the epochs, with marks at saved ones."""
    groups = list(metric_groups(logs).values())
    if not groups and all(log.learning_rate is None for log in logs):
        return tag("p", "No metrics or learning rates were recorded.")
    drawn = groups[:_MOST_METRICS] or [[]]  # without metrics the learning rate alone
    figures = [
        _figure(
            partial(plots.learning_curve, logs, metrics=names, saved_epochs=saved),
            f"{' and '.join(names) or 'The learning rate'} by epoch.",
        )
        for names in drawn
    ]
    more = len(groups) - len(drawn)
    note = tag("p", f"{more} more metrics are in the table below.") if more > 0 else None
    return _grid(figures), note


def geometry_figures(geometry: Geometry) -> Content:
    """How the checkpoints lie to each other, and how large they are."""
    count = len(geometry.labels)
    total, layers = sum(geometry.parameters), len(geometry.layers)
    about = tag(
        "p",
        f"{count} checkpoint{'s' * (count > 1)} of {total:,} weights in {layers} layers. Lengths "
        "are Euclidean over the weights, without the moving statistics of BatchNorm layers.",
    )
    if count < 2:
        return about, tag("p", "A single checkpoint has no distances to others.")
    drawn: tuple[tuple[Callable[..., Axes], object, str], ...] = (
        (plots.trajectory_plane, geometry.trajectory(), _PLANE),
        (plots.distance_map, geometry.distances(averages={}), "Distances between checkpoints."),
        (plots.cosine_map, geometry.cosines(averages={}), _COSINES),
        (plots.series_plot, geometry.norms(), "The norm of the weights."),
        (plots.series_plot, geometry.step_sizes(), "Distance of each checkpoint to the previous."),
        (plots.series_plot, geometry.to_mean(), "Distance of each checkpoint to the mean of all."),
        (plots.layer_drift, geometry.drift(), _DRIFT),
    )
    return about, _grid(_figure(partial(plot, found), text) for plot, found, text in drawn)


def coefficient_figure(average: Average, sources: Sequence[Checkpoint]) -> Content:
    """The coefficients of an average; nothing if all are equal."""
    if len(set(average.coefficients)) < 2:
        return None
    places, unit = positions_in(sources)
    shares: dict[str, list[float]] = {}
    for number, (source, coefficient) in enumerate(zip(sources, average.coefficients, strict=True)):
        # Tracked averages of different widths are lines of their own, with NaN at the others.
        name = average.record.recipe or ""
        if isinstance(source, TrackedCheckpoint):
            name = f"sigma_rel {source.ema.sigma_rel:g}"
        shares.setdefault(name, [math.nan] * len(sources))[number] = coefficient
    draw = partial(plots.recipe_curves, places, shares, unit=unit)
    return _grid([_figure(draw, "The coefficients of the checkpoints in the average.")])


def _grid(figures: Iterable[Content]) -> Content:
    return tag("div", figures, class_="figures")


def _figure(draw: Callable[..., Axes], caption: str) -> Content:
    return figure(plots.figure_svg(lambda ax: draw(ax=ax)), caption)
