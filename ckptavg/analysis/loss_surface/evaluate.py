"""The loss along lines and over planes through checkpoints and averages of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptavg.analysis.loss_surface.corners import Corner
from ckptavg.analysis.loss_surface.points import open_points
from ckptavg.analysis.loss_surface.results import LossLine, LossPlane
from ckptavg.batch_norm import BatchNormOptions
from ckptavg.errors import RecipeError
from ckptavg.merging.worker import Progress

POSITIONS = tuple(n / 10 for n in range(-5, 16))
"""Of the points of a line: from half its length before the start to half of it beyond the end."""

_FLAT = 1e-4
"""Height of a triangle, as a share of its longest side, up to which its corners lie in a line:
float32 gives the mean of two neighbours no better."""


def loss_line(
    start: Corner,
    end: Corner,
    *,
    model: keras.Model | str | Path,
    data: Any = None,
    eval_data: Any,
    points: Sequence[float] = POSITIONS,
    steps: int | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    labels: Sequence[str] | None = None,
    cache: str | Path | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> LossLine:
    """Evaluates the straight line through two checkpoints, or averages, in the space of weights.

    Between two checkpoints it tells whether they lie in one basin; from the last checkpoint through
    an average it tells whether the average lies in the middle of one. At every point the weights
    are set in place, a BatchNorm pass re-estimates the statistics, and the model is evaluated. A
    point whose weights overflow, or which brings NaN or infinity to a BatchNorm layer, is NaN. See
    `loss_plane` for what is kept, and how weights are read.

    Args:
        start: a checkpoint, or several for their plain mean, as in `merge`; or a tuple of
            checkpoints and their coefficients, or of checkpoints and a `Recipe`.
        end: likewise, of the same model.
        model: a compiled model, or its SPEC; it gets the weights and statistics back that it has.
        data: training inputs for the BatchNorm passes, as in `update_batch_norm`; they may be left
            out for a model without BatchNorm.
        eval_data: `(x, y)` to evaluate on, as in `evaluate`; or several such by name.
        points: of the line, as shares of the way from start to end: 0 is the start, 1 the end.
        steps: number of batches of `data` to see in each pass; all by default.
        bn_mode: the `mode` of `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`; evaluations are not meant.
        labels: names of start and end; by default their epochs or files.
        cache: as in `loss_plane`.
        max_memory: as in `loss_plane`.
        progress: called with 1 for each point.

    Returns:
        Metrics along the line, with distances in parameter units.

    Raises:
        RecipeError: start and end are the same point, or `points` are none.
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do.

    Example:
        >>> run = ckptavg.open_run("run")
        >>> line = loss_line(
        ...     run.checkpoints[-1], run.select(last=10), model=model, data=x,
        ...     eval_data={"train": (x, y), "test": (x_test, y_test)},
        ... )
        >>> line.to_frame()
    """
    positions = np.asarray(points, np.float64)
    if positions.ndim != 1 or not len(positions) or not np.isfinite(positions).all():
        raise RecipeError("points of a line must be a row of finite numbers, such as (0, 0.5, 1)")
    with open_points(
        (start, end),
        model=model,
        data=data,
        eval_data=eval_data,
        options=BatchNormOptions(steps=steps, bn_mode=bn_mode, mixed_precision=mixed_precision),
        labels=labels,
        cache=cache,
        max_memory=max_memory,
    ) as found:
        length = math.sqrt(found.products[0, 0])
        if length == 0:
            raise RecipeError(
                f"{' and '.join(found.labels)} have the same weights, so that no line goes through "
                "them: choose others"
            )
        metrics = found.evaluate([(1 - share, share) for share in positions], progress)
        return LossLine(positions, positions * length, metrics, found.labels)


def loss_plane(
    origin: Corner,
    first: Corner,
    second: Corner,
    *,
    model: keras.Model | str | Path,
    data: Any = None,
    eval_data: Any,
    points: int = 21,
    margin: float = 0.2,
    steps: int | None = None,
    bn_mode: str = "batch",
    mixed_precision: bool = False,
    labels: Sequence[str] | None = None,
    cache: str | Path | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> LossPlane:
    """Evaluates a rectangle of the plane through three checkpoints, or averages.

    The axes are u = first - origin and v = (second - origin) - its share along u, both divided by
    their lengths (Gram-Schmidt; Garipov et al., arXiv 1802.10026, and Izmailov et al., arXiv
    1803.05407, section 3). Lengths are Euclidean over the weights: all floating-point variables of
    the model but the moving statistics of BatchNorm layers. Every point is
    (1 - a - b) origin + a first + b second, so one vector of coefficients, computed in float64 and
    rounded once. Its BatchNorm statistics are re-estimated with the random numbers of the origin,
    the same at every point.

    A point whose weights overflow, or which brings NaN or infinity to a BatchNorm layer, is NaN.

    Every result is kept at once in a folder, known by the contents of the corners, coefficients,
    model and data: a surface that was stopped goes on, also in another process, and a finer grid or
    other data for evaluation find the points that are known.

    Args:
        origin: a checkpoint, or several for their plain mean, as in `merge`; or a tuple of
            checkpoints and their coefficients, or of checkpoints and a `Recipe`.
        first: likewise, of the same model; the x axis goes through it.
        second: likewise.
        model: a compiled model, or its SPEC; it gets the weights and statistics back that it has.
        data: training inputs for the BatchNorm passes, as in `update_batch_norm`; they may be left
            out for a model without BatchNorm.
        eval_data: `(x, y)` to evaluate on, as in `evaluate`; or several such by name.
        points: of each axis, at least 2.
        margin: around the three points on all sides, as a share of the longer side of the smallest
            rectangle that holds them; at least 0.
        steps: number of batches of `data` to see in each pass; all by default.
        bn_mode: the `mode` of `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`; evaluations are not meant.
        labels: names of the three points; by default their epochs or files.
        cache: folder for results. By default it is `search` in the run that one of the checkpoints
            belongs to; where none does, nothing is kept.
        max_memory: bytes that the three points may take in memory, 24 for each weight, 1 GiB by
            default; else they go to a file without a name, in the folder for results or the
            system's temporary one. Each checkpoint is read once for each of the three that it
            belongs to.
        progress: called with 1 for each point.

    Returns:
        Metrics over the plane, with coordinates in parameter units.

    Raises:
        RecipeError: the three points lie in a line (the triangle's height is less than 1e-4 of its
            longest side), or `points` or `margin` are none.
        CkptavgError: as `merge`, `update_batch_norm` and `evaluate` do.

    Example:
        >>> run = ckptavg.open_run("run")
        >>> plane = loss_plane(
        ...     *run.select(epochs=[10, 20, 30]), model=model, data=x,
        ...     eval_data={"train": (x, y), "test": (x_test, y_test)},
        ... )
        >>> plane.metrics["test"]["loss"].shape
        (21, 21)
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise RecipeError(f"points is {points!r:.40}, but must be a whole number, at least 2")
    if not (isinstance(margin, int | float) and 0 <= margin < math.inf):
        raise RecipeError(f"margin is {margin!r:.40}, but must be a share, at least 0, such as 0.2")
    with open_points(
        (origin, first, second),
        model=model,
        data=data,
        eval_data=eval_data,
        options=BatchNormOptions(steps=steps, bn_mode=bn_mode, mixed_precision=mixed_precision),
        labels=labels,
        cache=cache,
        max_memory=max_memory,
    ) as found:
        across, along, height = _triangle(found.products, found.labels)
        left, right = min(along, 0.0), max(along, across)
        edge = margin * max(right - left, height)
        x = np.linspace(left - edge, right + edge, points)
        y = np.linspace(-edge, height + edge, points)
        places = [
            (1 - first_share - share, first_share, share)
            for share in y / height
            for first_share in (x - share * along) / across
        ]
        metrics = found.evaluate(places, progress)
        corners = ((0.0, 0.0), (across, 0.0), (along, height))
        return LossPlane(
            x=x,
            y=y,
            metrics={
                data_name: {name: values.reshape(len(y), len(x)) for name, values in known.items()}
                for data_name, known in metrics.items()
            },
            points=dict(zip(found.labels, corners, strict=True)),
        )


def _triangle(products: np.ndarray, labels: Sequence[str]) -> tuple[float, float, float]:
    """Coordinates of a triangle: (0, 0), (across, 0), (along, height).

    Args:
        products: inner products of the ways from its first corner to the others.
        labels: of its corners.

    Raises:
        RecipeError: it is none.
    """
    (first, both), (_, second) = products.tolist()
    longest = max(first, second, first - 2 * both + second)
    area = first * second - both**2
    if not area > (_FLAT * longest) ** 2:
        raise RecipeError(
            f"{', '.join(labels)} lie in one line, or are less than three points, so that no plane "
            "goes through them: choose others, or evaluate a loss_line"
        )
    across = math.sqrt(first)
    return across, both / across, math.sqrt(area) / across
