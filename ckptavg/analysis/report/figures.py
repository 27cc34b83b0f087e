"""The figures of a report, with captions."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial

from matplotlib.axes import Axes

from ckptavg.analysis import plots
from ckptavg.analysis.average import Average
from ckptavg.analysis.comparison.candidates import AVERAGE
from ckptavg.analysis.comparison.results import Comparison, Walk
from ckptavg.analysis.geometry.geometry import Geometry
from ckptavg.analysis.loss_surface.results import LossLine
from ckptavg.analysis.plots.training import metric_groups
from ckptavg.analysis.report.html import Content, figure, tag
from ckptavg.analysis.statistics_shift import shift_of_pass
from ckptavg.errors import CkptavgError
from ckptavg.runs.checkpoint import Checkpoint, TrackedCheckpoint
from ckptavg.runs.history import EpochLog
from ckptavg.runs.record import Record
from ckptavg.runs.run import Run
from ckptavg.runs.selection import positions_in

_MOST_METRICS = 6
"""The most metrics that are drawn, each with its validation twin; the table has all."""
_PLANE = (
    "The path of the weights in the plane of most variance (principal components). Circles are "
    "checkpoints, darker ones earlier; other marks are averages. Even a random walk draws an arc "
    "here: how straight the path is, the line above tells."
)
_DISTANCES = (
    "Distances between checkpoints. Dark along the diagonal alone: the weights went ever farther "
    "away. Dark blocks: they stayed in a region."
)
_STEPS = (
    "Distance of each checkpoint to the one before. At a constant rate it settles; it falls with "
    "the rate."
)
_DRIFT = (
    "How far each layer moved from the first checkpoint, as a fraction of its norm there. The "
    "layers that moved most are those that averaging changes most."
)
_LINE = (
    "The loss on the straight line from the last checkpoint (0) to the average (1) and beyond, "
    "each point after a BatchNorm pass. Lower towards the average: averaging helped. Rising all "
    "the way: the average lies behind the last checkpoint."
)
_SHIFT = (
    "How far the BatchNorm pass moved the statistics from the mean of those of the sources. The "
    "mark is the median over the channels, the thick line spans half of them, the thin line 90 %. "
    "The farther from 0, the more the average needed its pass."
)
_COEFFICIENTS = "The share of each checkpoint in the average, by its place in training."


def training_figures(
    logs: Sequence[EpochLog | Record], saved: Collection[int], found: Comparison | None = None
) -> Content:
    """Metrics and the learning rate over the epochs, with the average's score and saved epochs."""
    groups = list(metric_groups(logs).values())
    if not groups and all(log.learning_rate is None for log in logs):
        return tag("p", "No metrics or learning rates were recorded.")
    drawn = groups[:_MOST_METRICS] or [[]]  # without metrics the learning rate alone
    figures = []
    for names in drawn:
        scores = {} if found is None or not names else _scores(found, names[0])
        draw = partial(
            plots.learning_curve, logs, metrics=names, saved_epochs=saved, averages=scores
        )
        text = (
            f"{' and '.join(names) or 'The learning rate'} by epoch. Circles are saved checkpoints"
        )
        text += "; the thick line is the average's score on the held-out data." if scores else "."
        figures.append(_figure(draw, text))
    more = len(groups) - len(drawn)
    note = tag("p", f"{more} more metrics are in the table below.") if more > 0 else None
    return _grid(figures), note


def _scores(found: Comparison, metric: str) -> dict[str, float]:
    """The average's value of a metric, as a curve names it."""
    rows = {row.role: row for row in found.rows}
    name = metric.removeprefix("val_")
    row = rows.get(AVERAGE)
    return {} if row is None or name not in row.metrics else {row.title: row.metrics[name]}


def geometry_figures(geometry: Geometry) -> Content:
    """How the checkpoints lie to each other."""
    count = len(geometry.labels)
    total, layers = sum(geometry.parameters), len(geometry.layers)
    about = tag(
        "p",
        f"{count} checkpoint{'s' * (count > 1)} of {total:,} weights in {layers} layers. Lengths "
        "are Euclidean over the weights, without the moving statistics of BatchNorm layers.",
    )
    if count < 2:
        return about, tag("p", "A single checkpoint has no distances to others.")
    walk = Walk.of(geometry)
    norms = geometry.norms().values
    told = f"The norm of the weights goes from {norms[0]:.4g} to {norms[-1]:.4g}."
    drawn: tuple[tuple[Callable[..., Axes], object, str], ...] = (
        (plots.trajectory_plane, geometry.trajectory(), _PLANE),
        (plots.series_plot, geometry.step_sizes(), _STEPS),
        (plots.distance_map, geometry.distances(averages={}), _DISTANCES),
        (plots.layer_drift, geometry.drift(), _DRIFT),
    )
    return (
        about,
        tag("p", told, " ", None if walk is None else walk.meaning()),
        _grid(_figure(partial(plot, found), text) for plot, found, text in drawn),
    )


def average_figures(average: Average, run: Run, line: LossLine | None) -> Content:
    """The line from the last checkpoint to an average, what a pass did, and the coefficients."""
    figures = []
    if line is not None:
        figures.append(_figure(partial(plots.loss_line_plot, line), _LINE))
    state = average.record.batch_norm
    if state is not None and state.samples is not None:
        # Sources that are gone or damaged are told of elsewhere.
        with suppress(CkptavgError):
            shift = shift_of_pass(average)
            figures.append(_figure(partial(plots.batch_norm_shift, shift), _SHIFT))
    if len(set(average.coefficients)) > 1:
        figures.append(_coefficients(average, average.sources_in(run)))
    return _grid(figures) if figures else None


def _coefficients(average: Average, sources: Sequence[Checkpoint]) -> Content:
    places, unit = positions_in(sources)
    shares: dict[str, list[float]] = {}
    for number, (source, coefficient) in enumerate(zip(sources, average.coefficients, strict=True)):
        # Tracked averages of different widths are lines of their own, with NaN at the others.
        name = average.record.recipe or ""
        if isinstance(source, TrackedCheckpoint):
            name = f"sigma_rel {source.ema.sigma_rel:g}"
        shares.setdefault(name, [math.nan] * len(sources))[number] = coefficient
    return _figure(partial(plots.recipe_curves, places, shares, unit=unit), _COEFFICIENTS)


def _grid(figures: Iterable[Content]) -> Content:
    return tag("div", figures, class_="figures")


def _figure(draw: Callable[..., Axes], caption: str) -> Content:
    return figure(plots.figure_svg(lambda ax: draw(ax=ax)), caption)
