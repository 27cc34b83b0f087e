"""Pictures of runs and averages: data and axes in, axes out. The only file that uses matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LINE, _AVERAGE, _REFERENCE = "#0072b2", "#d55e00", "#555555"  # told apart by colour-blind readers


def metric_curve(
    values: Sequence[float],
    *,
    ax: Axes,
    saved_epochs: Sequence[int] = (),
    averages: Mapping[str, float] | None = None,
    label: str = "metric",
) -> Axes:
    """Draws a metric over the epochs of a run, with its checkpoints and averages of them.

    Args:
        values: the metric at the end of each epoch, the first of epoch 1.
        ax: axes to draw into.
        saved_epochs: 1-based epochs whose checkpoints are marked.
        averages: values of the metric for averages, drawn as lines over the epochs averaged.
        label: what the metric is, with its unit.

    Returns:
        The axes.
    """
    epochs = range(1, len(values) + 1)
    ax.plot(epochs, values, color=_LINE, linewidth=1.2, label="each epoch")
    if saved_epochs:
        marked = [values[epoch - 1] for epoch in saved_epochs]
        ax.plot(saved_epochs, marked, "o", color=_LINE, markersize=4, label="saved checkpoints")
    styles = (("-", _AVERAGE), ("--", _REFERENCE))
    for number, (name, value) in enumerate((averages or {}).items()):
        style, color = styles[number % len(styles)]
        start, end = (saved_epochs[0], saved_epochs[-1]) if saved_epochs else (1, len(values))
        ax.plot([start, end], [value, value], style, color=color, linewidth=1.8, label=name)
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.legend(frameon=False, loc="best")
    return ax


def recipe_curves(
    positions: Sequence[float], recipes: Mapping[str, Sequence[float]], *, ax: Axes
) -> Axes:
    """Draws the coefficients of recipes over the positions of the checkpoints in training.

    Args:
        positions: of the checkpoints, such as their steps.
        recipes: coefficients, one for each checkpoint, by the name of their recipe.
        ax: axes to draw into.

    Returns:
        The axes.
    """
    for name, coefficients in recipes.items():
        points = sorted(zip(positions, coefficients, strict=True))
        ax.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1.2, label=name)
    ax.set_xlabel("position in training")
    ax.set_ylabel("coefficient")
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.legend(frameon=False, loc="best")
    return ax


def save_figure(draw: Callable[[Axes], Axes], path: Path) -> None:
    """Makes a figure of one pair of axes, has it drawn, and saves it; the suffix says the format.

    Raises:
        ValueError: matplotlib knows no such format.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    figure.savefig(path, dpi=120)
