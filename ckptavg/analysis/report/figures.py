"""The figures of a report, with captions."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.plots import (
    cosine_map,
    distance_map,
    figure_svg,
    layer_drift,
    learning_curve,
    recipe_curves,
    series_plot,
    trajectory_plane,
)
from ckptavg.analysis.plots.training import metric_groups
from ckptavg.analysis.report.html import Content, figure, tag
from ckptavg.runs.checkpoint import Checkpoint
from ckptavg.runs.history import EpochLog
from ckptavg.runs.record import Record
from ckptavg.runs.selection import positions_in

_MOST_METRICS = 6
"""Metrics that are drawn, each with its validation twin; the table has all."""


def training_figures(logs: Sequence[EpochLog | Record], records: Sequence[Record]) -> Content:
    """Metrics and the learning rate over the epochs."""
    saved = {record.epoch for record in records}
    groups = list(metric_groups(logs).values())
    if not groups and all(log.learning_rate is None for log in logs):
        return tag("p", "Neither metrics nor learning rates were recorded.")
    told = ["The learning rate.", *(f"{' and '.join(names)}, each epoch." for names in groups)]
    drawn = groups[:_MOST_METRICS] or [[]]
    figures = [
        _figure(partial(learning_curve, logs, metrics=names, saved_epochs=saved), caption)
        for names, caption in zip(drawn, told[1:] if groups else told, strict=False)
    ]
    more = len(groups) - len(drawn)
    note = tag("p", f"{more} more metrics are in the table below.") if more > 0 else None
    return _grid(figures), note


def geometry_figures(geometry: Geometry) -> Content:
    """Where the checkpoints lie to each other, and how large they are."""
    count = len(geometry.labels)
    total, layers = sum(geometry.parameters), len(geometry.layers)
    about = tag(
        "p",
        f"{count} checkpoint{'s' * (count > 1)} of {total:,} weights in {layers} layers; lengths "
        "are Euclidean, in the units of the weights. BatchNorm statistics do not count.",
    )
    if count < 2:
        return about, tag("p", "One checkpoint alone has no distance to others.")
    drawn = [
        (
            partial(trajectory_plane, geometry.trajectory()),
            "The plane in which the checkpoints lie best, by principal components.",
        ),
        (partial(distance_map, geometry.distances(averages={})), "How far checkpoints are apart."),
        (
            partial(cosine_map, geometry.cosines(averages={})),
            "The cosine between checkpoints: 1 is the same direction.",
        ),
        (partial(series_plot, geometry.norms()), "The norm of the weights."),
        (partial(series_plot, geometry.step_sizes()), "How far each is from the one before."),
        (partial(series_plot, geometry.to_mean()), "How far each is from the mean of all."),
        (
            partial(layer_drift, geometry.drift()),
            "How far each layer is from the first checkpoint, as a share of its norm there.",
        ),
    ]
    return about, _grid(_figure(draw, caption) for draw, caption in drawn)


def coefficient_figure(average: Checkpoint, sources: Sequence[Checkpoint]) -> Content:
    """The share of each checkpoint in an average; nothing where all have the same."""
    if len({source.coefficient for source in average.record.sources}) < 2:
        return None
    places, unit = positions_in(sources)
    record, shares = average.record, {}
    for number, (checkpoint, source) in enumerate(zip(sources, record.sources, strict=True)):
        tracked = checkpoint.record.ema if checkpoint.record is not None else None
        name = record.recipe if tracked is None else f"sigma_rel {tracked.sigma_rel:g}"
        shares.setdefault(name, [math.nan] * len(sources))[number] = source.coefficient
    draw = partial(recipe_curves, places, shares, unit=unit)
    return _grid([_figure(draw, "The coefficients of the checkpoints in the average.")])


def _grid(figures: Iterable[Content]) -> Content:
    return tag("div", list(figures), class_="figures")


def _figure(draw: Callable[..., object], caption: str) -> Content:
    return figure(figure_svg(lambda ax: draw(ax=ax)), caption)
