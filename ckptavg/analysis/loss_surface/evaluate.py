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
from ckptavg.merging.worker import Advance

POSITIONS = tuple(n / 10 for n in range(-5, 16))
"""Default points of a line: from half its length before the start to half of it beyond the end."""

_FLAT = 1e-4
"""Height of a triangle, as a fraction of its longest side, below which its corners lie in a line:
float32 represents the mean of two checkpoints no better."""


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
    progress: Advance | None = None,
) -> LossLine:
    """Evaluates the straight line through two checkpoints, or averages, in the space of weights.

    Between two checkpoints it shows whether they lie in one basin; from the last checkpoint through
    an average it shows whether the average lies in the middle of one. At every point the weights
    are set in place, a BatchNorm pass re-estimates the statistics, and the model is evaluated.
    Other arguments than those below, and what is kept, are as in `loss_plane`.

    Args:
        start: a checkpoint, or several for their plain mean, as in `merge`; or a tuple of
            checkpoints and their coefficients, or of checkpoints and a `Recipe`.
        end: likewise, of the same model.
        points: fractions of the line from start to end: 0 is the start, 1 the end.
        labels: names of start and end; by default their epochs or files.

    Returns:
        Metrics along the line, with distances in parameter units.

    Raises:
        RecipeError: start and end have the same weights, or `points` are not finite numbers.
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
        raise RecipeError("points must be a sequence of finite numbers, such as (0, 0.5, 1)")
    options = BatchNormOptions(steps, bn_mode=bn_mode, mixed_precision=mixed_precision)
    with open_points(
        (start, end), model, data, eval_data, options, labels, cache, max_memory
    ) as found:
        length = math.sqrt(found.products[0, 0])
        if length == 0:
            raise RecipeError(
                f"{' and '.join(found.labels)} have the same weights, so there is no line through "
                "them: choose others"
            )
        metrics = found.evaluate([(1 - share, share) for share in positions], progress)
        first, last = found.labels
        return LossLine(positions, positions * length, metrics, (first, last))


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
    progress: Advance | None = None,
) -> LossPlane:
    """Evaluates a rectangle of the plane through three checkpoints, or averages.

    The axes are u = first - origin and v = (second - origin) minus its projection on u, both
    divided by their lengths (Gram-Schmidt; Garipov et al., arXiv 1802.10026, and Izmailov et al.,
    arXiv 1803.05407, section 3). Lengths are Euclidean over the weights: all floating-point
    variables of the model except the moving statistics of BatchNorm layers. Every point is
    (1 - a - b) origin + a first + b second, computed in float64 and rounded once. Its BatchNorm
    statistics are re-estimated with the random state of the origin, the same at every point. A
    point whose weights overflow, or where a BatchNorm layer meets NaN or infinity, is NaN.

    Every result is kept in a folder as soon as it is known, by the contents of the corners, the
    coefficients, the model and the data. A stopped surface can be continued, also in another
    process, and a finer grid or other evaluation data use the points that are known.

    Args:
        origin: a checkpoint, or several for their plain mean, as in `merge`; or a tuple of
            checkpoints and their coefficients, or of checkpoints and a `Recipe`.
        first: likewise, of the same model; the x axis goes through it.
        second: likewise.
        model: a compiled model, or its SPEC; its weights and statistics are restored at the end.
        data: training inputs for the BatchNorm passes, as in `update_batch_norm`; not needed for a
            model without BatchNorm.
        eval_data: `(x, y)` to evaluate on, as in `evaluate`; or a dictionary of several by name,
            whose metrics are then found under these names. A dictionary of `x` and `y` (and
            `sample_weight`) is one pair, as everywhere: data sets need other names.
        points: number of points along each axis, at least 2.
        margin: width around the three points, as a fraction of the longer side of the smallest
            rectangle that holds them; at least 0.
        steps: number of batches of `data` to use in each pass; all by default.
        bn_mode: `batch`, `population` or `cumulative`; see `update_batch_norm`.
        mixed_precision: as in `update_batch_norm`; evaluations are not affected.
        labels: names of the three points; by default their epochs or files.
        cache: folder for results; by default `search` in the run of the first checkpoint that
            belongs to one. If none does, nothing is kept.
        max_memory: bytes that the three points may take in memory, 1 GiB by default; they need 24
            for each weight. Larger ones go to an unnamed file in the folder for results or in the
            system's temporary one. Each checkpoint is read once for each point that it is part of.
        progress: called with 1 for each point.

    Returns:
        Metrics over the plane, with coordinates in parameter units.

    Raises:
        RecipeError: the three points lie in a line (the height of the triangle is less than 1e-4 of
            its longest side), or `points` or `margin` is invalid.
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
        raise RecipeError(f"points is {points!r:.40}, but must be an integer >= 2")
    if not (isinstance(margin, int | float) and 0 <= margin < math.inf):
        raise RecipeError(f"margin is {margin!r:.40}, but must be a number >= 0, such as 0.2")
    options = BatchNormOptions(steps, bn_mode=bn_mode, mixed_precision=mixed_precision)
    with open_points(
        (origin, first, second), model, data, eval_data, options, labels, cache, max_memory
    ) as found:
        across, along, height = _triangle(found.products, found.labels)
        # The third corner may lie beyond the ends of the first edge.
        left, right = min(along, 0.0), max(along, across)
        edge = margin * max(right - left, height)
        x = np.linspace(left - edge, right + edge, points)
        y = np.linspace(-edge, height + edge, points)
        places = [
            (1 - first_share - share, first_share, share)
            # Shares of the second and first edge: x = a * across + b * along, y = b * height.
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
        products: inner products of the edges from its first corner to the others.
        labels: of its corners.

    Raises:
        RecipeError: the corners lie in a line.
    """
    (first, both), (_, second) = products.tolist()
    longest = max(first, second, first - 2 * both + second)
    # The squared area of the parallelogram (Gram determinant).
    area = first * second - both**2
    if not area > (_FLAT * longest) ** 2:
        raise RecipeError(
            f"{', '.join(labels)} lie in one line or coincide, so they span no plane: choose "
            "others, or evaluate a loss_line"
        )
    across = math.sqrt(first)
    return across, both / across, math.sqrt(area) / across
